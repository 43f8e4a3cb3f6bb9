"""All that a recipe may name: its keys, its sections, and the arguments of what stands under each of their names."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .keys import NOTHING, UNTOLD, Key, in_words, keys_of, spelled, takes_others
from .lookup import Namespace, nearest
from .recipe import RENAMED
from .sections import SECTIONS, supplied_to
from .start import Start

FOR_DATA = ("train_data", "eval_data", "validation_data")
MEANINGS = {
    "model": "the model; one name with its arguments",
    "train_data": "what it is trained on; one name with its arguments",
    "eval_data": "what it is evaluated on, of the same kinds as `train_data`; null for none",
    "validation_data": "what is chosen on, such as the best of several runs; it holds nothing of the others",
    "optimizer": "the optimizer; one name with its arguments, and `groups` of parameters",
    "scheduler": "the learning rate over the run; null keeps it constant",
    "algorithms": "techniques by name; false leaves one out",
    "callbacks": "Composer's callbacks by name; false leaves one out",
    "loggers": "where numbers are logged, by name; false leaves one out",
}


GROUPS = "other options by patterns of parameters' names, such as {'*bias': {weight_decay: 0}}; false freezes these"
NETWORKS = (
    "a finished run's folder, a Hugging Face folder or name, {checkpoint: FILE, model: {...}}; or a list of these"
)


@dataclass(kw_only=True)
class OwnKeys:
    """What a run has beside the Trainer's keys, and those of these that it fills in otherwise than the Trainer does.

    Args:
        run_name: of the run's folder inside `folder`; it may hold a /.
        max_duration: how long to train, such as 10ep or 500ba; a number counts epochs.
        global_batch_size: examples in a batch, over all ranks.
        folder: that of all runs.
        eval_batch_size: examples in a batch of the evaluation, over all ranks; by default as in training.
        train_metrics_interval: of which batches the training's metrics are measured and logged, beside the first
            and the last one of each epoch; the loss is logged at every batch.
        seed: of all that is drawn at random; the studies have `seeds` in its place, and their files may say null.
        weights_seed: of the initial weights; by default `seed`.
        data_seed: of the data's order and augmentation; by default `seed`.
        start: a moment of another run, whose weights this one begins with; see below.
        variables: values of your own, to which others refer as ${variables.NAME}.
        extends: another YAML, beside this one or shipped, over which this one is merged.
        autoresume: go on from the last checkpoint in the run's folder.
        save_num_checkpoints_to_keep: how many checkpoints stay; -1 for all.
        save_overwrite: whether a checkpoint may replace one of the same name.
        progress_bar: show Composer's progress bar; by default where the output is a terminal.
        load_progress_bar: show one of a checkpoint that is fetched; by default where the output is a terminal.
    """

    run_name: str
    max_duration: str | int
    global_batch_size: int
    folder: str = "runs"
    eval_batch_size: int | None = None
    train_metrics_interval: str = "10ba"
    seed: int | None = 17
    weights_seed: int | None = None
    data_seed: int | None = None
    start: dict[str, Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    extends: str | None = None
    autoresume: bool = True
    save_num_checkpoints_to_keep: int = 1
    save_overwrite: bool = True
    progress_bar: bool | None = None
    load_progress_bar: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What stands under a name of a section: its summary and its keys; an `open` one takes others besides.

    `spellings` is a pattern of all ways to write the name, in which underscores may stand where its words begin.
    """

    name: str
    spellings: str
    summary: str
    keys: list[Key]
    open: bool = False


def things(section: str, names: Namespace) -> list[Thing]:
    """All of a section, by name."""
    found = names.things().items()
    # A study is called as its file is.
    named = {target.__module__.rpartition(".")[2] if section == "study" else name: target for name, target in found}
    return [thing(section, name, target) for name, target in sorted(named.items())]


