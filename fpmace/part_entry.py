"""What the registry knows of a part: its options and context, read off its constructor."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from fpmace.annotations import Doc, FromData, Unit, fits, marker, type_name
from fpmace.errors import RegistryError

PartConfig = str | Mapping[str, Any]
"""How a part is named in a configuration: its name, or a mapping with ``type`` and options."""

Declared = tuple[inspect.Parameter, Callable[..., object]]
_REQUIRED: object = inspect.Parameter.empty


@dataclass(frozen=True)
class Part:
    """Marks an option whose value names a part of ``kind``."""

    kind: str


@dataclass(frozen=True)
class Option:
    """One user option of a registered part, as its constructor declares it."""

    name: str
    annotation: object
    default: Any

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    @functools.cached_property
    def part_kind(self) -> str | None:
        """The kind of part that the option names, if it does."""
        part = marker(self.annotation, Part)
        return part.kind if part else None

    @property
    def from_data(self) -> FromData | None:
        """How a training fills the option in, if it does."""
        return marker(self.annotation, FromData)

    @property
    def meaning(self) -> str:
        """What the option means, with its unit; empty if the annotation does not say."""
        doc, unit = marker(self.annotation, Doc), marker(self.annotation, Unit)
        return (doc.text if doc else "") + (f", {unit.name}" if doc and unit else "")

    @property
    def example(self) -> str:
        """How a value is written; empty if the annotation does not say."""
        doc = marker(self.annotation, Doc)
        return doc.example if doc else ""

    @property
    def type_name(self) -> str:
        """What the option accepts, in words; ``<kind>`` for the name of a part."""
        return f"<{self.part_kind}>" if self.part_kind else type_name(self.annotation)

    def describe(self) -> str:
        tail = " (required)" if self.required else f" = {self.default!r}"
        return f"{self.name}: {self.type_name}{tail}"


@dataclass(frozen=True)
class Entry:
    """One registered part. ``plugin`` is the path or module a user named to bring it in."""

    kind: str
    name: str
    target: Callable[..., object]
    options: tuple[Option, ...]
    context: tuple[str, ...]
    required_context: tuple[str, ...]
    summary: str
    module: str
    plugin: str | None

    def option(self, name: str) -> Option | None:
        return next((item for item in self.options if item.name == name), None)

    @property
    def source(self) -> str | None:
        """The plugin or module to import before the part is known; None for built-in parts."""
        if self.plugin is not None:
            return self.plugin
        return None if is_builtin(self.module) else self.module


def make_entry(
    kind: str,
    name: str,
    target: Callable[..., object],
    *,
    context_names: Set[str],
    plugin: str | None,
) -> Entry:
    """Read a constructor (or function).

    Raises:
        RegistryError: if an option is positional, has no annotation or a default of another type.
    """
    options: list[Option] = []
    context: list[str] = []
    needed: list[str] = []
    for parameter, declared_by in _parameters(target):
        if parameter.name in context_names:
            context.append(parameter.name)
            if parameter.default is _REQUIRED:
                needed.append(parameter.name)
        else:
            options.append(_make_option(f"{kind} '{name}'", declared_by, parameter))
    doc = inspect.getdoc(target) or ""
    return Entry(
        kind=kind,
        name=name,
        target=target,
        options=tuple(options),
        context=tuple(context),
        required_context=tuple(needed),
        summary=doc.strip().split("\n", 1)[0],
        module=getattr(target, "__module__", "?"),
        plugin=plugin,
    )


def _make_option(
    owner: str, declared_by: Callable[..., object], parameter: inspect.Parameter
) -> Option:
    where = f"{owner}, parameter '{parameter.name}'"
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        raise RegistryError(f"{where}: options must be keyword-only (put them after '*')")
    if parameter.annotation is _REQUIRED:
        raise RegistryError(f"{where}: options must carry a type annotation")
    annotation = _resolve(declared_by, parameter.annotation, where)
    option = Option(parameter.name, annotation, parameter.default)
    default = parameter.default
    if not option.required and option.part_kind is None and not fits(default, annotation):
        raise RegistryError(
            f"{where}: the default {default!r} is not of the annotated type "
            f"({type_name(annotation)})"
        )
    return option


def _parameters(target: Callable[..., object]) -> list[Declared]:
    """Parameters a builder may pass, with the function that declares each.

    The positional ones of a function are its run-time inputs. Where a constructor takes ``**more``
    for its base, the base's parameters count too, and come first.
    """
    if not isinstance(target, type):
        inputs = inspect.signature(target).parameters.values()
        return [(item, target) for item in inputs if item.kind is item.KEYWORD_ONLY]
    found: dict[str, Declared] = {}
    for owner in target.__mro__:
        constructor = owner.__dict__.get("__init__")
        if constructor is None:
            continue
        declared = list(inspect.signature(constructor).parameters.values())[1:]
        named = (x for x in declared if x.kind not in (x.VAR_KEYWORD, x.VAR_POSITIONAL))
        found = {item.name: (item, constructor) for item in named} | found
        if not any(item.kind is item.VAR_KEYWORD for item in declared):
            break
    return list(found.values())


def has_runtime_inputs(target: Callable[..., object]) -> bool:
    """Whether a function has positional parameters, which it gets when it is used."""
    if isinstance(target, type):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(item.kind in positional for item in inspect.signature(target).parameters.values())


def _resolve(declared_by: Callable[..., object], annotation: object, where: str) -> object:
    """Turn an annotation that is still source text into the object it stands for."""
    if not isinstance(annotation, str):
        return annotation
    scope = getattr(inspect.unwrap(declared_by), "__globals__", {})
    holder = types.SimpleNamespace(__annotations__={"option": annotation})
    try:
        return typing.get_type_hints(holder, globalns=scope, include_extras=True)["option"]
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise RegistryError(
            f"{where}: cannot make sense of the annotation '{annotation}' ({error}); names in it "
            "must be imported at the top of the module"
        ) from error


def is_builtin(module: str) -> bool:
    """Whether a module belongs to fpmace itself."""
    return module == "fpmace" or module.startswith("fpmace.")
