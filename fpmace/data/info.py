"""What a data set holds, gathered in one pass: the source of summaries and late checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from fpmace.annotations import Values
from fpmace.boundaries import PBC_METHODS, pbc_class
from fpmace.data.checks import pbc_problem
from fpmace.data.configuration import Configuration
from fpmace.data.keys import (
    DEFAULT_CONFIG_TYPE,
    ISOLATED_ATOM,
    LABELS,
    PROPERTIES,
    KeyMapping,
    plain_names,
)
from fpmace.errors import DataError, suggestion


@dataclass
class DatasetInfo:
    """Counts over a data set; JSON-able.

    Attributes:
        n_configurations: all configurations, isolated atoms included.
        n_atoms, n_edges: totals.
        min_atoms, max_atoms: smallest and largest configuration.
        config_types: configurations by ``config_type``.
        heads: configurations by head, where there are several.
        properties: configurations that carry each property.
        elements: atoms by atomic number (as text, for JSON).
        first_element: where each element is met first (file and index, as text).
        pbc_classes: configurations by periodicity (``FFF``, ``TTF``, ...).
        pbc_problems: for each electrostatic boundary method that cannot take all
            configurations, the first message.
        other_keys: keys found in the file, mapped or not.
        sources: files read.
    """

    n_configurations: int = 0
    n_atoms: int = 0
    n_edges: int = 0
    min_atoms: int = 0
    max_atoms: int = 0
    config_types: dict[str, int] = field(default_factory=dict)
    properties: dict[str, int] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)
    first_element: dict[str, str] = field(default_factory=dict)
    pbc_classes: dict[str, int] = field(default_factory=dict)
    pbc_problems: dict[str, str] = field(default_factory=dict)
    other_keys: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    heads: dict[str, int] = field(default_factory=dict)

    @property
    def atomic_numbers(self) -> list[int]:
        """Elements present, ascending."""
        return sorted(int(number) for number in self.elements)

    def add(self, config: Configuration, n_edges: int) -> None:
        """Count one configuration."""
        first = self.n_configurations == 0
        self.n_configurations += 1
        self.n_atoms += config.n_atoms
        self.n_edges += n_edges
        self.min_atoms = config.n_atoms if first else min(self.min_atoms, config.n_atoms)
        self.max_atoms = max(self.max_atoms, config.n_atoms)
        _count(self.config_types, config.config_type)
        if config.head:
            _count(self.heads, config.head)
        _count(self.pbc_classes, pbc_class(config.pbc.tolist()))
        for name in config.properties:
            _count(self.properties, name)
        for number in config.atomic_numbers.tolist():
            _count(self.elements, str(number))
            self.first_element.setdefault(str(number), config.where)
        if not config.is_isolated_atom:
            self._note_pbc(config)
        if config.source not in self.sources:
            self.sources.append(config.source)
        known = set(self.other_keys)
        self.other_keys.extend(key for key in config.present_keys if key not in known)

    def _note_pbc(self, config: Configuration) -> None:
        for method in PBC_METHODS:
            if method not in self.pbc_problems:
                problem = pbc_problem(config, method)
                if problem is not None:
                    self.pbc_problems[method] = f"{config.where}: {problem}"

    def merge(self, other: DatasetInfo) -> DatasetInfo:
        """Return the counts of both, this one's places first."""
        if not self.n_configurations or not other.n_configurations:
            return self if self.n_configurations else other
        return DatasetInfo(
            n_configurations=self.n_configurations + other.n_configurations,
            n_atoms=self.n_atoms + other.n_atoms,
            n_edges=self.n_edges + other.n_edges,
            min_atoms=min(self.min_atoms, other.min_atoms),
            max_atoms=max(self.max_atoms, other.max_atoms),
            config_types=_sum(self.config_types, other.config_types),
            properties=_sum(self.properties, other.properties),
            elements=_sum(self.elements, other.elements),
            first_element={**other.first_element, **self.first_element},
            pbc_classes=_sum(self.pbc_classes, other.pbc_classes),
            pbc_problems={**other.pbc_problems, **self.pbc_problems},
            other_keys=list(dict.fromkeys([*self.other_keys, *other.other_keys])),
            sources=list(dict.fromkeys([*self.sources, *other.sources])),
            heads=_sum(self.heads, other.heads),
        )

    def to_json(self) -> Values:
        """Return a JSON-able dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Values) -> DatasetInfo:
        """Rebuild from ``to_json``."""
        return cls(**data)


def check_keys(info: DatasetInfo, keys: KeyMapping, path: str) -> None:
    """Refuse a mapped key that no configuration has, and a file without any label.

    Raises:
        DataError: naming the property, the key looked for and the keys there are.
    """
    for name in sorted(keys.explicit):
        if info.properties.get(name, 0) == 0:
            place = "info" if PROPERTIES[name].per == "graph" else "arrays"
            raise DataError(
                f"{path}: heads.{keys.head} maps {name} to '{keys.key(name)}', but 0 of"
                f" {info.n_configurations} configurations have {place} key '{keys.key(name)}'"
                f"{suggestion(keys.key(name), info.other_keys)}"
                f" (present: {', '.join(info.other_keys) or 'none'})"
            )
    if not any(info.properties.get(name) for name in LABELS):
        usual = plain_names(info.other_keys, info.properties, keys)
        flags = " ".join(f"--{name}_key {other}" for name, other in usual.items())
        remedy = f"give {flags}" if flags else "map the keys under heads"
        raise DataError(
            f"{path}: no configuration carries a label; looked for"
            f" {', '.join(keys.key(name) for name in LABELS)};"
            f" present: {', '.join(info.other_keys) or 'none'}; {remedy}"
        )


def check_config_types(info: DatasetInfo, weights: Mapping[str, float] | None) -> None:
    """Refuse a ``config_type_weights`` entry for a type that no configuration has."""
    for name in weights or {}:
        if name not in (DEFAULT_CONFIG_TYPE, ISOLATED_ATOM, *info.config_types):
            raise DataError(
                f"config_type_weights: no configuration has config_type '{name}'"
                f"{suggestion(name, info.config_types)}"
                f" (present: {', '.join(info.config_types) or 'none'})"
            )


def _count(table: dict[str, int], name: str) -> None:
    table[name] = table.get(name, 0) + 1


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    names: Iterable[str] = dict.fromkeys([*first, *second])
    return {name: first.get(name, 0) + second.get(name, 0) for name in names}
