"""From a config with a `study` to a checked `Plan`, or to one `ConfigError`, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ..config.arguments import check_arguments, check_inside, check_path, check_value
from ..config.errors import Source, show
from ..config.loading import check_numbers, resolving
from ..config.lookup import Namespace, Part
from ..config.recipe import refuse_unknown
from ..config.sections import SECTIONS, entries_of
from .core import Base, Study, Train

if TYPE_CHECKING:
    from ..executors import Executor
    from ..run.results import Result

STUDIES = Namespace(modules=("accelerando.recipes.studies",), base="accelerando.recipes.studies.core:Study")
EXECUTORS = Namespace(modules=("accelerando.recipes.executors",), base="accelerando.recipes.executors:Executor")
OWN_KEYS = ("study", "executor")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked study: what it is, its base run, and what trains it; without an executor it is trained in turn."""

    study: Study
    base: Base
    executor: Executor | None
    checked: set[str] = field(default_factory=set)  # the names of those whose folders were looked at

    def nodes(self, done: Mapping[str, Result]) -> list[Train]:
        """All trainings, as far as what is done tells; those that are known are checked, and their folders too."""
        nodes = list(self.study.nodes(self.base, done))
        names = [node.name for node in nodes]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise self.base.source.error("", f"several of its runs would be called {twice}; choose other names")
        for node in nodes:
            if node.changes is not None and not node.problem and node.name not in self.checked:
                self.checked.add(node.name)
                self.base.refuse_another_run(node, as_long=not self.study.may_be_prolonged)
        return nodes


def plan(config: Mapping[str, Any] | DictConfig, source: Source | None = None) -> Plan:
    """Checks the study, the base run and every training that is known by now; nothing is trained."""
    source, config = source or Source(), cast(DictConfig, OmegaConf.create(config))  # type: ignore[arg-type]
    refuse_unknown(source, config, OWN_KEYS)
    if config.get("study") is None:
        raise source.error("study", "missing; launch a single run with recipes/train.py")
    with resolving(source):
        resolved: Any = OmegaConf.to_container(config)
        name = config.get("run_name")
        folder = config.get("folder") or "runs"
    if name is None:
        raise source.error("run_name", "missing; expected the name of the study's folder")
    _check_names(source, resolved)
    with source.blame(""):
        check_value("run_name", str, name)
        check_inside("run_name", name, "the name of a folder inside `folder`")
        check_value("folder", str, folder)
        check_path("folder", folder, "a folder of this machine")
    if config.get("seed") is not None:
        hint = "give seeds in its block, such as [17], and seed: null where a file that is extended has one"
        raise source.error("seed", f"a study has several; {hint}")
    kind, key, given = _found(config, source, "study", STUDIES)
    own = source.inside(key, {*_fields(kind), *given})
    check_numbers(own, given)
    with own.blame("", TypeError, ValueError):
        study = kind(**check_arguments(kind, given))
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise own.error("seeds", f"{study.seeds} given; expected different whole numbers")
    executor = _executor(config, source)
    rest = OmegaConf.masked_copy(config, [str(key) for key in config if key not in {*OWN_KEYS, "seed"}])
    rest.run_name = name  # which may have referred to the study's block
    base = Base(rest, own, resolved, Path(folder, name), name)
    if any((base.folder / inside).exists() for inside in ("results.json", "checkpoints")):
        raise source.error("run_name", f"{base.folder} is the folder of a training run; choose another one")
    study.prepare(base)
    found = Plan(study=study, base=base, executor=executor)
    found.nodes({})
    return found


def _check_names(source: Source, config: Mapping[str, Any]) -> None:
    """Raises an error at a name of the base run that is unknown, even where every training replaces it by another."""
    for section, names in SECTIONS.items():
        for name in entries_of(source, section, config.get(section)):
            with source.blame(f"{section}.{name}", LookupError):
                names.find(name)


def _found(config: DictConfig, source: Source, section: str, names: Namespace) -> tuple[Any, str, dict[str, Any]]:
    """The class that is named under a section, where that stands, and the arguments there."""
    with resolving(source):
        block = config[section]
        block = OmegaConf.create({block: {}}) if isinstance(block, str) else block
        if not isinstance(block, DictConfig) or len(block) != 1:
            raise source.error(section, f"{show(_plain(block))} given; expected one name with its arguments")
        name = str(next(iter(block)))
        inner = block[next(iter(block))]
    key = f"{section}.{name}"
    with source.blame(key, LookupError):
        kind = names.find(name)
    if not isinstance(inner, DictConfig | None):
        raise source.error(key, f"{show(_plain(inner))} given; expected its arguments as a mapping")
    with resolving(source):
        given = {str(field): _value(inner[field], _holds_changes(kind, str(field))) for field in inner} if inner else {}
    return kind, key, given


def _fields(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint for name, hint in hints.items() if "ClassVar" not in str(hint)}


def _holds_changes(kind: type, name: str) -> bool:
    return "'changes'" in str(_fields(kind).get(name, ""))


def _value(node: Any, of_changes: bool) -> Any:
    """Plain data. What changes refer to by an interpolation may be known to the changed config only."""
    if not (of_changes and isinstance(node, DictConfig)):
        return _plain(node)
    return {str(name): _plain(change, resolve=False) for name, change in ((name, node[name]) for name in node)}


def _plain(node: Any, resolve: bool = True) -> Any:
    return OmegaConf.to_container(node, resolve=resolve) if OmegaConf.is_config(node) else node


def _executor(config: DictConfig, source: Source) -> Executor | None:
    if config.get("executor") is None:
        return None
    from composer.utils import dist

    kind, key, given = _found(config, source, "executor", EXECUTORS)
    with source.blame(key):
        arguments = check_arguments(kind, given)
    if (ranks := dist.get_world_size()) > 1:
        raise source.error(key, f"{ranks} ranks given; launch it with composer -n 1, as its runs start their own")
    return Part(source=source, key=key, target=kind, arguments=arguments).build()
