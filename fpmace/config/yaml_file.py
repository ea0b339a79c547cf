"""YAML as configuration files and flags use it, with the line that each value stands on.

Differs from YAML 1.1 where that surprises: ``1e-3`` is a number, ``no`` and ``on`` are text
(options that are true or false accept them), dates are text, a key given twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fpmace.annotations import Options, fits, is_text
from fpmace.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe loader with fewer surprises; see the module's text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        seen: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                line = key_node.start_mark.line + 1
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"'{key}' is given twice, first on line {seen[key]}",
                        key_node.start_mark,
                    )
                seen[key] = line
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


@dataclass(frozen=True)
class YamlFile:
    """Content of a file, and the line of each key by its dotted path."""

    path: str
    values: Options
    lines: dict[str, int]

    def origin(self, where: str) -> str:
        """``file:line`` of the deepest known part of the dotted path ``where``."""
        parts = where.split(".")
        while parts and ".".join(parts) not in self.lines:
            parts.pop()
        return f"{self.path}:{self.lines['.'.join(parts)]}" if parts else self.path


def read_yaml(path: str) -> YamlFile:
    """Read a configuration file.

    Raises:
        ConfigError: if it is missing, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"cannot read the configuration file ({reason})", where=path) from error
    try:
        node, values = _load(text)
    except _FAULTS as error:
        raise ConfigError(_one_line(error), where=path) from error
    values = {} if node is None else values
    if not isinstance(values, dict):
        raise ConfigError("expected options as 'name: value' lines", where=path)
    lines: dict[str, int] = {}
    _collect_lines(node, "", lines)
    return YamlFile(path, {str(key): value for key, value in values.items()}, lines)


def parse_value(text: str) -> Any:
    """Read one value as YAML; Python's quotes, lists and mappings are YAML too.

    Raises:
        ConfigError: if it is not YAML.
    """
    try:
        return _load(text)[1]
    except _FAULTS as error:
        shown = repr(text if len(text) < 80 else text[:76] + " ...")
        raise ConfigError(f"{shown} is not a YAML value ({_one_line(error)})") from error


_FAULTS = (yaml.YAMLError, ValueError, RecursionError)
_MOST = 100_000


def _load(text: str) -> tuple[yaml.Node | None, Any]:
    """Nodes and values of a text, with a limit on what aliases may repeat."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        _size(node, {})
        return node, loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node, repeated ones counted each time.

    Raises:
        ValueError: for a node within itself, or more values than any configuration has.
    """
    if id(node) in known:
        if known[id(node)] == 0:
            raise ValueError("an alias stands within what it names")
        return known[id(node)]
    known[id(node)] = 0
    children = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [item for pair in children for item in pair]
    total = 1 + sum(_size(item, known) for item in children)
    if total > _MOST:
        raise ValueError(f"its aliases stand for more than {_MOST} values")
    known[id(node)] = total
    return total


def is_file(text: str) -> bool:
    """Whether a text names a file; what is too long for a name does not."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def read_text(value: object, annotation: object) -> Any:
    """Read text that stands for a list, a mapping or a number; other values stay as they are.

    All flags are text; in YAML, a value may be put in quotes as for a flag.

    Raises:
        ConfigError: if it is not YAML.
    """
    if not isinstance(value, str) or is_text(annotation):
        return value
    parsed = parse_value(value)
    return parsed if fits(parsed, annotation) or not fits(value, annotation) else value


def _collect_lines(node: yaml.Node | None, prefix: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            lines[path] = key.start_mark.line + 1
            _collect_lines(value, f"{path}.", lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{prefix}{index}"] = value.start_mark.line + 1
            _collect_lines(value, f"{prefix}{index}.", lines)


def _one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    place = f"line {mark.line + 1}: " if mark is not None else ""
    return f"{place}{' '.join(str(problem).split())}"
