"""Fit plain values (from YAML, JSON or the command line) to type annotations.

Every option is declared once, as an annotation where it is used::

    r_max: Annotated[float, Bounds(above=0), Unit("Angstrom"), Doc("cutoff radius")] = 5.0

Constructors, YAML, flags, model files, the reference page and messages all read that. The options
of registered parts, the training configuration and settings in dataclasses go through the same
:func:`check`, so that all accept the same spellings and complain in the same words.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fpmace.errors import ConfigError, suggestion

T = TypeVar("T")
Options = dict[str, Any]
"""Values of options by name."""
Values = dict[str, Any]
"""Values of several types by name, whose readers know the types: a record, a saved state."""


@dataclass(frozen=True)
class Bounds:
    """Range of a number, or of every number of a list or mapping.

    Attributes:
        minimum, maximum: bounds that the number may reach.
        above, below: bounds that it may not reach.
        filled: a list or mapping must have an entry.
    """

    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    filled: bool = False

    def hold(self, value: object) -> bool:
        """Whether the value keeps to the bounds; what is not a number does."""
        if isinstance(value, collections.abc.Mapping):
            return (len(value) > 0 or not self.filled) and all(map(self.hold, value.values()))
        if isinstance(value, (list, tuple)):
            return (len(value) > 0 or not self.filled) and all(map(self.hold, value))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f"from {self.minimum:g} to {self.maximum:g}"
        words = (
            ("at least", self.minimum),
            ("above", self.above),
            ("at most", self.maximum),
            ("below", self.below),
        )
        return " and ".join(f"{word} {value:g}" for word, value in words if value is not None)


Count = Annotated[int, Bounds(minimum=1)]
Positive = Annotated[float, Bounds(above=0.0)]


@dataclass(frozen=True)
class Unit:
    """Unit of an option's value."""

    name: str


@dataclass(frozen=True)
class Doc:
    """What an option means, in a few words, and a value that shows how it is written."""

    text: str
    example: str = ""


@dataclass(frozen=True)
class Check:
    """A test that an annotation cannot say: raises ValueError with what is wrong."""

    test: Callable[..., object]


@dataclass(frozen=True)
class FromData:
    """Marks an option of a model that a training fills in from its data.

    Attributes:
        word: a value that asks for it (``average``), if there is one.
        by_default: leaving the option out asks for it too; else the default of the constructor
            holds in a training.
    """

    word: str | None = None
    by_default: bool = True


def marker(annotation: object, kind: type[T]) -> T | None:
    """The mark of a kind (:class:`Doc`, ...) on an annotation, also inside ``X | None``."""
    return next((item for item in _marks(annotation) if isinstance(item, kind)), None)


def _marks(annotation: object) -> Iterator[object]:
    if typing.get_origin(annotation) is Annotated:
        inner, *marks = typing.get_args(annotation)
        yield from marks
        yield from _marks(inner)
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _marks(member)


class Mismatch(ValueError):
    """The value does not fit the annotation."""


class OutOfRange(Mismatch):
    """It has the type, but not the range; the text says more where there is more to say."""


_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}


def fits(value: object, annotation: object) -> bool:
    """Whether :func:`convert` accepts the value."""
    try:
        convert(value, annotation)
    except Mismatch:
        return False
    return True


def convert(value: object, annotation: object) -> Any:
    """Return ``value`` in the annotated type: integers become floats, lists become tuples, ...

    Annotations that are not understood accept anything.

    Raises:
        Mismatch: if the value does not fit.
    """
    origin = typing.get_origin(annotation)
    if annotation is Any or isinstance(annotation, (str, typing.TypeVar)):
        return value
    if origin is Annotated:
        return _convert_marked(value, annotation)
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


def _convert_marked(value: object, annotation: object) -> object:
    result = convert(value, typing.get_args(annotation)[0])
    for mark in typing.get_args(annotation)[1:]:
        if isinstance(mark, Bounds) and not mark.hold(result):
            raise OutOfRange
        if isinstance(mark, Check):
            try:
                mark.test(result)
            except ValueError as error:
                raise OutOfRange(str(error)) from error
    return result


def _convert_literal(value: object, allowed: tuple[object, ...]) -> object:
    text = "None" if value is None else value
    for item in allowed:
        if type(item) is type(text) and item == text:
            return item
    raise Mismatch


def _convert_union(value: object, members: tuple[object, ...]) -> object:
    if value == "None" and types.NoneType in members:
        return None
    ordered = sorted(members, key=lambda item: item not in (types.NoneType, type(value)))
    fault = Mismatch()
    for member in ordered:
        try:
            return convert(value, member)
        except OutOfRange as error:
            fault = error
        except Mismatch:
            continue
    raise fault


