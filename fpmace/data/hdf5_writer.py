"""Writing HDF5 shards in a stream, under a temporary name until they are whole."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike

import fpmace
from fpmace.archive import checksum
from fpmace.data.atomic_data import blank_value
from fpmace.data.configuration import Configuration
from fpmace.data.hdf5_schema import (
    CHECKSUM,
    CHUNK_ROWS,
    FORMAT,
    FORMAT_VERSION,
    PRESENT_COLUMNS,
    Manifest,
    core_arrays,
    weight_columns,
    write_names,
    write_text,
)
from fpmace.data.info import DatasetInfo
from fpmace.data.isolated import add_isolated_energy
from fpmace.data.keys import PROPERTIES, WEIGHTED
from fpmace.data.neighborhood import Array
from fpmace.data.options import DataOptions
from fpmace.files import atomic_write


class _PatientFile(io.FileIO):
    """Keeps an error of writing for :meth:`check`: the HDF5 library crashes on one."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            left = memoryview(data).cast("B")
            while self.fault is None and len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.fault = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.fault = self.fault or error
            return size or 0

    def check(self) -> None:
        """Raise the first error."""
        if self.fault is not None:
            raise self.fault


class ShardWriter:
    """Appends configurations to one shard; use ``open_shard`` to get one."""

    def __init__(
        self,
        file: h5py.File,
        stream: _PatientFile,
        r_max: float,
        options: DataOptions,
        sources: list[dict[str, object]],
        buffer_size: int = 256,
    ) -> None:
        self.file, self.options, self.buffer_size = file, options, buffer_size
        self._stream = stream
        self.manifest = Manifest(
            r_max=float(r_max),
            n_multipoles=options.n_multipoles,
            keys=options.keys.to_json(),
            sources=sources,
            split_by=options.split_by,
            config_type_weights=(
                dict(options.config_type_weights) if options.config_type_weights else None
            ),
            fpmace_version=fpmace.__version__,
        )
        self.info, self.isolated_info = DatasetInfo(), DatasetInfo()
        self.energies: dict[int, float] = {}
        self._buffer: list[tuple[Configuration, Array, Array]] = []
        for path, (row, dtype) in core_arrays().items():
            self._create(path, path.split("/")[0], row, dtype)
        self._offset = np.zeros((1, 2), dtype=np.int64)
        self._append("graphs/offsets", self._offset)

    def add(self, config: Configuration, edge_index: Array, unit_shifts: Array) -> None:
        """Append one checked configuration with its neighbour list."""
        manifest = self.manifest
        if config.is_isolated_atom:
            add_isolated_energy(self.energies, config)
            manifest.isolated.append(manifest.n_configurations)
            self.isolated_info.add(config, edge_index.shape[1])
        else:
            self.info.add(config, edge_index.shape[1])
        manifest.n_configurations += 1
        manifest.n_atoms += config.n_atoms
        manifest.n_edges += edge_index.shape[1]
        self._buffer.append((config, edge_index, unit_shifts))
        if len(self._buffer) >= self.buffer_size:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        if not self._buffer:
            return
        configs = [entry[0] for entry in self._buffer]
        sizes = np.array([(c.n_atoms, e.shape[1]) for c, e, _ in self._buffer], dtype=np.int64)
        offsets = self._offset + np.cumsum(sizes, axis=0)
        self._offset = offsets[-1:]
        self._append("graphs/offsets", offsets)
        self._append("graphs/cell", np.stack([c.cell for c in configs]))
        self._append("graphs/pbc", np.stack([c.pbc for c in configs]))
        self._append("graphs/ids", np.array([self._ids(c) for c in configs], dtype=np.int64))
        present = [[name in c.properties for name in PRESENT_COLUMNS] for c in configs]
        self._append("graphs/present", np.array(present, dtype=bool))
        self._append("graphs/weights", np.stack([_weights(c) for c in configs]))
        self._append("graphs/group", np.array([c.group for c in configs], dtype=object))
        self._append("atoms/positions", np.concatenate([c.positions for c in configs]))
        numbers = np.concatenate([c.atomic_numbers for c in configs])
        self._append("atoms/numbers", numbers.astype(np.uint8))
        edges = np.concatenate([entry[1].T for entry in self._buffer])
        self._append("edges/index", edges.astype(np.int32))
        shifts = np.concatenate([entry[2] for entry in self._buffer])
        self._append("edges/shifts", shifts.astype(np.int16))
        self._append_properties(configs, int(offsets[-1, 0]))
        self._buffer.clear()
        self._stream.check()

    def finish(self) -> None:
        """Write the manifest; the shard is complete after it."""
        self.flush()
        manifest = self.manifest
        manifest.info = self.info.to_json()
        manifest.isolated_info = self.isolated_info.to_json()
        manifest.isolated_atom_energies = {str(z): e for z, e in self.energies.items()}
        manifest.has_cluster_id = "cluster_id" in self.file.get("properties", {})
        write_names(self.file["graphs/present"], "columns", PRESENT_COLUMNS)
        columns = [f"{n}:{s.start}:{s.stop}" for n, s in weight_columns().items()]
        write_names(self.file["graphs/weights"], "columns", columns)
        write_text(self.file, "format", FORMAT)
        self.file.attrs["format_version"] = FORMAT_VERSION
        write_text(self.file, "manifest", manifest.to_json())
        write_text(self.file, CHECKSUM, checksum(manifest.to_json()))

    def _ids(self, config: Configuration) -> tuple[int, int, int]:
        types, sources = self.manifest.config_types, self.manifest.sources
        if config.config_type not in types:
            types.append(config.config_type)
        paths = [entry["path"] for entry in sources]
        if config.source not in paths:
            sources.append({"path": config.source})
            paths.append(config.source)
        return types.index(config.config_type), paths.index(config.source), config.index

    def _append_properties(self, configs: list[Configuration], n_atoms: int) -> None:
        for name, item in PROPERTIES.items():
            path = f"properties/{name}"
            if path not in self.file and not any(name in c.properties for c in configs):
                continue
            rows = [
                c.properties.get(name, blank_value(name, c.n_atoms, self.options.n_multipoles))
                for c in configs
            ]
            values = np.concatenate(rows) if item.per == "atom" else np.stack(rows)
            total = n_atoms if item.per == "atom" else len(self.file["graphs/cell"])
            if path not in self.file:
                self._create(path, f"{item.per}s", values.shape[1:], values.dtype)
                self.file[path].attrs.update(
                    per=item.per,
                    unit=item.unit,
                    meaning=item.meaning,
                    key=self.options.keys.key(name),
                )
            self._append(path, values, first_row=total - len(values))

    def _create(self, path: str, kind: str, row: tuple[int, ...], dtype: DTypeLike) -> None:
        self.file.create_dataset(
            path,
            shape=(0, *row),
            maxshape=(None, *row),
            chunks=(CHUNK_ROWS[kind], *row),
            dtype=dtype,
            fletcher32=np.dtype(dtype).kind != "O",
        )

    def _append(self, path: str, values: Array, first_row: int | None = None) -> None:
        """Append rows; rows before ``first_row`` that were never written read as zero."""
        data = self.file[path]
        start = len(data) if first_row is None else first_row
        data.resize(start + len(values), axis=0)
        data[start:] = values


def _weights(config: Configuration) -> Array:
    parts = [np.atleast_1d(config.weight)]
    parts += [np.atleast_1d(config.property_weight(name)) for name in WEIGHTED]
    return np.concatenate(parts).astype(np.float64)


@contextmanager
def open_shard(
    path: str | Path,
    r_max: float,
    options: DataOptions,
    sources: list[dict[str, object]] | None = None,
) -> Iterator[ShardWriter]:
    """Yield a writer; the shard appears at ``path`` only when the block ends without an error.

    Args:
        path: the shard to write.
        r_max: cutoff of the neighbour lists, Angstrom.
        options: key mapping, multipole columns and weights that the shard records.
        sources: description of the source files (path, sha256, n_configurations).
    """
    with atomic_write(path) as temporary, _PatientFile(temporary) as stream:
        try:
            with h5py.File(stream, "w") as file:
                writer = ShardWriter(file, stream, r_max, options, list(sources or []))
                yield writer
                writer.finish()
        finally:
            # What was not written cannot be read back: the first error says why.
            stream.check()
