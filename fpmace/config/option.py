"""Options of a run: fields of the schema, and what only a run has to say about an option."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Literal

from fpmace.annotations import marker
from fpmace.part_entry import Option

Need = Literal["", "has_density", "solves_self_consistency"]


@dataclass(frozen=True)
class Role:
    """What an option is for, beyond its value.

    Attributes:
        needs: fact of a model without which the option has no meaning.
        action: says what this run does (``--dry_run``), not what is computed; kept out of the
            resolved configuration.
        repeatable: the flag takes several values.
    """

    needs: Need = ""
    action: bool = False
    repeatable: bool = False


@dataclass(frozen=True)
class RunOption(Option):
    """One option: flag ``--name`` and key ``name`` in YAML.

    Attributes:
        group: heading that it stands under.
        model_option: the option of the model that it is another name of; empty for others.
    """

    group: str = ""
    model_option: str = ""

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def is_switch(self) -> bool:
        return typing.get_args(self.annotation)[:1] == (bool,)

    @property
    def role(self) -> Role:
        return marker(self.annotation, Role) or Role()


def options_of(schema: type) -> dict[str, RunOption]:
    """List a schema's options by name, in the order of its groups (its base classes)."""
    found: dict[str, RunOption] = {}
    for base in schema.__bases__:
        hints = typing.get_type_hints(base, include_extras=True)
        group = typing.cast(str, base.__doc__).strip().rstrip(".")
        for item in dataclasses.fields(base):
            found[item.name] = RunOption(item.name, hints[item.name], _default(item), group)
    return found


def _default(item: dataclasses.Field[object]) -> object:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default
