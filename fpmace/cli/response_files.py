"""Files of response properties: extended XYZ, JSON lines, NumPy archive."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import ase.io
import numpy as np
from ase import Atoms
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.data.neighborhood import Array
from fpmace.errors import ConfigError
from fpmace.observables.perturbation import open_directions
from fpmace.observables.response import ResponseProperties
from fpmace.observables.vibrations import Vibrations

Record = dict[str, Array]

GRAPH = ("polarizability", "fermi_level_by_field", "capacitance", "hardness")
ATOM = ("born_charges", "forces_by_field", "fukui", "fukui_normalised", "density_by_field")
LISTS = ("density_by_positions", "fermi_level_by_positions", "hessian")
VIBRATIONS = ("frequencies", "intensities", "reduced_masses", "modes")
LARGE = ("density_by_positions", "hessian", "modes")
"""Fields of a record that extended XYZ has no place for."""


def records(found: ResponseProperties, batch: Batch) -> list[Record]:
    """One dictionary of arrays per graph."""
    starts, is_open = batch.ptr.tolist(), open_directions(batch)
    result: list[Record] = []
    for graph in range(batch.n_graphs):
        atoms = slice(starts[graph], starts[graph + 1])
        record: dict[str, Tensor] = {}
        if found.solution is not None:
            state = found.solution.require_state()
            record["fermi_level"] = state.fermi_level[graph]
            record["total_charge"] = state.density[atoms, 0].sum()
            record["open_directions"] = is_open[graph]
        for names, place in ((GRAPH, graph), (ATOM, atoms), (LISTS, graph)):
            for name in names:
                value = getattr(found, name)
                if value is not None:
                    record[name] = value[place]
        if found.vibrations:
            record |= _vibration_fields(found.vibrations[graph])
        result.append({name: value.cpu().numpy() for name, value in record.items()})
    return result


def _vibration_fields(item: Vibrations) -> dict[str, Tensor]:
    values = {name: getattr(item, name) for name in VIBRATIONS}
    return {name: value for name, value in values.items() if value is not None}


class ResponseFile(ABC):
    """A file under construction; structures are added in order."""

    def __init__(self, path: Path, prefix: str) -> None:
        self.path = path
        self.prefix = prefix

    @abstractmethod
    def add(self, atoms: Atoms, record: Record) -> None:
        """Append a structure and its properties."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""

    def __enter__(self) -> ResponseFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ExtxyzFile(ResponseFile):
    """The structures, with properties per graph in ``info`` and per atom in ``arrays``.

    Per-atom tensors are flattened: born_charges and forces_by_field to 9 columns (displacement
    or force component slow, field or dipole component fast), density_by_field likewise with the
    density component slow.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        super().__init__(path, prefix)
        self._mode = "w"

    def add(self, atoms: Atoms, record: Record) -> None:
        written = atoms.copy()
        for name, value in record.items():
            key = f"{self.prefix}{name}"
            if name in LARGE:
                continue
            if name in ATOM or name == "fermi_level_by_positions":
                written.arrays[key] = value.reshape(len(atoms), -1)
            elif name in ("frequencies", "intensities", "reduced_masses"):
                # A list of 9 numbers would be read back as a matrix.
                written.info[key] = "_JSON " + json.dumps([float(f"{x:.8g}") for x in value])
            else:
                written.info[key] = value if value.ndim else float(value)
        ase.io.write(self.path, written, format="extxyz", append=self._mode == "a")
        self._mode = "a"

    def close(self) -> None:
        """Every structure is written as it comes."""


class JsonLinesFile(ResponseFile):
    """One JSON object per line and structure."""

    def __init__(self, path: Path, prefix: str) -> None:
        super().__init__(path, prefix)
        self._stream = path.open("w", encoding="utf-8")

    def add(self, atoms: Atoms, record: Record) -> None:
        content = {
            "symbols": atoms.get_chemical_symbols(),
            "positions": atoms.positions.tolist(),
            **{f"{self.prefix}{name}": value.tolist() for name, value in record.items()},
        }
        self._stream.write(json.dumps(content) + "\n")

    def close(self) -> None:
        self._stream.close()


class NpzFile(ResponseFile):
    """Arrays named ``<index>/<property>``, written at the end."""

    def __init__(self, path: Path, prefix: str) -> None:
        super().__init__(path, prefix)
        self._arrays: Record = {}
        self._count = 0

    def add(self, atoms: Atoms, record: Record) -> None:
        fields = {"numbers": atoms.numbers, "positions": atoms.positions}
        fields |= {f"{self.prefix}{name}": value for name, value in record.items()}
        self._arrays |= {f"{self._count}/{name}": value for name, value in fields.items()}
        self._count += 1

    def close(self) -> None:
        with self.path.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **self._arrays)


_FORMATS: dict[str, type[ResponseFile]] = {
    ".xyz": ExtxyzFile,
    ".extxyz": ExtxyzFile,
    ".json": JsonLinesFile,
    ".jsonl": JsonLinesFile,
    ".npz": NpzFile,
}


def check_format(path: str, properties: list[str]) -> None:
    """Refuse a file name that says no format, or one that cannot hold what is asked for.

    Raises:
        ConfigError: naming the formats.
    """
    suffix = Path(path).suffix
    if suffix not in _FORMATS:
        raise ConfigError(
            f"'{path}': the suffix says the format; use one of {', '.join(_FORMATS)}",
            where="--output",
        )
    large = [name for name in properties if name in ("hessian", "density_by_positions")]
    if large and _FORMATS[suffix] is ExtxyzFile:
        raise ConfigError(
            f"extended XYZ cannot hold '{large[0]}'; use --output NAME.npz or NAME.json",
            where="--properties",
        )


def response_file(path: Path, output: str, prefix: str) -> ResponseFile:
    """Open ``path`` for writing in the format that the name ``output`` says."""
    return _FORMATS[Path(output).suffix](path, prefix)
