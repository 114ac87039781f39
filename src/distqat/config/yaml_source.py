"""A YAML file as values plus the line of each, so that an error can say where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from distqat.errors import ConfigError

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]

MAX_DEPTH = 32
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "map", "seq")}


def dotted(path: KeyPath) -> str:
    """`model_pipeline.pipeline.0.width`: a path as messages write it."""
    return ".".join(map(str, path))


class CoreLoader(yaml.SafeLoader):
    """Scalars as YAML 1.2's core schema reads them: `4e-4` is a float, `no` a string, `010` ten."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (yaml's own)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
CoreLoader.add_constructor("tag:yaml.org,2002:int", lambda _loader, node: int(str(node.value)))


@dataclass(frozen=True)
class YamlSource:
    """The values of one file, and the line on which each path stands."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """Line of `path`, or of the nearest section around it; 0 where the file has neither."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def place(self, path: KeyPath) -> str:
        """`file:line` of `path`."""
        line = self.line(path)
        return f"{self.name}:{line}" if line else self.name


def parse(text: str, name: str) -> YamlSource:
    """Read a configuration file's text. Raises ConfigError naming file and line."""
    values, lines = _load(text, name)
    if values is None:
        return YamlSource(name)
    if not isinstance(values, dict):
        raise ConfigError(f"{name}:{lines[()]}: expected `key: value` lines at the top level")
    return YamlSource(name, values, lines)


def parse_value(text: str) -> Any:
    """One value of the command line, written as YAML. Raises ConfigError."""
    try:
        return _load(text, "line")[0]
    except ConfigError as error:
        raise ConfigError(f"{text!r} is not YAML: {error}") from None


def _load(text: str, name: str) -> tuple[Any, Lines]:
    lines: Lines = {}
    try:
        loader = CoreLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None, lines
        _refuse_duplicates(root, (), name, set())
        return _construct(loader, root, (), lines, name), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{place}: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from None


def _construct(loader: CoreLoader, node: yaml.Node, path: KeyPath, lines: Lines, name: str) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if len(path) > MAX_DEPTH:  # also what an alias to its own parent ends in
        raise ConfigError(f"{name}:{line}: nested more than {MAX_DEPTH} deep")
    if node.tag not in TAGS:
        raise ConfigError(f"{name}:{line}: tag {node.tag!r} means nothing here")
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # `<<: *base`; a later key replaces a merged one
        mapping = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            below = (*path, key)
            lines[below] = key_node.start_mark.line + 1
            mapping[key] = _construct(loader, value_node, below, lines, name)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        items = enumerate(node.value)
        return [_construct(loader, item, (*path, index), lines, name) for index, item in items]
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError):  # `!!int many`, a number of ten thousand digits
        kind = node.tag.rpartition(":")[2]
        raise ConfigError(f"{name}:{line}: {str(node.value)[:40]!r} is not a valid {kind}") from None


def _refuse_duplicates(node: yaml.Node, path: KeyPath, name: str, seen: set[int]) -> None:
    """Before any merge, since a merged key may be overridden but none may stand twice in one mapping."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_duplicates(item, (*path, index), name, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{name}:{line}: a key must be a plain word")
        key = str(key_node.value)
        if key in first:
            raise ConfigError(
                f"{name}:{line}: {dotted((*path, key))}: given twice, first on line {first[key]}"
            )
        first[key] = line
        _refuse_duplicates(value_node, (*path, key), name, seen)
