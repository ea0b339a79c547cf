"""What a shard must hold before it is read, and what is read before it is used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from fpmace.annotations import check_fields
from fpmace.archive import checksum
from fpmace.data.atomic_data import blank_value
from fpmace.data.configuration import LARGEST, Configuration
from fpmace.data.hdf5_schema import (
    CHECKSUM,
    FORMAT,
    READABLE_VERSIONS,
    Manifest,
    core_arrays,
    read_names,
    read_text,
    read_weight_columns,
)
from fpmace.data.info import DatasetInfo
from fpmace.data.keys import PROPERTIES
from fpmace.data.neighborhood import Array
from fpmace.errors import ConfigError, DataError

_FROM_FILE = ("graphs/present", "graphs/weights")
"""Arrays with as many columns as their attribute names."""


def open_file(path: Path) -> h5py.File:
    """Open for reading.

    Raises:
        DataError: if it is not HDF5, or cut.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        text = str(error)
        reason = "the file is truncated" if "truncated" in text else "not a readable HDF5 file"
        raise DataError(f"{path}: {reason}; run the preprocessing again") from None


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Say of everything that the library meets in a broken file that the file is damaged."""
    try:
        yield
    except (LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        _refuse(path, str(error) or type(error).__name__)


def _refuse(path: Path, reason: str) -> NoReturn:
    reason = " ".join(reason.split())[:160]
    raise DataError(f"{path}: is damaged ({reason}); run the preprocessing again") from None


def read_manifest(path: Path, file: h5py.File) -> Manifest:
    """Check what the file says about itself, and that its arrays are what it says.

    Raises:
        DataError: foreign file, other format version, damage, links out of the file.
    """
    with damage(path):
        if read_text(file, "format") != FORMAT:
            raise DataError(
                f"{path}: is HDF5 but not an fpmace data set; make it with fpmace-preprocess"
            )
        version = file.attrs.get("format_version")
        if not isinstance(version, (int, np.integer)) or version not in READABLE_VERSIONS:
            raise DataError(
                f"{path}: has schema version {version}, this fpmace reads versions "
                f"{' and '.join(map(str, READABLE_VERSIONS))}; run the preprocessing again"
            )
        text = read_text(file, "manifest") or ""
        if CHECKSUM in file.attrs and read_text(file, CHECKSUM) != checksum(text):
            _refuse(path, "the manifest does not match its checksum")
        manifest = Manifest.from_json(text)
        _check_manifest(path, manifest)
        _check_arrays(path, file, manifest)
    return manifest


def _check_manifest(path: Path, manifest: Manifest) -> None:
    try:
        check_fields(manifest, "manifest")
        for counts in (manifest.info, manifest.isolated_info):
            check_fields(DatasetInfo.from_json(counts), "manifest.info")
    except ConfigError as error:
        _refuse(path, str(error))
    elements = [*manifest.isolated_atom_energies, *manifest.info.get("elements", {})]
    whole = {
        "isolated": manifest.isolated == sorted(set(manifest.isolated))
        and all(0 <= place < manifest.n_configurations for place in manifest.isolated),
        "keys": isinstance(manifest.keys.get("keys"), dict),
        "sources": all(isinstance(entry.get("path"), str) for entry in manifest.sources),
        "elements": all(text.isdigit() and 0 < int(text) < 119 for text in elements),
        "n_multipoles": manifest.n_multipoles in (1, 4, 9),
        "info": manifest.info.get("n_configurations", 0) + len(manifest.isolated)
        == manifest.n_configurations,
    }
    for name, sound in whole.items():
        if not sound:
            _refuse(path, f"manifest: {name} is out of range")


def _check_arrays(path: Path, file: h5py.File, manifest: Manifest) -> None:
    rows = {
        "graphs": manifest.n_configurations,
        "atoms": manifest.n_atoms,
        "edges": manifest.n_edges,
    }
    columns = {
        "graphs/present": len(read_names(file["graphs/present"], "columns")),
        "graphs/weights": max(
            part.stop
            for part in read_weight_columns(read_names(file["graphs/weights"], "columns")).values()
        ),
    }
    for name, (row, dtype) in core_arrays().items():
        row = (columns[name],) if name in columns else row
        first = name.split("/")[0]
        n_rows = rows[first] + (name == "graphs/offsets")
        data = _checked(path, file, name, (n_rows, *row), dtype)
        if data.id.get_storage_size() < data.id.get_space().get_simple_extent_npoints():
            _refuse(path, f"{name} is not whole")
    for name in file.get("properties", {}):
        if name not in PROPERTIES:
            _refuse(path, f"unknown property {name[:40]!r}")
        blank = blank_value(name, 1, manifest.n_multipoles)
        per_atom = PROPERTIES[name].per == "atom"
        shape = blank.shape[1:] if per_atom else blank.shape
        n_rows = rows["atoms" if per_atom else "graphs"]
        _checked(path, file, f"properties/{name}", (n_rows, *shape), blank.dtype)
    offsets = file["graphs/offsets"][:]
    ends = [manifest.n_atoms, manifest.n_edges]
    if offsets[0].any() or offsets[-1].tolist() != ends or (np.diff(offsets, axis=0) < 0).any():
        _refuse(path, "offsets of the configurations do not fit the arrays")
    if (np.diff(offsets[:, 0]) < 1).any():
        _refuse(path, "a configuration without atoms")


def _checked(
    path: Path, file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any
) -> h5py.Dataset:
    """An array of the file itself, of the shape and kind that the format says."""
    group = name.split("/")[0]
    for link in (group, name):
        if not isinstance(file.get(link, getlink=True), h5py.HardLink):
            _refuse(path, f"{link} is missing or a link")
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        raise DataError(f"{path}: {name} is kept outside of the file, which is not read")
    if data.compression is not None:
        raise DataError(f"{path}: {name} is compressed, which fpmace-preprocess never does")
    if data.shape != shape or data.dtype.kind != np.dtype(dtype).kind:
        _refuse(path, f"{name} is {data.dtype} {data.shape}, not {np.dtype(dtype)} {shape}")
    return data


def check_configuration(path: Path, position: int, config: Configuration, edges: Array) -> None:
    """Refuse numbers that no preprocessing writes; ``edges`` are [n_edges, 2].

    Raises:
        DataError: naming file, configuration and array.
    """
    numbers, n_atoms = config.atomic_numbers, config.n_atoms
    fault = ""
    if numbers.min() < 1 or numbers.max() > 118:
        fault = "atoms/numbers"
    elif edges.size and (edges.min() < 0 or edges.max() >= n_atoms):
        fault = "edges/index"
    else:
        arrays = {
            "atoms/positions": config.positions,
            "graphs/cell": config.cell,
            "graphs/weights": np.asarray(config.weight),
            **{f"properties/{name}": value for name, value in config.properties.items()},
            **{f"weight of {name}": value for name, value in config.weights.items()},
        }
        for name, values in arrays.items():
            # Not a number compares as false.
            if not (np.abs(values) <= LARGEST).all():
                fault = name
                break
    if fault:
        _refuse(path, f"{fault} of configuration {position} is out of range")
