"""Fit plain values (from YAML, JSON or the command line) to type annotations.

Used for the options of registered parts and for the training configuration alike, so that both
accept the same spellings and give the same messages.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from typing import Annotated, Any


class Mismatch(ValueError):
    """The value does not fit the annotation."""


_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}


def fits(value: Any, annotation: Any) -> bool:
    """Whether :func:`convert` accepts the value."""
    try:
        convert(value, annotation)
    except Mismatch:
        return False
    return True


def convert(value: Any, annotation: Any) -> Any:
    """Return ``value`` in the annotated type: integers become floats, lists become tuples, ...

    Annotations that are not understood accept anything.

    Raises:
        Mismatch: if the value does not fit.
    """
    origin = typing.get_origin(annotation)
    if annotation is Any or isinstance(annotation, (str, typing.TypeVar)):
        return value
    if origin is Annotated:
        return convert(value, typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, typing.get_args(annotation))
    if origin is typing.Literal:
        return _convert_literal(value, typing.get_args(annotation))
    if annotation in (None, types.NoneType):
        if value is None or value == "None":
            return None
        raise Mismatch
    if annotation in (bool, int, float, str):
        return _convert_scalar(value, annotation)
    return _convert_container(value, origin or annotation, typing.get_args(annotation))


def _convert_literal(value: Any, allowed: tuple[Any, ...]) -> Any:
    text = "None" if value is None else value
    for item in allowed:
        if type(item) is type(text) and item == text:
            return item
    raise Mismatch


def _convert_union(value: Any, members: tuple[Any, ...]) -> Any:
    ordered = sorted(members, key=lambda item: item not in (types.NoneType, type(value)))
    for member in ordered:
        try:
            return convert(value, member)
        except Mismatch:
            continue
    raise Mismatch


def _convert_scalar(value: Any, target: type) -> Any:
    if target is bool:
        if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        if isinstance(value, bool):
            return value
        raise Mismatch
    if isinstance(value, bool):
        raise Mismatch
    if target is float and isinstance(value, (int, float)):
        return float(value)
    if target is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, target):
        return value
    raise Mismatch


def _convert_container(value: Any, base: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(base, type):
        return value
    if issubclass(base, collections.abc.Mapping):
        if not isinstance(value, collections.abc.Mapping):
            raise Mismatch
        if len(arguments) != 2:
            return dict(value)
        key_type, value_type = arguments
        return {convert(key, key_type): convert(item, value_type) for key, item in value.items()}
    if issubclass(base, collections.abc.Sequence):
        if not isinstance(value, (list, tuple)):
            raise Mismatch
        if base is tuple and arguments and arguments[-1] is not Ellipsis:
            if len(arguments) != len(value):
                raise Mismatch
            return tuple(convert(item, kind) for item, kind in zip(value, arguments, strict=True))
        kind = arguments[0] if arguments else Any
        items = (convert(item, kind) for item in value)
        return list(items) if issubclass(base, list) else tuple(items)
    if isinstance(value, base):
        return value
    raise Mismatch


def plain(value: Any) -> Any:
    """Return ``value`` as YAML and JSON know it: tuples as lists, dataclasses as mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, collections.abc.Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def mismatch_text(value: Any, annotation: Any) -> str:
    """Say what was expected and given, with a long value cut short."""
    text = repr(value)
    if len(text) > 80:
        text = f"{text[:76]} ..."
    hint = ""
    if isinstance(value, (int, float)) and fits("", annotation):
        hint = f"; put it in quotes: '{value}'"
    return f"expects {type_name(annotation)}, got {text}{hint}"


_PLAIN_NAMES = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    types.NoneType: "None",
    Any: "anything",
}


def type_name(annotation: Any) -> str:
    """Return the annotation in a user's words, for example ``list of numbers or None``."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if annotation in _PLAIN_NAMES:
        return _PLAIN_NAMES[annotation]
    if origin in (typing.Union, types.UnionType):
        found: list[str] = []
        for item in arguments:
            name = type_name(item)
            if name not in found:
                found.append(name)
        return " or ".join(found)
    if origin is typing.Literal:
        return " or ".join(repr(item) for item in arguments)
    base = origin or annotation
    if isinstance(base, type):
        if issubclass(base, collections.abc.Mapping):
            if len(arguments) == 2 and Any not in arguments:
                return f"mapping from {type_name(arguments[0])} to {type_name(arguments[1])}"
            return "mapping"
        if issubclass(base, collections.abc.Sequence):
            if base is tuple and arguments and arguments[-1] is not Ellipsis:
                return f"list of {len(arguments)}: {', '.join(map(type_name, arguments))}"
            return f"list of {_plural(type_name(arguments[0]))}" if arguments else "list"
        return base.__name__
    return str(annotation)


def _plural(name: str) -> str:
    return {"text": "texts", "number": "numbers", "whole number": "whole numbers"}.get(name, name)
