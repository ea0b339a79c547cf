"""One configuration as read from a file: geometry, the properties it carries, its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from fpmace.data.heads import HEAD_KEY
from fpmace.data.keys import (
    CONFIG_TYPE_KEY,
    CONFIG_WEIGHT_KEY,
    DEFAULT_CONFIG_TYPE,
    ISOLATED_ATOM,
    PROPERTIES,
    WEIGHTED,
    KeyMapping,
    Property,
    weight_key,
)
from fpmace.data.neighborhood import Array
from fpmace.data.options import DEFAULT_INPUTS, DataOptions
from fpmace.errors import DataError


@dataclass
class Configuration:
    """One structure with what is known about it.

    Attributes:
        atomic_numbers: [n_atoms] int64.
        positions: [n_atoms, 3] Angstrom.
        cell: [3, 3] Angstrom, lattice vectors are rows; zero without a cell.
        pbc: [3] bool.
        properties: values by property name, only those the configuration carries.
        weights: ``config_<property>_weight`` by property name, only those given.
        weight: ``config_weight``, before ``config_type_weights``.
        config_type: ``Default`` if not given.
        head: name of its head; empty where the model has one.
        group: value of the ``split_by`` key as text; empty if absent.
        source: file it came from.
        index: position in that file, from 0.
        present_keys: keys of the file that hold data, for messages.
    """

    atomic_numbers: Array
    positions: Array
    cell: Array
    pbc: Array
    properties: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    weight: float = 1.0
    config_type: str = DEFAULT_CONFIG_TYPE
    head: str = ""
    group: str = ""
    source: str = ""
    index: int = 0
    present_keys: tuple[str, ...] = ()

    @property
    def n_atoms(self) -> int:
        return len(self.atomic_numbers)

    @property
    def is_isolated_atom(self) -> bool:
        return self.config_type == ISOLATED_ATOM

    @property
    def where(self) -> str:
        """File and index, the start of every message about this configuration."""
        return f"{self.source}: configuration {self.index}"

    def property_weight(self, name: str) -> Array:
        """Return the weight of property ``name``: 0 where the configuration lacks it."""
        shape = PROPERTIES[name].weight_shape
        if name not in self.properties:
            return np.zeros(shape)
        return self.weights.get(name, np.ones(shape))


def configuration_from_atoms(
    atoms: Atoms, options: DataOptions, *, source: str = "", index: int = 0
) -> Configuration:
    """Read the contract's properties from an ASE structure.

    Values are taken from ``atoms.info`` (per graph) and ``atoms.arrays`` (per atom); ASE moves
    some plain names (energy, forces, stress, dipole, charges) to an attached calculator, which
    is looked at too. Multipoles with more than (l_max+1)^2 columns are cut.

    Raises:
        DataError: a value is not numeric, not finite or of the wrong shape; a dipole stands
            without ``config_dipole_weight``; a required property is missing; with several
            heads, it names none or one that is not among them.
    """
    where = f"{source}: configuration {index}"
    info, arrays = _visible(atoms)
    head = options.head_of(info.get(HEAD_KEY), where)
    keys = options.keys if head is None else head.keys
    config = Configuration(
        atomic_numbers=np.asarray(atoms.numbers, dtype=np.int64),
        positions=_finite(np.asarray(atoms.positions, dtype=np.float64), f"{where}: positions"),
        cell=_finite(np.asarray(atoms.cell.array, dtype=np.float64), f"{where}: Lattice"),
        pbc=np.asarray(atoms.pbc, dtype=bool),
        config_type=str(info.get(CONFIG_TYPE_KEY, DEFAULT_CONFIG_TYPE)),
        head="" if head is None else head.name,
        group=str(info.get(options.split_by, "")) if options.split_by else "",
        source=source,
        index=index,
        present_keys=tuple(sorted({*info, *arrays} - {"numbers", "positions"})),
    )
    if config.n_atoms == 0:
        raise DataError(f"{where}: has no atoms; remove it from the file")
    for item in PROPERTIES.values():
        key = keys.key(item.name)
        value = _lookup(item, key, info, arrays, where)
        if value is not None:
            label = f"{where}: {key} ({item.name})"
            config.properties[item.name] = _shaped(
                item, value, config.n_atoms, options.n_multipoles, label
            )
    for name, number in options.defaults.items():
        config.properties.setdefault(name, np.asarray(number, dtype=np.float64))
    check_spin(config)
    _read_weights(config, info)
    _check_required(config, options, keys)
    return config


def check_spin(config: Configuration) -> None:
    """Refuse a multiplicity below 1.

    Raises:
        DataError: naming the configuration.
    """
    spin = config.properties.get("total_spin")
    if spin is not None and float(spin) < 1:
        raise DataError(
            f"{config.where}: total_spin: is the multiplicity 2S + 1, 1 or more, got {spin:g}"
        )


def _visible(atoms: Atoms) -> tuple[dict[str, object], dict[str, object]]:
    """Return info and arrays, completed by what ASE put on a calculator."""
    info: dict[str, object] = dict(atoms.info)
    arrays: dict[str, object] = dict(atoms.arrays)
    results: Mapping[str, object] = getattr(atoms.calc, "results", {}) or {}
    for name, value in results.items():
        per_atom = name in ("forces", "charges", "energies", "stresses", "magmoms")
        (arrays if per_atom else info).setdefault(name, value)
    return info, arrays


def _lookup(
    item: Property, key: str, info: dict[str, object], arrays: dict[str, object], where: str
) -> object | None:
    mine, other = (info, arrays) if item.per == "graph" else (arrays, info)
    if key in mine:
        return mine[key]
    if key in other:
        raise DataError(
            f"{where}: {key} ({item.name}) must be given per {item.per}"
            f" ({'on the comment line' if item.per == 'graph' else 'as columns'}),"
            f" but is {'a set of columns' if item.per == 'graph' else 'on the comment line'}"
        )
    return None


def _shaped(item: Property, value: object, n_atoms: int, n_multipoles: int, label: str) -> Array:
    array = _numeric(value, label)
    lead = (n_atoms,) if item.per == "atom" else ()
    if item.integer:
        if not np.array_equal(array, np.round(array)):
            raise DataError(f"{label}: must be whole numbers")
        array = array.astype(np.int64)
    if item.name == "atomic_multipoles":
        return _multipoles(array, n_atoms, n_multipoles, label)
    shape = lead + tuple(size for size in item.shape if size is not None)
    if item.shape == (3, 3) and array.shape == (6,):
        xx, yy, zz, yz, xz, xy = array
        array = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    flat = (n_atoms, int(np.prod(shape[1:])))
    if item.per == "atom" and array.shape not in (shape, (*shape, 1), flat):
        raise DataError(f"{label}: has shape {array.shape}, expected {shape}")
    if array.size != int(np.prod(shape)):
        raise DataError(f"{label}: has {array.size} numbers, expected {int(np.prod(shape))}")
    return array.reshape(shape)


def _multipoles(array: Array, n_atoms: int, n_columns: int, label: str) -> Array:
    columns = array[:, None] if array.ndim == 1 else array
    if columns.ndim != 2 or len(columns) != n_atoms:
        raise DataError(f"{label}: has shape {array.shape}, expected ({n_atoms}, {n_columns})")
    if columns.shape[1] < n_columns:
        raise DataError(
            f"{label}: has {columns.shape[1]} columns, but atomic_multipoles_max_l needs"
            f" {n_columns}; lower atomic_multipoles_max_l"
        )
    return columns[:, :n_columns]


def _numeric(value: object, label: str) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{label}: is not numeric: {str(value)[:40]!r}")
    return _finite(array.astype(np.float64), label)


LARGEST = 1e18
"""Largest size of a number in a structure or label: its square is still finite in float32."""


def _finite(array: Array, label: str) -> Array:
    if not np.all(np.isfinite(array)):
        place = np.argwhere(~np.isfinite(array))[0]
        detail = f" at atom {place[0]}" if array.ndim == 2 and len(array) != 3 else ""
        raise DataError(f"{label}: has a value that is not finite{detail}; remove or mend it")
    if array.size and np.abs(array).max() > LARGEST:
        raise DataError(
            f"{label}: has the value {array.flat[np.abs(array).argmax()]:g}, which no quantity in "
            "eV, Angstrom and e has; remove or mend it"
        )
    return array


def _read_weights(config: Configuration, info: Mapping[str, object]) -> None:
    if CONFIG_WEIGHT_KEY in info:
        config.weight = float(_weight(config, CONFIG_WEIGHT_KEY, info[CONFIG_WEIGHT_KEY], ()))
    for name in WEIGHTED:
        key = weight_key(name)
        if key in info:
            shape = PROPERTIES[name].weight_shape
            config.weights[name] = _weight(config, key, info[key], shape)
    if "dipole" in config.properties and "dipole" not in config.weights:
        raise DataError(
            f"{config.where}: has a dipole but no config_dipole_weight; add"
            ' config_dipole_weight="1 1 1" (0 for a component that is not to be fitted)'
        )


def _weight(config: Configuration, key: str, value: object, shape: tuple[int, ...]) -> Array:
    array = _numeric(value, f"{config.where}: {key}")
    if array.size != int(np.prod(shape)):
        raise DataError(
            f"{config.where}: {key}: has {array.size} numbers, expected {int(np.prod(shape))}"
        )
    if np.any(array < 0):
        raise DataError(f"{config.where}: {key}: must not be negative, got {value}")
    return array.reshape(shape)


def _check_required(config: Configuration, options: DataOptions, keys: KeyMapping) -> None:
    if config.is_isolated_atom and not options.keep_isolated_atoms:
        return
    for name in options.required:
        if name not in config.properties:
            remedy = f"; give it, or default_{name}" if name in DEFAULT_INPUTS else ""
            raise DataError(
                f"{config.where}: lacks {keys.key(name)} ({name}), which is required"
                f"{remedy}; present: {', '.join(config.present_keys) or 'nothing'}"
            )
