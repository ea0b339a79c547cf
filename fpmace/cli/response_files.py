"""Files of response properties: extended XYZ, JSON lines, NumPy archive."""

from __future__ import annotations

import base64
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.data.neighborhood import Array
from fpmace.errors import ConfigError
from fpmace.evaluation.writer import text_of
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


class ResponseFormat(ABC):
    """How structures and their properties are written, one text for each."""

    convert: Callable[[Path, Path], None] | None = None
    """Makes the file of all texts, one after the other; None: they are the file."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    @abstractmethod
    def text(self, atoms: Atoms, record: Record) -> str:
        """The text of a structure."""


class Extxyz(ResponseFormat):
    """The structures, with properties per graph in ``info`` and per atom in ``arrays``.

    Per-atom tensors are flattened: born_charges and forces_by_field to 9 columns (displacement
    or force component slow, field or dipole component fast), density_by_field likewise with the
    density component slow.
    """

    def text(self, atoms: Atoms, record: Record) -> str:
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
        return text_of(written)


class JsonLines(ResponseFormat):
    """One JSON object per line and structure."""

    def text(self, atoms: Atoms, record: Record) -> str:
        content = {
            "symbols": atoms.get_chemical_symbols(),
            "positions": atoms.positions.tolist(),
            **{f"{self.prefix}{name}": value.tolist() for name, value in record.items()},
        }
        return json.dumps(content) + "\n"


class Npz(ResponseFormat):
    """Arrays named ``<index>/<property>``; until all are known, base64 in JSON lines."""

    def text(self, atoms: Atoms, record: Record) -> str:
        fields = {"numbers": atoms.numbers, "positions": atoms.positions}
        fields |= {f"{self.prefix}{name}": value for name, value in record.items()}
        return json.dumps({name: _packed(value) for name, value in fields.items()}) + "\n"

    @staticmethod
    def convert(texts: Path, output: Path) -> None:
        arrays: Record = {}
        with texts.open(encoding="utf-8") as lines:
            for count, line in enumerate(lines):
                for name, text in json.loads(line).items():
                    packed = io.BytesIO(base64.b64decode(text))
                    arrays[f"{count}/{name}"] = np.lib.format.read_array(packed)
        with output.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)


def _packed(value: Array) -> str:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(value), allow_pickle=False)
    return base64.b64encode(stream.getvalue()).decode()


_FORMATS: dict[str, type[ResponseFormat]] = {
    ".xyz": Extxyz,
    ".extxyz": Extxyz,
    ".json": JsonLines,
    ".jsonl": JsonLines,
    ".npz": Npz,
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
    if large and _FORMATS[suffix] is Extxyz:
        raise ConfigError(
            f"extended XYZ cannot hold '{large[0]}'; use --output NAME.npz or NAME.json",
            where="--properties",
        )


def response_format(output: str, prefix: str) -> ResponseFormat:
    """The format that the name ``output`` says."""
    return _FORMATS[Path(output).suffix](prefix)
