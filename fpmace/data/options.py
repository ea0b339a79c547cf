"""Options of reading and checking data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fpmace.boundaries import PBC_METHODS
from fpmace.data.heads import Head, find_head
from fpmace.data.keys import PROPERTIES, KeyMapping
from fpmace.errors import ConfigError, suggestion

DEFAULT_INPUTS = ("total_charge", "total_spin")
"""Inputs that ``default_<name>`` may stand for."""


def chosen_defaults(total_charge: float | None, total_spin: float | None) -> dict[str, float]:
    """``DataOptions.defaults`` from the options ``default_total_charge``, ``default_total_spin``.

    Raises:
        ConfigError: for a spin below 1.
    """
    if total_spin is not None and total_spin < 1:
        raise ConfigError(
            f"is the multiplicity 2S + 1, 1 or more, got {total_spin}", where="default_total_spin"
        )
    given = zip(DEFAULT_INPUTS, (total_charge, total_spin), strict=True)
    return {name: float(value) for name, value in given if value is not None}


@dataclass(frozen=True)
class DataOptions:
    """How configurations are read, weighted and checked.

    Attributes:
        keys: property to key mapping.
        multipoles_max_l: multipoles are cut to (l_max+1)^2 columns; fewer are an error.
        config_type_weights: factor on the configuration weight by ``config_type``; the entry
            ``Default`` holds for types that are not named (1.0 without it).
        pbc_handling: electrostatic boundary method the data must suit; None: not checked.
        allow_low_density_pbc: accept fully periodic boxes of any volume per atom.
        low_density_pbc_max_volume_per_atom: Angstrom^3; above it a fully periodic box is refused.
        min_distance: Angstrom; atoms (or their images) closer than this are refused.
        elements: atomic numbers of the model; None: any.
        required: properties that every configuration must carry.
        defaults: what stands for an input (by property name) where a configuration lacks it.
        split_by: info key that names the group (trajectory) a configuration belongs to.
        keep_isolated_atoms: train on ``IsolatedAtom`` configurations too, instead of only
            reading atomic energies from them.
        check_keys: refuse a file without any label, or in which a key the user mapped is found
            nowhere.
        heads: the heads of the model; empty: it has one, and nothing is read about heads.
        head: the one that all configurations belong to; None: they say so themselves.
    """

    keys: KeyMapping = field(default_factory=KeyMapping)
    multipoles_max_l: int = 1
    config_type_weights: Mapping[str, float] | None = None
    pbc_handling: str | None = None
    allow_low_density_pbc: bool = False
    low_density_pbc_max_volume_per_atom: float = 100.0
    min_distance: float = 0.2
    elements: tuple[int, ...] | None = None
    required: tuple[str, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)
    split_by: str | None = None
    keep_isolated_atoms: bool = False
    check_keys: bool = True
    heads: tuple[Head, ...] = ()
    head: str | None = None

    def __post_init__(self) -> None:
        if self.multipoles_max_l < 0:
            raise ConfigError(
                f"must be 0 or more, got {self.multipoles_max_l}", where="atomic_multipoles_max_l"
            )
        if self.pbc_handling is not None and self.pbc_handling not in PBC_METHODS:
            raise ConfigError(
                f"'{self.pbc_handling}' is unknown{suggestion(self.pbc_handling, PBC_METHODS)}"
                f" (known: {', '.join(PBC_METHODS)})",
                where="electrostatic_pbc_method",
            )
        if self.low_density_pbc_max_volume_per_atom <= 0:
            raise ConfigError(
                f"must be positive, got {self.low_density_pbc_max_volume_per_atom}",
                where="low_density_pbc_max_volume_per_atom",
            )
        for name in self.required:
            if name not in PROPERTIES:
                raise ConfigError(
                    f"required property '{name}' is unknown{suggestion(name, PROPERTIES)}"
                )
        for name, weight in (self.config_type_weights or {}).items():
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight >= 0:
                raise ConfigError(
                    f"must be a number >= 0, got {weight!r}", where=f"config_type_weights.{name}"
                )

    @property
    def n_multipoles(self) -> int:
        """Columns of ``atomic_multipoles``."""
        return (self.multipoles_max_l + 1) ** 2

    def head_of(self, name: object, where: str) -> Head | None:
        """The head of a configuration that names ``name`` (or None); None without heads.

        Raises:
            DataError: listing the heads, if it names none or another.
        """
        if not self.heads:
            return None
        return find_head(self.heads, name if self.head is None else self.head, where)

    def head_index(self, name: str) -> int:
        """Place of a head among ``heads``; 0 without heads."""
        names = [head.name for head in self.heads]
        return names.index(name) if names else 0

    def for_head(self, name: str) -> DataOptions:
        """The options of configurations that all belong to one head."""
        return replace(self, head=name, keys=self.heads[self.head_index(name)].keys)

    def head_weight(self, name: str) -> float:
        """Return the factor that the head puts on the configuration weight."""
        return self.heads[self.head_index(name)].weight if self.heads else 1.0

    def type_weight(self, config_type: str) -> float:
        """Return the factor that ``config_type`` puts on the configuration weight."""
        table = self.config_type_weights or {}
        return float(table.get(config_type, table.get("Default", 1.0)))
