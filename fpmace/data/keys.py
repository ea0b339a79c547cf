"""The data contract: every property a configuration may carry, once, with shape, unit and key."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fpmace.errors import ConfigError, suggestion

Per = Literal["graph", "atom"]


@dataclass(frozen=True)
class Property:
    """One quantity of the data contract.

    Attributes:
        name: name in ``Batch.labels`` and in ``heads``.
        per: one value per ``graph`` (read from info) or per ``atom`` (read from arrays).
        shape: shape of one value; ``None`` in it stands for a free length.
        unit: unit of the numbers in the file.
        meaning: what it is, with its sign convention.
        key: the key read when ``heads`` does not map the property.
        role: ``label`` (``Batch.labels``), or ``input`` (a field of ``Batch``).
        weight_shape: shape of ``config_<name>_weight``.
        integer: whole numbers only.
        blank: what stands for it where it is absent.
    """

    name: str
    per: Per
    shape: tuple[int | None, ...]
    unit: str
    meaning: str
    key: str
    role: Literal["label", "input"] = "label"
    weight_shape: tuple[int, ...] = ()
    integer: bool = False
    blank: int = 0

    @property
    def section(self) -> str:
        """The block of ``heads`` that maps this property."""
        return "info_keys" if self.per == "graph" else "arrays_keys"


def _table(*items: Property) -> dict[str, Property]:
    return {item.name: item for item in items}


PROPERTIES: Mapping[str, Property] = _table(
    Property(
        "energy", "graph", (), "eV", "total energy, energy in the field included", "REF_energy"
    ),
    Property("forces", "atom", (3,), "eV/A", "minus the gradient of the energy", "REF_forces"),
    Property(
        "stress", "graph", (3, 3), "eV/A^3", "dE/dstrain / V, tension positive", "REF_stress"
    ),
    Property("virials", "graph", (3, 3), "eV", "-dE/dstrain = -V stress", "REF_virials"),
    Property(
        "dipole",
        "graph",
        (3,),
        "e A",
        "dipole (x, y, z) about the coordinate origin, also for ions",
        "REF_dipole",
        weight_shape=(3,),
    ),
    Property(
        "polarizability",
        "graph",
        (3, 3),
        "e A^2/V",
        "minus the derivative of the dipole by the external field",
        "REF_polarizability",
    ),
    Property(
        "born_charges",
        "atom",
        (3, 3),
        "e",
        "element (a, b): derivative of dipole component b by the atom's coordinate a",
        "REF_born_charges",
    ),
    Property(
        "atomic_multipoles",
        "atom",
        (None,),
        "e A^l",
        "charge, then dipole as (y, z, x): (l_max+1)^2 columns",
        "REF_atomic_multipoles",
    ),
    Property(
        "charges",
        "atom",
        (),
        "e",
        "atomic charges; those of atomic_multipoles where the key is absent",
        "REF_charges",
    ),
    Property("formal_charges", "atom", (), "e", "formal charges that a model reads", "charges"),
    Property("enegs", "atom", (), "V", "electronegativities to be added to learned ones", "enegs"),
    Property("hardness", "atom", (), "eV/e^2", "hardnesses in place of the default", "hardness"),
    Property(
        "electrostatic_potentials",
        "atom",
        (),
        "V",
        "potential at the atoms, felt by positive charge",
        "REF_electrostatic_potentials",
    ),
    Property(
        "spins",
        "atom",
        (),
        "",
        "atomic spin populations, up minus down",
        "REF_spins",
    ),
    Property("total_charge", "graph", (), "e", "net charge", "total_charge", role="input"),
    Property(
        "total_spin",
        "graph",
        (),
        "",
        "multiplicity 2S + 1",
        "total_spin",
        role="input",
        blank=1,
    ),
    Property(
        "external_field",
        "graph",
        (3,),
        "V/A",
        "gradient of the potential felt by positive charge (minus the physical field)",
        "external_field",
        role="input",
    ),
    Property(
        "fermi_level",
        "graph",
        (),
        "eV",
        "Fermi level (mid-gap for molecules), an electron's energy",
        "REF_fermi_level",
        role="input",
    ),
    Property(
        "cluster_id",
        "atom",
        (),
        "",
        "number of the molecule an atom belongs to",
        "cluster_id",
        integer=True,
    ),
    Property(
        "pair_id",
        "graph",
        (),
        "",
        "the same number: the same geometry, without and with an external field",
        "pair_id",
        integer=True,
        blank=-1,
    ),
)

LABELS: tuple[str, ...] = tuple(
    name for name, item in PROPERTIES.items() if item.role == "label" and name != "cluster_id"
)
"""Labels present in every batch; ``cluster_id`` is there only where the data has it."""

INPUTS: tuple[str, ...] = tuple(n for n, item in PROPERTIES.items() if item.role == "input")

WEIGHTED: tuple[str, ...] = (*LABELS, *INPUTS)
"""Names in ``Batch.weights``."""

CONFIG_WEIGHT_KEY = "config_weight"
CONFIG_TYPE_KEY = "config_type"
ISOLATED_ATOM = "IsolatedAtom"
DEFAULT_CONFIG_TYPE = "Default"


KEY_OPTIONS: Mapping[str, str] = {f"{name}_key": name for name in PROPERTIES}
"""Options such as ``energy_key``, short for an entry of ``heads``."""


def heads_with_keys(heads: object, named: Mapping[str, str]) -> dict[str, object]:
    """``heads`` with the keys of some properties named: in the only head, or in each of several
    that does not name them itself."""
    given = dict(heads) if isinstance(heads, Mapping) and heads else {"Default": {}}
    return {head: _with_keys(item, named, len(given) == 1) for head, item in given.items()}


def _with_keys(head: object, named: Mapping[str, str], replace: bool) -> object:
    if not isinstance(head, Mapping | None):
        return head  # reported when it is checked
    result: dict[str, object] = dict(head or {})
    for name, key in named.items():
        section = PROPERTIES[name].section
        known = result.get(section)
        known = dict(known) if isinstance(known, Mapping) else {}
        if replace or (name not in known and f"{name}_key" not in result):
            result[section] = {**known, name: key}
    return result


def plain_names(
    present: Collection[str], counts: Mapping[str, int], keys: KeyMapping
) -> dict[str, str]:
    """Properties that are absent under their key, but there under another usual name."""
    free = set(present) - set(keys.keys.values())
    usual = {name: "esps" if name == "electrostatic_potentials" else name for name in LABELS}
    return {n: other for n, other in usual.items() if other in free and not counts.get(n)}


def label_counts(properties: Mapping[str, int]) -> dict[str, int]:
    """Configurations by property; charges are there where multipoles are."""
    counts = dict(properties)
    charges = max(counts.get("charges", 0), counts.get("atomic_multipoles", 0))
    return {**counts, "charges": charges} if charges else counts


def weight_key(name: str) -> str:
    """Return the info key of the per-configuration weight of property ``name``."""
    return f"config_{name}_weight"


@dataclass(frozen=True)
class KeyMapping:
    """Which key of the file each property is read from.

    Attributes:
        keys: key by property name, for every property of the contract.
        explicit: names mapped by the user; such a key must be found somewhere.
        head: name of the head.
    """

    keys: Mapping[str, str] = field(
        default_factory=lambda: {name: item.key for name, item in PROPERTIES.items()}
    )
    explicit: frozenset[str] = frozenset()
    head: str = "Default"

    @classmethod
    def from_heads(cls, heads: Mapping[str, object] | None) -> KeyMapping:
        """Build from ``heads: {name: {info_keys: {...}, arrays_keys: {...}}}``.

        Raises:
            ConfigError: more than one head, an unknown property or block, a key that is not text.
        """
        if not heads:
            return cls()
        if not isinstance(heads, Mapping):
            raise ConfigError(
                f"expected a mapping from a name to info_keys and arrays_keys, got {heads!r}",
                where="heads",
            )
        if len(heads) > 1:
            names = ", ".join(str(name) for name in heads)
            raise ConfigError(
                f"{len(heads)} heads given ({names}); one head is supported, merge them",
                where="heads",
            )
        head, blocks = next(iter(heads.items()))
        if not isinstance(blocks, Mapping):
            raise ConfigError(
                f"expected a mapping with info_keys and arrays_keys, got {blocks!r}",
                where=f"heads.{head}",
            )
        return cls._from_blocks(str(head), blocks)

    @classmethod
    def _from_blocks(cls, head: str, blocks: Mapping[str, object]) -> KeyMapping:
        keys = dict(cls().keys)
        explicit: set[str] = set()
        for block, entries in blocks.items():
            where = f"heads.{head}.{block}"
            if block not in ("info_keys", "arrays_keys"):
                raise ConfigError(
                    "unknown block; known: info_keys, arrays_keys"
                    + suggestion(str(block), ["info_keys", "arrays_keys"]),
                    where=where,
                )
            if not isinstance(entries, Mapping):
                raise ConfigError(
                    f"expected a mapping from property to key, got {entries!r}", where=where
                )
            for name, key in entries.items():
                _check_entry(where, block, str(name), key)
                keys[str(name)] = key
                explicit.add(str(name))
        return cls(keys, frozenset(explicit), head)

    def key(self, name: str) -> str:
        """Return the key that property ``name`` is read from."""
        return self.keys[name]

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able description."""
        return {"head": self.head, "keys": dict(self.keys), "explicit": sorted(self.explicit)}


def _check_entry(block_name: str, block: str, name: str, key: object) -> None:
    where = f"{block_name}.{name}"
    if name not in PROPERTIES:
        raise ConfigError(
            f"unknown property{suggestion(name, PROPERTIES)} (known: {', '.join(PROPERTIES)})",
            where=where,
        )
    if PROPERTIES[name].section != block:
        raise ConfigError(
            f"{name} is given per {PROPERTIES[name].per}; map it under {PROPERTIES[name].section}",
            where=where,
        )
    if not isinstance(key, str) or not key:
        raise ConfigError(f"the key must be text, got {key!r}", where=where)


def describe_contract(names: Iterable[str] | None = None) -> list[tuple[str, str, str, str, str]]:
    """Return rows (name, per, shape, unit, default key) for documentation and help."""
    rows: list[tuple[str, str, str, str, str]] = []
    for name in names or PROPERTIES:
        item = PROPERTIES[name]
        shape = "x".join("k" if size is None else str(size) for size in item.shape) or "1"
        rows.append((name, item.per, shape, item.unit, item.key))
    return rows
