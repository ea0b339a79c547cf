"""The HDF5 layout, format version 1.

One file holds the configurations of one shard as flat arrays::

    attributes   format = "fpmace.dataset", format_version = 2, manifest (JSON, see ``Manifest``),
                 manifest_sha256
    /graphs/offsets   [G+1, 2] int64   first atom and first edge of each configuration
    /graphs/cell      [G, 3, 3]        Angstrom, rows
    /graphs/pbc       [G, 3] bool
    /graphs/ids       [G, 3] int64     config type and source (places in the manifest's lists),
                                       index in the source file
    /graphs/present   [G, P] bool      which property a configuration carries, columns named by
                                       the attribute ``columns``
    /graphs/weights   [G, W]           config_weight, then one weight per property (dipole: 3);
                                       columns named by the attribute ``columns``
    /graphs/group     [G] text         value of the ``split_by`` key
    /atoms/positions  [N, 3]           Angstrom
    /atoms/numbers    [N] uint8        atomic numbers
    /edges/index      [E, 2] int32     sender, receiver, counted within the configuration
    /edges/shifts     [E, 3] int16     lattice shifts of the edge
    /properties/NAME  [G, ...] or [N, ...]   values, zeros where absent; attributes per, unit,
                                       meaning, key

A property that no configuration carries has no array. Floating arrays are float64.
All arrays but the text have the checksums of HDF5 (fletcher32); those of earlier files have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import h5py
import numpy as np

from fpmace.data.keys import PROPERTIES, WEIGHTED

FORMAT = "fpmace.dataset"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 has texts of variable length in its attributes."""
CHECKSUM = "manifest_sha256"
"""Attribute with the checksum of the manifest; earlier files have none."""

PRESENT_COLUMNS: tuple[str, ...] = tuple(PROPERTIES)

CHUNK_ROWS = {"graphs": 512, "atoms": 1024, "edges": 8192}
"""Rows of a chunk by what a row stands for: small, as structures are read one at a time."""


def weight_columns() -> dict[str, slice]:
    """Return the columns of ``/graphs/weights`` that each weight takes."""
    columns = {"config": slice(0, 1)}
    start = 1
    for name in WEIGHTED:
        size = 1
        for length in PROPERTIES[name].weight_shape:
            size *= length
        columns[name] = slice(start, start + size)
        start += size
    return columns


def read_weight_columns(entries: Iterable[str]) -> dict[str, slice]:
    """Columns that a file says its weights take; an older file lacks the later properties."""
    columns = {}
    for entry in entries:
        name, start, stop = entry.split(":")
        columns[name] = slice(int(start), int(stop))
    return columns


def core_arrays() -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shape of a row and dtype of every array but the properties."""
    n_weights = max(columns.stop for columns in weight_columns().values())
    return {
        "graphs/offsets": ((2,), np.int64),
        "graphs/cell": ((3, 3), np.float64),
        "graphs/pbc": ((3,), np.bool_),
        "graphs/ids": ((3,), np.int64),
        "graphs/present": ((len(PRESENT_COLUMNS),), np.bool_),
        "graphs/weights": ((n_weights,), np.float64),
        "graphs/group": ((), h5py.string_dtype()),
        "atoms/positions": ((3,), np.float64),
        "atoms/numbers": ((), np.uint8),
        "edges/index": ((2,), np.int32),
        "edges/shifts": ((3,), np.int16),
    }


@dataclass
class Manifest:
    """What a shard says about itself.

    Attributes:
        r_max: cutoff of the stored neighbour lists, Angstrom.
        n_configurations, n_atoms, n_edges: totals, isolated atoms included.
        n_multipoles: columns of ``atomic_multipoles``.
        keys: key mapping the file was read with (``KeyMapping.to_json``), and the ``head`` that
            all configurations of the shard belong to.
        config_types: names that ``/graphs/ids`` points to.
        sources: source files: path, sha256, number of configurations.
        isolated: places of the ``IsolatedAtom`` configurations.
        isolated_atom_energies: eV by atomic number (text).
        info: counts over the other configurations (``DatasetInfo``).
        isolated_info: counts over the isolated atoms.
        split_by: key that ``/graphs/group`` was read from, if any.
        config_type_weights: factors used unless others are given at load.
        has_cluster_id: some configuration of the whole set has ``cluster_id``.
        fpmace_version: version that wrote the file.
    """

    r_max: float
    n_configurations: int = 0
    n_atoms: int = 0
    n_edges: int = 0
    n_multipoles: int = 4
    keys: dict[str, Any] = field(default_factory=dict)
    config_types: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    isolated: list[int] = field(default_factory=list)
    isolated_atom_energies: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    isolated_info: dict[str, Any] = field(default_factory=dict)
    split_by: str | None = None
    config_type_weights: dict[str, float] | None = None
    has_cluster_id: bool = False
    fpmace_version: str = ""

    def to_json(self) -> str:
        """Return JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Rebuild from ``to_json``."""
        data: Mapping[str, Any] = json.loads(text)
        return cls(**data)


_LONGEST_HEADER = 60_000
"""Bytes; HDF5 keeps up to 64 KiB of an attribute in the header of its object."""


def write_text(place: h5py.Group, name: str, text: str) -> None:
    """Write a text attribute.

    Of fixed length where it fits, since HDF5 may search a damaged heap of variable-length texts
    without end.
    """
    data = text.encode()
    place.attrs[name] = np.bytes_(data) if len(data) < _LONGEST_HEADER else text


def read_text(place: h5py.Group, name: str) -> str | None:
    """A text attribute of either length; None where there is none."""
    value = place.attrs.get(name)
    return value.decode() if isinstance(value, bytes) else value


def write_names(place: h5py.Dataset, name: str, names: Iterable[str]) -> None:
    """Write an attribute that is a list of names, of fixed length for the same reason."""
    place.attrs[name] = np.array([item.encode() for item in names], dtype=np.bytes_)


def read_names(place: h5py.Dataset, name: str) -> list[str]:
    """An attribute that is a list of names."""
    found = place.attrs[name]
    return [item.decode() if isinstance(item, bytes) else str(item) for item in found]