def thing(section: str, name: str, target: Any) -> Thing:
    """What a section has under a name; keys that the recipe fills in are left out."""
    from accelerando.algorithms.composer.for_recipes import Folder, Supply

    supplied = supplied_to(target) if section == "algorithms" else {}
    given = (Supply.NETWORKS, Supply.FILE, Supply.FOLDERS)
    made = [key for key, supply in supplied.items() if not isinstance(supply, Folder) and supply not in given]
    keys = keys_of(target, supplied=section == "optimizer", but=made)
    keys = [_as_references(key) if supplied.get(key.name) is Supply.NETWORKS else key for key in keys]
    if section == "optimizer":
        keys.append(Key(name="groups", schema={"type": "object"}, default={}, required=False, meaning=GROUPS))
    told = sys.modules[target.__module__] if section == "study" else target
    spellings = re.sub(r"(?<=.)(?=[A-Z])|_", "_?", target.__name__).lower()
    return Thing(name=name, spellings=spellings, summary=summary(told), keys=keys, open=takes_others(target))


def _as_references(key: Key) -> Key:
    one = [{"type": "string"}, {"type": "object"}]
    schema = {"anyOf": [*one, {"type": "array", "items": {"anyOf": one}}]}
    return Key(name=key.name, schema=schema, default=UNTOLD, required=key.required, meaning=NETWORKS)


def summary(target: Any) -> str:
    """The first paragraph of the docstring, of others than ours its first sentence."""
    text = inspect.cleandoc(target.__doc__ or "").split("\n\n")[0]
    text = re.sub(r":\w+:`[~.]*([^`<]*?)(?: *<[^`]*>)?`", r"`\1`", " ".join(text.split())).replace("``", "`")
    text = re.sub(r"`([^`]*?) *<[^`]*>`_+", r"\1", text)
    ours = getattr(target, "__module__", target.__name__).startswith("accelerando.")
    return text if ours else re.split(r"(?<=\.) (?=[A-Z])", text)[0]


def recipe_keys() -> list[Key]:
    """Those at the top of a recipe: its own, its sections, and the Trainer's, in this order."""
    from composer import Trainer

    own = keys_of(OwnKeys)
    sections = [
        Key(name=name, schema={"section": name}, default=UNTOLD, required=False, meaning=meaning)
        for name, meaning in MEANINGS.items()
    ]
    known = {key.name for key in (*own, *sections)} | RENAMED.keys()
    trainers = [key for key in keys_of(Trainer, supplied=1, but=known) if key.schema not in (NOTHING, {"type": "null"})]
    return [*own, *sections, *trainers]


def start_keys() -> list[Key]:
    """Those of `start`."""
    return keys_of(Start)


def explain(name: str, others: Mapping[str, Namespace]) -> str:
    """What a key, a section or a thing in one of them is, such as `precision`, `algorithms`, `mix_up` or
    `algorithms.mix_up`; LookupError where there is none of that name. `others` are sections beside a recipe's.
    """
    sections = {**SECTIONS, **others}
    place, _, inner = name.rpartition(".")
    if place == "" and inner in sections:
        lines = [f"  {one.name:32} {one.summary}" for one in things(inner, sections[inner])]
        return "\n".join([f"{inner}: one of these names, or package.module:NAME", *lines])
    if place == "" and (key := next((key for key in recipe_keys() if key.name == inner), None)):
        return "\n".join(_lines([key, *(start_keys() if inner == "start" else [])]))
    known: list[str] = []
    for section in (place,) if place in sections else [key for key in sections if key not in FOR_DATA[1:]]:
        try:
            found = sections[section].find(inner)
        except LookupError:
            known += sections[section].things()
            continue
        one = thing(section, inner, found)
        text = inspect.cleandoc(found.__doc__ or "").split("\nArgs:")[0].split("\nAttributes:")[0].rstrip()
        return "\n".join([f"{section}: {{{inner}: {{...}}}}\n", text, "", *_lines(one.keys)])
    known += [*sections, *(key.name for key in recipe_keys())]
    raise LookupError(f"{name}: no key, section or name of one{nearest(name, known)}")


def _lines(keys: list[Key]) -> list[str]:
    lines = []
    for key in keys:
        kind = "" if "section" in key.schema else in_words(key.schema).replace("`", "")
        lines.append(f"  {key.name}: {kind}{default_of(key, ', by default ', ', required')}")
        lines += [f"      {key.meaning}"] if key.meaning else []
    return lines or ["  it has no keys"]


def default_of(key: Key, before: str = "", required: str = "required") -> str:
    """The default as YAML spells it, if it does."""
    if key.required:
        return required
    return "" if key.default is UNTOLD else f"{before}{spelled(key.default)}"
