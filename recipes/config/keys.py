"""The keys of a class or function: each argument's type as a JSON schema, its default, and its meaning.

A meaning stands under `Args:` in the docstring of the class, of its constructor or of a base, or of what these say to
see; or in the comment behind a data class's field; or it is the docstring's sentences that name the argument.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict, PydanticUserError, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticOmit

from accelerando import algorithms

from .arguments import callees, hints_of, is_time, names_times, open_to, parameters
from .lookup import Part

TIME = {"format": "time", "type": "string"}
HEADINGS = ("Args", "Arguments", "Attributes", "Parameters", "Keyword Args")
NOUNS = {"null": "null", "boolean": "true or false", "integer": "whole number", "number": "number", "string": "text"}


@dataclass(frozen=True, eq=False)
class Holds:
    """In an annotation: what a mapping holds.

    `what` is `changes` of the base run, or the arguments of a thing, such as `algorithms.lottery_ticket`; with
    `by_name` there are several, each by a name of the user's. Each may have the keys `also`, whose types these are;
    without `what` it has no others.
    """

    what: str
    by_name: bool = False
    also: Mapping[str, Any] = field(default_factory=dict)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        own = {name: schema_of(name, kind) for name, kind in self.also.items()}
        return {"type": "object", "holds": self.what, "by_name": self.by_name, "also": own}


@dataclass(frozen=True, kw_only=True)
class Key:
    """An argument as a YAML gives it; `default` is what YAML cannot spell if it is `UNTOLD`."""

    name: str
    schema: dict[str, Any]
    default: Any
    required: bool
    meaning: str


UNTOLD = object()
NOTHING = {"not": {}}  # YAML spells no value of it


def keys_of(target: Any, supplied: int = 0, but: Collection[str] = ()) -> list[Key]:
    """Those that a YAML may give to a class or function; what a caller supplies, first or by name, is left out."""
    from torch.optim.optimizer import required

    hints, times, told = hints_of(target, extras=True), names_times(target), meanings(target)
    keys = []
    for parameter in parameters(target)[supplied:]:
        name, default = parameter.name, _made(target, parameter)
        if name not in but:
            needed = default is parameter.empty or default is required
            schema = schema_of(name, hints.get(name, Any), times)
            plain = UNTOLD if needed else _plain(default)
            keys.append(Key(name=name, schema=schema, default=plain, required=needed, meaning=told.get(name, "")))
    return keys


def takes_others(target: Any) -> bool:
    """Whether its docstring, and no signature, says which other arguments it takes."""
    return open_to(target) != []


def schema_of(name: str, annotation: Any, times: bool = False) -> dict[str, Any]:
    """The JSON schema of what YAML can give for an annotation; other things, such as modules, are left out of it."""
    if annotation is Part:
        return {"anyOf": [{"type": "string"}, {"type": "object"}]}  # a name, with its arguments or without
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        schema = adapter.json_schema(schema_generator=_OfYaml)
    except (PydanticUserError, TypeError):
        return {}
    except PydanticOmit:
        return NOTHING
    return _simple(schema, schema.pop("$defs", {}), is_time(name, annotation, times))


class _OfYaml(GenerateJsonSchema):
    """Leaves out of a union what YAML cannot spell."""

    ignored_warning_kinds: ClassVar = {"skipped-choice", "non-serializable-default"}  # type: ignore[misc]

    def _omit(self: Any, *_: Any) -> Any:
        raise PydanticOmit

    omit: Any = _omit  # of whichever schema
    is_instance_schema = is_subclass_schema = callable_schema = dataclass_schema = omit
    handle_invalid_for_json_schema = omit


def _simple(schema: Any, defined: Mapping[str, Any], timed: bool) -> Any:
    """Without titles, in draft 7's words, and each choice of a union once."""
    if isinstance(schema, list):
        return [_simple(one, defined, timed) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _simple(defined[schema["$ref"].rpartition("/")[2]], defined, timed)
    simple = {
        {"prefixItems": "items"}.get(key, key): _simple(value, defined, timed)
        for key, value in schema.items()
        if key not in ("title", "default", "description", "propertyNames")
        and (key, value) != ("additionalProperties", True)
    }
    if timed and simple == {"type": "string"}:
        return TIME
    if simple.get("items") == NOTHING:
        return NOTHING
    return _union(simple["anyOf"]) if "anyOf" in simple else simple


def _union(choices: list[dict[str, Any]]) -> dict[str, Any]:
    flat = [inner for choice in choices for inner in choice.get("anyOf", [choice]) if inner != NOTHING]
    unique = [choice for place, choice in enumerate(flat) if choice not in flat[:place]]
    if any("enum" in choice for choice in unique):  # a text is held to be one of these
        unique = [choice for choice in unique if choice != {"type": "string"}]
    if {"type": "number"} in unique:
        unique = [choice for choice in unique if choice != {"type": "integer"}]
    if not unique or {} in unique:
        return {} if unique else NOTHING
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def in_words(schema: Mapping[str, Any], plural: bool = False) -> str:
    """The type for people."""
    if schema == NOTHING:
        return "not from a YAML"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(in_words(choice, plural) for choice in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{spelled(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema == TIME:
        return "time strings" if plural else "time string"
    if (holds := schema.get("holds")) is not None:
        what = "changes of the run" if holds == "changes" else f"arguments of `{holds.rpartition('.')[2]}`"
        what = what if holds else "mapping"
        return f"{what}, by name" if schema["by_name"] else what
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items", {})
        if isinstance(items, list):
            return f"list of {' and '.join(map(in_words, items))}"
        return f"list of {in_words(items, plural=True)}" if items else "list"
    if kind == "object":
        return "mappings" if plural else "mapping"
    noun = NOUNS.get(str(kind), "anything")
    return f"{noun}s" if plural and kind in ("integer", "number", "string") else noun


def spelled(value: Any) -> str:
    """As YAML spells it."""
    if isinstance(value, list):
        return f"[{', '.join(map(spelled, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {spelled(inner)}' for name, inner in value.items())}}}"
    return value or "''" if isinstance(value, str) else json.dumps(value)


def _made(target: Any, parameter: inspect.Parameter) -> Any:
    """The default, of a data class's field the one that is made for each."""
    for own in dataclasses.fields(target) if dataclasses.is_dataclass(target) else ():
        if own.name == parameter.name and own.default_factory is not dataclasses.MISSING:
            return own.default_factory()
    return parameter.default


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, list | tuple | set | frozenset):
        return UNTOLD if UNTOLD in (inner := [_plain(one) for one in value]) else inner
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if hasattr(value, "to_timestring"):
        return value.to_timestring()
    return value if value is None or isinstance(value, bool | int | float | str) else UNTOLD


def meanings(target: Any) -> dict[str, str]:
    """What is said of each argument, by its name; of the classes of others than ours the first sentence."""
    ours = str(getattr(target, "__module__", "")).partition(".")[0] == "accelerando"
    found: dict[str, str] = {}
    classes = (
        [kind for kind in reversed(target.__mro__) if kind is not object]
        if inspect.isclass(target)
        else callees(target)
    )
    for callee in classes:
        texts = [inspect.cleandoc(own.__doc__ or "") for own in (callee, vars(callee).get("__init__"))]
        for text in texts:
            found |= _named_in(text, {parameter.name for parameter in parameters(target)} - found.keys())
        found |= _comments(callee)
        for text in texts:
            found |= _under_headings(text)
    whole = "\n".join(inspect.cleandoc(own) for callee in callees(target) if (own := callee.__doc__))
    told = {name: _one_line(text, whole=ours) for name, text in found.items()}
    return told | (_told_elsewhere(target, told, whole) if ours else {})


def _told_elsewhere(target: Any, told: Mapping[str, str], text: str) -> dict[str, str]:
    """What others, which the docstring says to see, say of an argument of which it says no more."""
    found: dict[str, str] = {}
    for parameter in parameters(target):
        if not (own := told.get(name := parameter.name, "")) or "see `" in own:
            for other in re.findall(r"see `(\w+)`", own or text):
                thing = getattr(sys.modules[target.__module__], other, None) or getattr(algorithms, other, None)
                if thing is not None and thing is not target and (there := meanings(thing).get(name)):
                    found[name] = there
    return found


def _under_headings(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for section in re.findall(rf"^(?:{'|'.join(HEADINGS)}):[ \t]*\n((?:[ \t]+.*\n|\n)+)", f"{text}\n", re.M):
        lines = inspect.cleandoc(f"\n{section}")
        for names, meaning in re.findall(
            r"^(\w+(?:, \w+)*)(?: ?\(.*?\))? ?:\s((?:.*\n?)(?:[ \t]+.*\n?|\n)*)", lines, re.M
        ):
            # What comes after an empty line is a longer story; what is said of several is said of these in turn.
            together = f"`{names.replace(', ', '`, `')}`: " if ", " in names else ""
            found |= dict.fromkeys(names.split(", "), together + meaning.strip().split("\n\n")[0])
    return found


def _comments(callee: Any) -> dict[str, str]:
    if not dataclasses.is_dataclass(callee):
        return {}
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(callee), re.M))  # type: ignore[arg-type]


def _named_in(text: str, names: Collection[str]) -> dict[str, str]:
    prose = re.split(rf"\n(?:{'|'.join((*HEADINGS, 'Raises', 'Returns'))}):", text)[0]
    sentences = re.split(r"(?<=[.:;]) +(?=[A-Z`])", " ".join(prose.split()))
    told = {name: " ".join(s for s in sentences if f"`{name}`" in s) for name in names}
    return {name: words for name, words in told.items() if words}


def _one_line(text: str, whole: bool) -> str:
    """Without reStructuredText's roles, and without what others say of defaults."""
    text = re.sub(r":\w+:`[~.]*([^`<]*?)(?: *<[^`]*>)?`", r"`\1`", " ".join(text.split())).replace("``", "`")
    text = re.sub(r"`([^`]*?) <http[^>]*>`_+", r"\1", text).replace("`_", "`")
    if whole:
        return text
    text = re.sub(r" *\(default:.*?\)+|\.? *\(?\bDefaults?(?: to)?:? *`.*?`\)?\.?$", "", text)
    return re.split(r"(?<!i\.e\.)(?<!e\.g\.)(?<=\.) (?=[A-Z])", text)[0].rstrip(".")
