"""YAML in which nothing surprises: what some readers take for one thing and some for another is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import yaml

from .errors import ConfigError

# What YAML 1.1, which is read here, and YAML 1.2 read alike. 1.1 knows more: 064 is 52, 1:30 is 90, on is true.
ALIKE = {
    "int": re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+"),
    "float": re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", re.IGNORECASE),
    "bool": re.compile(r"true|false|True|False|TRUE|FALSE"),
}
OTHER_NUMBERS = re.compile(r"[-+]?0[0-9]+|0o[0-7]+")
KEYS = ("str", "int", "merge")


class _Loader(yaml.SafeLoader):
    """Reads what OmegaConf reads: dates are text, and an exponent makes a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def refuse_surprises(text: str, file: str, key: str = "") -> None:
    """Raises a ConfigError at the first surprise, and YAMLError or RecursionError for what cannot be read.

    Args:
        text: YAML, that stands in `file` at `key`.
    """
    for place, node, problem in _surprises(yaml.compose(text, Loader=_Loader), key, set()):
        given = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
        line = f" in line {node.start_mark.line + 1}" if "\n" in text else ""
        raise ConfigError(file, place, f"{given} given{line}{problem}")


def _surprises(node: yaml.Node | None, place: str, seen: set[int]) -> Iterator[tuple[str, yaml.Node, str]]:
    if node is None or id(node) in seen:  # the latter, of an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        if problem := _problem(node):
            yield place, node, problem
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _surprises(item, f"{place}.{i}".lstrip("."), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                yield place, name, " as a key; expected text"
            inside = f"{place}.{name.value}".lstrip(".")
            if _kind(name) not in KEYS or _problem(name):
                yield inside, name, " as a key, which YAML does not take for text; put it in quotes"
            if name.value in lines:
                yield inside, name, f", and in line {lines[name.value]} already; expected once"
            lines[name.value] = name.start_mark.line + 1
            yield from _surprises(value, inside, seen)


def _kind(node: yaml.Node) -> str:
    return node.tag.rpartition(":")[2]


def _problem(node: yaml.ScalarNode) -> str:
    kind, value = _kind(node), node.value
    if kind == "str" and node.style is None and OTHER_NUMBERS.fullmatch(value):
        return ", which some read as a number and YAML 1.1 as text; write it without the 0, or in quotes"
    if kind not in ALIKE:
        return ""
    if ALIKE[kind].fullmatch(value):
        finite = kind != "float" or math.isfinite(float(re.sub(r"\.(?=inf|nan)", "", value.lower())))
        return "" if finite else "; expected a finite number"
    loader = _Loader("")
    try:
        read = str(loader.construct_object(node)).lower()
    finally:
        loader.dispose()
    return f", which YAML 1.1 reads as {read} and others do not; write that, or put it in quotes if it is text"
