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
        kinds = ("*.py", "*.yaml", "schema.json", "py.typed")
        files = {file.relative_to(ROOT / room) for kind in kinds for file in (ROOT / room).rglob(kind)}
        assert files and not [str(file) for file in files if not (at / file).exists()], room


def test_every_room_is_typed_and_brings_its_data():
    for package, room in ROOMS.items():
        files = [file for file in (ROOT / room).rglob("*") if file.suffix in (".yaml", ".json", ".typed")]
        assert ROOT / room / "py.typed" in files
        told = PROJECT["tool"]["setuptools"]["package-data"][package]
        assert {file for pattern in told for file in (ROOT / room).glob(pattern)} == {*files}, package


def test_classifiers_tell_the_pythons():
    least, beyond = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["project"]["requires-python"]).groups()
    told = [name.rpartition("3.")[2] for name in PROJECT["project"]["classifiers"] if ":: 3." in name]
    assert told == [str(minor) for minor in range(int(least), int(beyond))]


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


def bindings(tree: ast.Module) -> set[str]:
    """What can be imported from a module."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(name.asname or name.name).split(".")[0] for name in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = {target.id for target in targets if isinstance(target, ast.Name)}
            found |= named | ({text.value for text in node.value.elts} if named == {"__all__"} else set())
    return found


def is_there(path: str, modules: dict[str, set[str]]) -> bool:
    """Whether a dotted path leads to a module, or to what one holds, or to something of that."""
    parts = path.split(".")
    within = [(".".join(parts[:i]), parts[i:]) for i in range(len(parts), 1, -1) if ".".join(parts[:i]) in modules]
    return bool(within) and (not (rest := within[0][1]) or rest[0] in modules[within[0][0]])


def test_what_docstrings_refer_to_is_where_they_say():
    """A name in backticks that is one of ours is in the docstring's module, in its package, or in the public names."""
    files = {file: ast.parse(file.read_text()) for room in ROOMS.values() for file in (ROOT / room).rglob("*.py")}
    names = {file: ".".join(("accelerando", *file.relative_to(ROOT).with_suffix("").parts)) for file in files}
    modules = {name.removesuffix(".__init__"): bindings(files[file]) for file, name in names.items()}
    defined = [
        node for tree in files.values() for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    ours = {node.name for node in defined}
    inside = {each.name for node in defined for each in node.body if isinstance(each, ast.FunctionDef)}  # methods
    strange = []
    for file, name in names.items():
        if file.is_relative_to(ROOT / "algorithms"):
            near = ["accelerando.algorithms", *(name.rsplit(".", level)[0] for level in range(3))]
            known = set().union(inside, *(modules[place] for place in near if place in modules))
            for node in ast.walk(files[file]):
                kinds = ast.Module | ast.ClassDef | ast.FunctionDef
                text = (ast.get_docstring(node) or "") if isinstance(node, kinds) else ""
                for word in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)", text):
                    unknown = word in ours and re.search(r"[A-Z_]", word) and word not in known
                    if unknown or (word.startswith("accelerando.") and not is_there(word, modules)):
                        strange.append(f"{name}: {word}")
    assert strange == []