def _convert_scalar(value: object, target: type) -> object:
    if target is bool:
        if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        if isinstance(value, bool):
            return value
        raise Mismatch
    if isinstance(value, bool):
        raise Mismatch
    if target is float and isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise OutOfRange
        return float(value)
    if target is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, target):
        return value
    raise Mismatch


def _convert_container(value: object, base: object, arguments: tuple[object, ...]) -> object:
    if not isinstance(base, type):
        return value
    if issubclass(base, collections.abc.Mapping):
        if not isinstance(value, collections.abc.Mapping):
            raise Mismatch
        if len(arguments) != 2:
            return dict(value)
        key_type, value_type = arguments
        return {
            _convert_key(key, key_type): convert(item, value_type) for key, item in value.items()
        }
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


def _convert_key(key: object, annotation: object) -> object:
    """JSON knows no keys but text."""
    if annotation is int and isinstance(key, str) and key.isdigit():
        return int(key)
    return convert(key, annotation)


def is_text(annotation: object) -> bool:
    """Whether every text is a value of its own, so that none stands for something else."""
    if typing.get_origin(annotation) is Annotated:
        return is_text(typing.get_args(annotation)[0])
    return annotation is str or annotation == str | None


def plain(value: object) -> Any:
    """Return ``value`` as YAML and JSON know it: tuples as lists, dataclasses as mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, collections.abc.Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def check(value: object, annotation: object, *, where: str = "", owner: str = "") -> Any:
    """Return the value in the annotated type.

    Args:
        where: place in the configuration, which leads the message.
        owner: what has the option, named in the message.

    Raises:
        ConfigError: what was expected and what was given.
    """
    try:
        return convert(value, annotation)
    except Mismatch as error:
        subject = f"{owner} " if owner else ""
        text = str(error) or subject + mismatch_text(
            value, annotation, bounds=isinstance(error, OutOfRange)
        )
        raise ConfigError(text, where=where) from None


def check_fields(settings: object, where: str = "") -> None:
    """Bring the fields of a frozen dataclass into their types, when it is made.

    Raises:
        ConfigError: naming ``where.field``, what was expected and what was given.
    """
    for name, annotation in _field_types(settings.__class__).items():  # type: ignore[arg-type]
        place = f"{where}.{name}" if where else name
        value = check(getattr(settings, name), annotation, where=place)
        object.__setattr__(settings, name, value)


@functools.cache
def _field_types(kind: type) -> dict[str, object]:
    return typing.get_type_hints(kind, include_extras=True)


def mismatch_text(value: object, annotation: object, *, bounds: bool = False) -> str:
    """Say what was expected and given, with a long value cut short."""
    text = repr(value)
    if len(text) > 80:
        text = f"{text[:76]} ..."
    hint = ""
    if isinstance(value, (int, float)) and fits("", annotation):
        hint = f"; put it in quotes: '{value}'"
    if isinstance(value, str):
        hint = suggestion(value, [item for item in _literals(annotation) if isinstance(item, str)])
    return f"expects {type_name(annotation, bounds=bounds)}, got {text}{hint}"


def _literals(annotation: object) -> Iterator[object]:
    """The values that a ``Literal`` in the annotation allows."""
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    elif typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _literals(member)


_PLAIN_NAMES = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    types.NoneType: "None",
    Any: "anything",
}


def type_name(annotation: object, *, bounds: bool = True) -> str:
    """Return the annotation in a user's words, for example ``list of numbers or None``.

    Args:
        bounds: say the range too (``number above 0``).
    """
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        name = type_name(arguments[0], bounds=bounds)
        mark = next((item for item in arguments if isinstance(item, Bounds)), None)
        if mark is None or not bounds:
            return name
        return f"{'non-empty ' if mark.filled else ''}{name} {mark}".rstrip()
    if annotation in _PLAIN_NAMES:
        return _PLAIN_NAMES[annotation]
    if origin in (typing.Union, types.UnionType):
        names = [type_name(item, bounds=bounds) for item in arguments]
        return " or ".join(dict.fromkeys(names))
    if origin is typing.Literal:
        return " or ".join(repr(item) for item in arguments)
    base = origin or annotation
    if not isinstance(base, type):
        return str(annotation)
    names = [type_name(item, bounds=bounds) for item in arguments if item is not Ellipsis]
    if issubclass(base, collections.abc.Mapping):
        plain_mapping = len(arguments) != 2 or Any in arguments
        return "mapping" if plain_mapping else f"mapping from {names[0]} to {names[1]}"
    if issubclass(base, collections.abc.Sequence):
        if base is tuple and arguments and arguments[-1] is not Ellipsis:
            return f"list of {len(arguments)}: {', '.join(names)}"
        return f"list of {_plural(names[0])}" if arguments else "list"
    return base.__name__


def _plural(name: str) -> str:
    return re.sub(r"^(text|whole number|number)\b", r"\1s", name)
