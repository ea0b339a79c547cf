"""From ASE structures to batches: what a model reads besides the geometry, and its checks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from ase import Atoms

from fpmace.annotations import check_fields
from fpmace.data.configuration import LARGEST, Configuration, check_spin
from fpmace.data.keys import PROPERTIES
from fpmace.data.neighborhood import Array
from fpmace.data.options import DataOptions
from fpmace.errors import ConfigError, DataError, suggestion
from fpmace.models.base import Model


@dataclass(frozen=True)
class InputKeys:
    """Where the inputs stand in a structure.

    A key left at its name here may be absent (no charge, no field, level of the options); a key
    that was changed must be there.

    Attributes:
        total_charge: ``atoms.info``, e.
        external_field: ``atoms.info``, 3 numbers, V/Angstrom, gradient of the potential felt by
            positive charge (minus the physical field).
        fermi_level: ``atoms.info``, eV; the level held, or where the search for it starts.
        density: ``atoms.arrays``, [n_atoms, (l_max + 1)^2] e Angstrom^l, read only to start from.
        formal_charges, enegs, hardness: ``atoms.arrays``, [n_atoms] e, V, eV/e^2, for models that
            read them.
        cluster_id: ``atoms.arrays``, [n_atoms], with ``charge_per: fragment``.
        total_spin: ``atoms.info``, multiplicity 2S + 1.
    """

    total_charge: str = "total_charge"
    external_field: str = "external_field"
    fermi_level: str = "initial_fermi_level"
    density: str = "REF_atomic_multipoles"
    formal_charges: str = PROPERTIES["formal_charges"].key
    enegs: str = PROPERTIES["enegs"].key
    hardness: str = PROPERTIES["hardness"].key
    cluster_id: str = PROPERTIES["cluster_id"].key
    total_spin: str = "total_spin"

    def __post_init__(self) -> None:
        check_fields(self, "keys")


PER_ATOM_INPUTS = ("formal_charges", "enegs", "hardness", "cluster_id")
"""What a model may read of every atom besides the density to start from."""


@dataclass(frozen=True)
class ModelInputs:
    """Values read from one structure; None where not given."""

    total_charge: float
    total_spin: float
    external_field: Array
    fermi_level: float | None
    density: Array | None
    per_atom: Mapping[str, Array] = field(default_factory=dict)

    def same(self, other: ModelInputs | None) -> bool:
        """Whether a calculation with ``other`` would be the same."""
        return (
            other is not None
            and self.total_charge == other.total_charge
            and self.total_spin == other.total_spin
            and self.fermi_level == other.fermi_level
            and np.array_equal(self.external_field, other.external_field)
            and _same_array(self.density, other.density)
            and all(
                _same_array(value, other.per_atom.get(name))
                for name, value in self.per_atom.items()
            )
        )


def _same_array(first: Array | None, second: Array | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def check_structure(atoms: object, where: str) -> None:
    """Refuse what is no structure.

    Raises:
        ConfigError: naming what was given.
    """
    if not isinstance(atoms, Atoms):
        raise ConfigError(f"expects a structure (ase.Atoms), got {atoms!r:.60}", where=where)


def read_inputs(
    atoms: Atoms,
    keys: InputKeys,
    *,
    where: str,
    density_columns: int | None = None,
    need_fermi_level: bool = False,
    per_atom: Iterable[str] = (),
    required: Collection[str] = (),
    mace_names: bool = False,
    defaults: Mapping[str, float] = MappingProxyType({}),
) -> ModelInputs:
    """Read charge, spin, field and Fermi level from ``atoms.info``.

    Args:
        where: start of messages.
        density_columns: read the density too, with at least so many columns.
        need_fermi_level: whether the level must be given.
        per_atom: names in :data:`PER_ATOM_INPUTS` that must be there.
        required: inputs that must be given, in ``atoms.info`` or ``defaults``.
        mace_names: read charge and spin where they stand under mace-torch's names, ``charge`` and
            ``spin``, as well.
        defaults: what stands for charge and spin where they are absent.

    Raises:
        DataError: a value is missing that was asked for, not finite, or of the wrong shape.
    """
    found = {}
    for name, blank in (("total_charge", 0.0), ("total_spin", 1.0)):
        value = _state(atoms, keys, name, where, mace_names)
        if value is None and name in required and name not in defaults:
            raise DataError(
                f"{where}: {_missing('info', getattr(keys, name), atoms.info, name)}; the model "
                f"must be told: set it, or give default_{name} for all structures that lack it"
            )
        found[name] = float(defaults.get(name, blank) if value is None else value)
    external = _info(atoms, keys, "external_field", (3,), where)
    level = _info(atoms, keys, "fermi_level", (), where, required=need_fermi_level)
    density = None
    if density_columns is not None:
        density = _density(atoms, keys.density, density_columns, where)
    return ModelInputs(
        total_charge=found["total_charge"],
        total_spin=found["total_spin"],
        external_field=np.zeros(3) if external is None else external,
        fermi_level=None if level is None else float(level),
        density=density,
        per_atom={name: _column(atoms, getattr(keys, name), name, where) for name in per_atom},
    )


_MACE_NAMES = {"total_charge": "charge", "total_spin": "spin"}


def _state(atoms: Atoms, keys: InputKeys, name: str, where: str, mace_names: bool) -> Array | None:
    """Charge or spin from ``atoms.info``, None if absent."""
    key, other = getattr(keys, name), _MACE_NAMES[name]
    if mace_names and key == getattr(InputKeys, name) and key not in atoms.info:
        if other not in atoms.info:
            return None
        return _numbers(atoms.info[other], (), f"{where}: atoms.info['{other}'] ({name})")
    return _info(atoms, keys, name, (), where)


def overlooked_charge(atoms: Atoms, keys: InputKeys) -> str:
    """What to say of a total charge that stands where it is not read; empty if there is none."""
    if keys.total_charge in atoms.info:
        return ""
    remedy = f"0 is used; set atoms.info['{keys.total_charge}']"
    if "charge" in atoms.info:
        return f"atoms.info['charge'] is not read: {remedy}, or give charge_key='charge'"
    total = float(atoms.get_initial_charges().sum())
    if abs(total) > 1e-6:
        return f"initial charges of the atoms (sum {total:g} e) are not read: {remedy}"
    return ""


def data_options(model: Model) -> DataOptions:
    """Checks that structures must pass to suit a model."""
    density, electrostatics = model.density, model.electrostatics
    return DataOptions(
        multipoles_max_l=0 if density is None else density.max_l,
        pbc_handling=None if electrostatics is None else electrostatics.options.pbc_handling,
        allow_low_density_pbc=True,
        required=tuple(sorted(model.required_inputs)),
        elements=tuple(model.atomic_numbers.tolist()),
    )


def configuration(atoms: Atoms, inputs: ModelInputs, *, source: str, index: int) -> Configuration:
    """The structure with its inputs, as the data layer knows it.

    Raises:
        DataError: no atoms, or a coordinate that is not finite.
    """
    where = f"{source}: configuration {index}"
    if len(atoms) == 0:
        raise DataError(f"{where}: has no atoms")
    properties: dict[str, Array] = {
        "total_charge": np.asarray(inputs.total_charge, dtype=np.float64),
        "total_spin": np.asarray(inputs.total_spin, dtype=np.float64),
        "external_field": inputs.external_field,
    }
    if inputs.fermi_level is not None:
        properties["fermi_level"] = np.asarray(inputs.fermi_level, dtype=np.float64)
    if inputs.density is not None:
        properties["atomic_multipoles"] = inputs.density
    properties.update(inputs.per_atom)
    positions = np.array(atoms.positions, dtype=np.float64)
    cell = np.array(atoms.cell.array, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise DataError(f"{where}: positions: atom {bad[0]} has a coordinate that is not finite")
    if not np.isfinite(cell).all():
        raise DataError(f"{where}: cell: has a number that is not finite")
    found = Configuration(
        atomic_numbers=np.array(atoms.numbers, dtype=np.int64),
        positions=positions,
        cell=cell,
        pbc=np.array(atoms.pbc, dtype=bool),
        properties=properties,
        source=source,
        index=index,
    )
    check_spin(found)
    return found


def _info(
    atoms: Atoms,
    keys: InputKeys,
    name: str,
    shape: tuple[int, ...],
    where: str,
    *,
    required: bool = False,
) -> Array | None:
    key = getattr(keys, name)
    if key not in atoms.info:
        if required or key != getattr(InputKeys, name):
            raise DataError(f"{where}: {_missing('info', key, atoms.info, name)}")
        return None
    return _numbers(atoms.info[key], shape, f"{where}: atoms.info['{key}'] ({name})")


def _density(atoms: Atoms, key: str, columns: int, where: str) -> Array:
    if key not in atoms.arrays:
        raise DataError(f"{where}: {_missing('arrays', key, atoms.arrays, 'initial density')}")
    label = f"{where}: atoms.arrays['{key}'] (density)"
    values = np.asarray(atoms.arrays[key])
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] < columns:
        raise DataError(f"{label}: has shape {values.shape}, expected ({len(atoms)}, {columns})")
    return _numbers(values[:, :columns], (len(atoms), columns), label)


def _column(atoms: Atoms, key: str, name: str, where: str) -> Array:
    if key not in atoms.arrays:
        raise DataError(f"{where}: {_missing('arrays', key, atoms.arrays, name)}")
    return _numbers(atoms.arrays[key], (len(atoms),), f"{where}: atoms.arrays['{key}'] ({name})")


def _missing(place: str, key: str, found: Mapping[str, object], name: str) -> str:
    present = ", ".join(sorted(str(item) for item in found)) or "nothing"
    return (
        f"atoms.{place} has no '{key}' ({name})"
        f"{suggestion(key, [str(item) for item in found])} (present: {present})"
    )


def _numbers(value: object, shape: tuple[int, ...], label: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        array = np.asarray(str(value))
    if array.dtype.kind not in "iuf":
        raise DataError(f"{label}: is not numeric: {str(value)[:40]!r}")
    if array.size != int(np.prod(shape)):
        raise DataError(f"{label}: has {array.size} numbers, expected {int(np.prod(shape))}")
    if not np.isfinite(array).all():
        raise DataError(f"{label}: is not finite: {str(value)[:40]}")
    if array.size and np.abs(array).max() > LARGEST:
        raise DataError(f"{label}: is larger than {LARGEST:g}: {str(value)[:40]}")
    return array.astype(np.float64).reshape(shape)
