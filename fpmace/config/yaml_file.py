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
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            values = {} if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(_one_line(error), where=path) from error
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
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not a YAML value ({_one_line(error)})") from error


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


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    place = f"line {mark.line + 1}: " if mark is not None else ""
    return f"{place}{' '.join(str(problem).split())}"
