"""The package as pyproject.toml describes it: every folder is in the wheel, and techniques need what it names alone."""

import ast
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
ROOMS = PROJECT["tool"]["setuptools"]["package-dir"]
HOSTS = ("composer", "lightning", "transformers")


def test_every_folder_is_in_the_wheel():
    folders = {
        ".".join((package, *file.parent.relative_to(ROOT / room).parts))
        for package, room in ROOMS.items()
        for file in (ROOT / room).rglob("*.py")
    }
    assert folders == set(PACKAGES)


def test_what_is_installed_is_whole():
    """Which tells something of a wheel, as CI installs one; the checkout is beside itself."""
    import accelerando.algorithms

    installed = Path(accelerando.algorithms.__file__).parents[1]
    for room in ROOMS.values():
        at = installed / room
        kinds = ("*.py", "*.yaml", "py.typed")
        files = {file.relative_to(ROOT / room) for kind in kinds for file in (ROOT / room).rglob(kind)}
        assert files and not [str(file) for file in files if not (at / file).exists()], room


def imported(file: Path) -> set[str]:
    """The packages, this one aside, that a file imports, be it in one of its functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


def test_techniques_need_what_comes_with_them_alone():
    needed = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["project"]["dependencies"]}
    for file in (ROOT / "algorithms").rglob("*.py"):
        if (room := file.relative_to(ROOT / "algorithms").parts[0]) not in HOSTS:
            # What a technique does with a model of transformers, it does where one is at hand.
            extra = {"connectivity": {"curvlinops", "matplotlib", "scipy"}, "figures.py": {"matplotlib"}}  # landscape's
            extra["pruning"] = {"scipy"}  # fit's
            assert imported(file) <= needed | {"transformers"} | extra.get(room, set()), file
