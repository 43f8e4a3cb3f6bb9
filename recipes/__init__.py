"""Whole runs, and studies of many, from YAML files."""

from importlib.util import find_spec

if missing := [name for name in ("composer", "omegaconf") if find_spec(name) is None]:
    raise ImportError(f"{__name__} needs {' and '.join(missing)}: pip install 'accelerando[composer]'", name=missing[0])
