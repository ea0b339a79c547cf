"""What the schema says about one option: help, group, type, range, the parts it may name."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from fpmace.annotations import type_name

_KEY = "fpmace"


@dataclass(frozen=True)
class Meta:
    """The part of an option that a dataclass field does not hold by itself.

    Attributes:
        help: one sentence for ``--help`` and the reference page.
        part: the value names a registered part of this kind (or is a mapping with ``type``).
        minimum: smallest allowed number.
        above, below: bounds that the number must not reach.
        density_only: has a meaning only for models with a density, not for MACE.
        action: says what this run does (``--dry_run``), not what is computed; kept out of the
            resolved configuration.
        repeatable: the flag takes several values.
        example: a value to show in the documentation.
    """

    help: str
    part: str | None = None
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    density_only: bool = False
    action: bool = False
    repeatable: bool = False
    example: str = ""


def option(default: Any, help: str, **meta: Any) -> Any:
    """Declare a field of the schema; see :class:`Meta` for the keywords.

    Actions are left out of comparisons: equal configurations compute the same.
    """
    kept = Meta(help, **meta)
    common: dict[str, Any] = {"metadata": {_KEY: kept}, "compare": not kept.action}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), **common)
    return dataclasses.field(default=default, **common)


@dataclass(frozen=True)
class Option:
    """One option: flag ``--name``, key ``name`` in YAML, field ``name`` of the configuration."""

    name: str
    group: str
    annotation: Any
    default: Any
    meta: Meta

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def is_switch(self) -> bool:
        return self.annotation is bool

    @property
    def type_name(self) -> str:
        return type_name(self.annotation)


def options_of(schema: type) -> dict[str, Option]:
    """List a schema's options by name, in the order of its groups (its base classes)."""
    found: dict[str, Option] = {}
    for base in schema.__bases__:
        hints = typing.get_type_hints(base)
        group = typing.cast(str, base.__doc__).strip().rstrip(".")
        for item in dataclasses.fields(base):
            default = (
                item.default_factory()
                if item.default_factory is not dataclasses.MISSING
                else item.default
            )
            found[item.name] = Option(
                item.name, group, hints[item.name], default, item.metadata[_KEY]
            )
    return found
