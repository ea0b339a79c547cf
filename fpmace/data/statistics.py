"""Numbers a model takes from its training set, gathered in a stream."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers as number_of_symbol
from ase.data import chemical_symbols

from fpmace.data.atomic_data import AtomicData
from fpmace.data.dataset import StructureDataset
from fpmace.data.joined import JoinedDataset
from fpmace.errors import ConfigError, DataError, suggestion
from fpmace.files import atomic_write

logger = logging.getLogger(__name__)

AtomicEnergies = str | Mapping[Any, float]

FLOOR = 1e-8
"""Smallest norm or scale returned, so that a division by it is safe."""


@dataclass(frozen=True)
class HeadStatistics:
    """What was derived from the configurations of one head; units as in ``DatasetStatistics``."""

    atomic_energies: dict[int, float]
    mean: float
    std: float
    rms: float
    n_configurations: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HeadStatistics:
        """Rebuild from the entries of ``DatasetStatistics.to_json``."""
        return cls(**{**data, "atomic_energies": _by_number(data["atomic_energies"])})


@dataclass(frozen=True)
class DatasetStatistics:
    """What was derived from a training set.

    Attributes:
        atomic_numbers: elements, ascending.
        atomic_energies: E0 in eV by atomic number.
        r_max: cutoff that ``avg_num_neighbors`` refers to, Angstrom.
        avg_num_neighbors: edges per atom, all atoms counted.
        mean: mean over configurations of (E - sum E0) / n_atoms, eV; 0 without energies.
        std: standard deviation of the same, eV; 1 without energies.
        rms: root mean square of all force components, eV/Angstrom; 1 without forces.
        n_configurations, n_atoms: size of the set.
        fermi_level_offset: mean reference Fermi level, eV; None without any.
        atom_density_scaling: RMS multipole component by atomic number; None without multipoles.
        field_feature_norms: RMS field feature, l-major, then width; None if not asked for.
        electrostatics: options that the norms were computed with.
        multipoles_max_l: degree up to which ``atom_density_scaling`` averages; None in files of
            earlier versions, which do not say.
        heads: by head, where there are several; ``atomic_energies``, ``mean``, ``std`` and
            ``rms`` above are then of no use.
    """

    atomic_numbers: tuple[int, ...]
    atomic_energies: dict[int, float]
    r_max: float
    avg_num_neighbors: float
    mean: float
    std: float
    rms: float
    n_configurations: int
    n_atoms: int
    fermi_level_offset: float | None = None
    atom_density_scaling: dict[int, float] | None = None
    field_feature_norms: tuple[float, ...] | None = None
    electrostatics: dict[str, object] | None = None
    multipoles_max_l: int | None = None
    heads: dict[str, HeadStatistics] | None = None

    def is_of(self, dataset: StructureDataset) -> bool:
        """Whether they were gathered over a data set of this size and these elements."""
        info = dataset.info
        mine = (self.n_configurations, self.n_atoms, list(self.atomic_numbers))
        heads = {name: item.n_configurations for name, item in (self.heads or {}).items()}
        theirs = (info.n_configurations, info.n_atoms, info.atomic_numbers)
        return (*mine, heads) == (*theirs, info.heads)

    def with_norms(self, norms: Iterable[float], electrostatics: Any) -> DatasetStatistics:
        """Return a copy with field feature norms and the electrostatics options behind them.

        Args:
            norms: from ``average_field_feature_norms``.
            electrostatics: the ``Electrostatics`` they were computed with.
        """
        record = electrostatics.record()
        return replace(self, field_feature_norms=tuple(norms), electrostatics=record)

    def with_fermi_level_offset(self, offset: float) -> DatasetStatistics:
        """Return a copy with another zero of the Fermi level, eV."""
        return replace(self, fermi_level_offset=float(offset))

    def to_json(self) -> str:
        """Return indented JSON text."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, where: str = "statistics") -> DatasetStatistics:
        """Rebuild from ``to_json``.

        Raises:
            DataError: the text is not such JSON.
        """
        try:
            data = json.loads(text)
            data["atomic_numbers"] = tuple(data["atomic_numbers"])
            for name in ("atomic_energies", "atom_density_scaling"):
                if data.get(name) is not None:
                    data[name] = _by_number(data[name])
            if data.get("heads") is not None:
                data["heads"] = {n: HeadStatistics.from_json(v) for n, v in data["heads"].items()}
            options = data.get("electrostatics") or {}
            if "pbc_method" in options:  # its name in files of earlier versions
                options["pbc_handling"] = options.pop("pbc_method")
            if data.get("field_feature_norms") is not None:
                data["field_feature_norms"] = tuple(data["field_feature_norms"])
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:100]
            raise DataError(
                f"{where}: is not a statistics file of fpmace-preprocess ({reason})"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write ``statistics.json``."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> DatasetStatistics:
        """Read ``statistics.json``."""
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        return cls.from_json(text, str(path))


def compute_statistics(
    dataset: StructureDataset, atomic_energies: AtomicEnergies = "IsolatedAtom"
) -> DatasetStatistics:
    """Gather the statistics of a training set in two passes over it.

    Args:
        dataset: the training set.
        atomic_energies: ``IsolatedAtom``, ``average``, or E0 in eV by atomic number or symbol.

    Raises:
        ConfigError, DataError: the atomic energies cannot be had, see ``find_atomic_energies``.
    """
    info = dataset.info
    energies = find_atomic_energies(dataset, atomic_energies)
    residual, forces = _Moments(), _Moments()
    fermi, scales = _Moments(), _ElementScales()
    for item in _items(dataset):
        if item.weights["energy"] > 0:
            base = sum(energies[z] for z in item.atomic_numbers.tolist())
            residual.add(np.array([(float(item.labels["energy"]) - base) / item.n_atoms]))
        if item.weights["forces"] > 0:
            forces.add(item.labels["forces"].numpy())
        if item.weights["fermi_level"] > 0:
            fermi.add(item.labels["fermi_level"].numpy())
        if item.weights["charges"] > 0:
            known = "atomic_multipoles" if item.weights["atomic_multipoles"] > 0 else "charges"
            scales.add(item.atomic_numbers.numpy(), item.labels[known].numpy())
    numbers = tuple(info.atomic_numbers)
    return DatasetStatistics(
        atomic_numbers=numbers,
        atomic_energies=energies,
        r_max=dataset.r_max,
        avg_num_neighbors=info.n_edges / info.n_atoms,
        mean=residual.mean if residual.count else 0.0,
        std=residual.std if residual.count > 1 else 1.0,
        rms=forces.rms if forces.count else 1.0,
        n_configurations=info.n_configurations,
        n_atoms=info.n_atoms,
        fermi_level_offset=fermi.mean if fermi.count else None,
        atom_density_scaling=scales.result(numbers) if scales.sums else None,
        multipoles_max_l=dataset.options.multipoles_max_l,
    )


def statistics_by_head(
    dataset: JoinedDataset, atomic_energies: Mapping[str, AtomicEnergies]
) -> DatasetStatistics:
    """Gather the statistics of a training set with several heads, each by itself.

    An element that a head has no configurations of gets the energy that ``atomic_energies``
    gives for it, or 0 eV.

    Args:
        atomic_energies: of each head, see :func:`compute_statistics`.
    """
    numbers = dataset.info.atomic_numbers
    heads: dict[str, HeadStatistics] = {}
    for name, part in dataset.parts.items():
        wanted = atomic_energies[name]
        found = compute_statistics(part, wanted)
        known = _explicit_energies(wanted) if isinstance(wanted, Mapping) else {}
        known |= found.atomic_energies
        missing = [chemical_symbols[z] for z in numbers if z not in known]
        if missing:
            logger.warning(
                "head %s: no atomic energy for %s, of which it has no data; 0 eV is used",
                name,
                ", ".join(missing),
            )
        energies = {z: known.get(z, 0.0) for z in numbers}
        heads[name] = HeadStatistics(
            energies, found.mean, found.std, found.rms, found.n_configurations
        )
    first = next(iter(heads.values()))
    return replace(compute_statistics(dataset, first.atomic_energies), heads=heads)


def _by_number(values: Mapping[str, Any]) -> dict[int, float]:
    return {int(z): float(value) for z, value in values.items()}


def find_atomic_energies(
    dataset: StructureDataset, atomic_energies: AtomicEnergies
) -> dict[int, float]:
    """Return E0 in eV for every element of the data set.

    Args:
        dataset: the training set.
        atomic_energies: ``IsolatedAtom``: from configurations of that type; ``average``: least
            squares of the energies over the compositions (of smallest norm, with a warning, when
            they do not fix each element); or a mapping from atomic number or symbol.

    Raises:
        ConfigError: an unknown word, symbol or value.
        DataError: an element has no energy.
    """
    numbers = dataset.info.atomic_numbers
    if isinstance(atomic_energies, Mapping):
        found = _explicit_energies(atomic_energies)
        source, remedy = "E0s", "add it"
    elif atomic_energies.lower() == "isolatedatom":
        found = dataset.isolated_atom_energies
        source = f"{dataset.path}: no configuration with config_type=IsolatedAtom and an energy"
        remedy = 'add one, or give E0s: average, or E0s: "{number: energy}"'
    elif atomic_energies.lower() == "average":
        return _average_energies(dataset)
    else:
        raise ConfigError(
            f"expected IsolatedAtom, average or a mapping, got '{atomic_energies}'"
            + suggestion(atomic_energies, ["IsolatedAtom", "average"]),
            where="E0s",
        )
    missing = [chemical_symbols[z] for z in numbers if z not in found]
    if missing:
        raise DataError(f"{source}: no atomic energy for {', '.join(missing)}; {remedy}")
    return {z: float(found[z]) for z in numbers}


def _explicit_energies(mapping: Mapping[Any, float]) -> dict[int, float]:
    energies = {}
    for name, value in mapping.items():
        text = str(name)
        number = int(text) if text.isdigit() else number_of_symbol.get(text, 0)
        if not 0 < number < len(chemical_symbols):
            raise ConfigError(f"'{name}' is neither an atomic number nor a symbol", where="E0s")
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise ConfigError(f"must be a number in eV, got {value!r}", where=f"E0s.{name}")
        energies[number] = float(value)
    return energies


def _average_energies(dataset: StructureDataset) -> dict[int, float]:
    numbers = dataset.info.atomic_numbers
    table: dict[tuple[int, ...], list[float]] = {}
    for item in _items(dataset):
        if item.weights["energy"] > 0:
            present = item.atomic_numbers.numpy()
            key = tuple(int(np.count_nonzero(present == z)) for z in numbers)
            entry = table.setdefault(key, [0.0, 0.0])
            entry[0] += 1.0
            entry[1] += float(item.labels["energy"])
    if not table:
        raise DataError(
            f"{dataset.path}: E0s: average needs energies, but no configuration has"
            f" {dataset.options.keys.key('energy')}; give E0s as a mapping"
        )
    weight = np.sqrt([count for count, _ in table.values()])
    counts = np.array(list(table), dtype=np.float64)
    means = np.array([total / count for count, total in table.values()])
    solution, _, rank, _ = np.linalg.lstsq(counts * weight[:, None], means * weight, rcond=1e-10)
    if rank < len(numbers):
        logger.warning(
            "%s: E0s: average: the compositions fix %d of %d atomic energies; the solution of"
            " smallest norm is used",
            dataset.path,
            rank,
            len(numbers),
        )
    return dict(zip(numbers, solution.tolist(), strict=True))


class _Moments:
    """Count, sum and sum of squares of numbers met one array at a time, about the first one."""

    def __init__(self) -> None:
        self.count, self.origin, self.total, self.square = 0, 0.0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        if self.count == 0:
            self.origin = float(values.flat[0])
        shifted = values - self.origin
        self.count += values.size
        self.total += float(shifted.sum())
        self.square += float((shifted**2).sum())

    @property
    def mean(self) -> float:
        return self.origin + self.total / self.count

    @property
    def std(self) -> float:
        shift = self.total / self.count
        return math.sqrt(max(self.square / self.count - shift**2, 0.0))

    @property
    def rms(self) -> float:
        return math.sqrt(self.std**2 + self.mean**2)


class _ElementScales:
    """RMS multipole component per element, over atoms and components."""

    def __init__(self) -> None:
        self.sums: dict[int, list[float]] = {}

    def add(self, numbers: np.ndarray, multipoles: np.ndarray) -> None:
        for number in np.unique(numbers).tolist():
            values = multipoles[numbers == number]
            entry = self.sums.setdefault(number, [0.0, 0.0])
            entry[0] += float((values**2).sum())
            entry[1] += values.size

    def result(self, numbers: Iterable[int]) -> dict[int, float]:
        scales = {}
        for number in numbers:
            square, count = self.sums.get(number, (1.0, 1.0))
            scales[number] = max(math.sqrt(square / count), FLOOR)
        return scales


def _items(dataset: StructureDataset) -> Iterator[AtomicData]:
    for index in range(len(dataset)):
        yield dataset[index]
