"""Reading HDF5 shards lazily: memory does not grow with the size of the set."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
from ase.data import chemical_symbols
from torch.utils.data import Dataset

from fpmace.data.atomic_data import AtomicData, atomic_data
from fpmace.data.configuration import Configuration
from fpmace.data.hdf5_checks import check_configuration, damage, open_file, read_manifest
from fpmace.data.hdf5_schema import Manifest, read_names, read_weight_columns
from fpmace.data.heads import Head
from fpmace.data.info import DatasetInfo
from fpmace.data.keys import PROPERTIES
from fpmace.data.neighborhood import Array
from fpmace.data.options import DEFAULT_INPUTS, DataOptions
from fpmace.errors import DataError

T = TypeVar("T")

_OPEN_SHARDS: weakref.WeakSet[Shard] = weakref.WeakSet()


def _close_before_fork() -> None:
    """Close every shard, so that no open HDF5 file is shared with a child process."""
    for shard in list(_OPEN_SHARDS):
        shard.close()


os.register_at_fork(before=_close_before_fork)


class Shard:
    """One HDF5 file, opened when first read and again after a fork or a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._arrays: dict[str, h5py.Dataset] = {}
        try:
            self.manifest = read_manifest(path, self.file)
            self._present = read_names(self.file["graphs/present"], "columns")
            self._columns = read_weight_columns(read_names(self.file["graphs/weights"], "columns"))
        except BaseException:
            self.close()
            raise

    @property
    def file(self) -> h5py.File:
        """The open file."""
        if self._file is None:
            self._file = open_file(self.path)
            _OPEN_SHARDS.add(self)
        return self._file

    def close(self) -> None:
        """Close the file; it opens again when read."""
        if self._file is not None:
            self._arrays.clear()
            self._file.close()
            self._file = None

    def array(self, name: str) -> h5py.Dataset:
        """Return an array of the file; looking it up anew costs as much as reading a row."""
        if name not in self._arrays:
            self._arrays[name] = self.file[name]
        return self._arrays[name]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None, "_arrays": {}}

    def configuration(self, position: int) -> tuple[Configuration, tuple[Array, Array]]:
        """Return the configuration stored at ``position`` and its neighbour list.

        Raises:
            DataError: if what is stored there is damaged.
        """
        with damage(self.path):
            return self._configuration(position)

    def _configuration(self, position: int) -> tuple[Configuration, tuple[Array, Array]]:
        array, manifest = self.array, self.manifest
        (atom, edge), (atom_end, edge_end) = array("graphs/offsets")[position : position + 2]
        config_type, source, index = array("graphs/ids")[position].tolist()
        weights = array("graphs/weights")[position]
        config = Configuration(
            atomic_numbers=array("atoms/numbers")[atom:atom_end].astype(np.int64),
            positions=array("atoms/positions")[atom:atom_end],
            cell=array("graphs/cell")[position],
            pbc=array("graphs/pbc")[position],
            weight=float(weights[0]),
            config_type=manifest.config_types[config_type],
            source=manifest.sources[source]["path"],
            index=index,
        )
        present = array("graphs/present")[position]
        for name, flag in zip(self._present, present.tolist(), strict=True):
            if flag:
                self._read_property(config, name, position, slice(atom, atom_end))
                self._read_weight(config, name, weights)
        index_rows = array("edges/index")[edge:edge_end]
        check_configuration(self.path, position, config, index_rows)
        edges = index_rows.T.astype(np.int64), array("edges/shifts")[edge:edge_end]
        return config, edges

    def _read_property(
        self, config: Configuration, name: str, position: int, atoms: slice
    ) -> None:
        data = self.array(f"properties/{name}")
        value = data[atoms] if PROPERTIES[name].per == "atom" else data[position]
        config.properties[name] = np.asarray(value)

    def _read_weight(self, config: Configuration, name: str, weights: Array) -> None:
        if name in self._columns:
            shape = PROPERTIES[name].weight_shape
            config.weights[name] = weights[self._columns[name]].reshape(shape)

    def groups(self) -> list[str]:
        """Return the ``split_by`` value of every configuration."""
        return [text.decode() for text in self.array("graphs/group")[:]]

    def pair_ids(self) -> list[int]:
        """Return the ``pair_id`` of every configuration, -1 where it has none."""
        blank = PROPERTIES["pair_id"].blank
        found = np.full(self.manifest.n_configurations, blank)
        if "properties/pair_id" in self.file:
            given = self.array("graphs/present")[:, self._present.index("pair_id")]
            values = self.array("properties/pair_id")[:]
            found[: len(values)][given[: len(values)]] = values[given[: len(values)]]
        return [int(number) for number in found]

    def sizes(self) -> list[tuple[int, int]]:
        """Return the numbers of atoms and of edges of every configuration."""
        steps = np.diff(self.array("graphs/offsets")[:], axis=0)
        return [(int(atoms), int(edges)) for atoms, edges in steps]

    def config_types(self) -> list[str]:
        """Return the config type of every configuration."""
        names = self.manifest.config_types
        return [names[code] for code in self.array("graphs/ids")[:, 0].tolist()]


class Hdf5Dataset(Dataset[AtomicData]):
    """One HDF5 file or a directory of shards; see ``StructureDataset``.

    Args:
        path: file or directory.
        r_max: cutoff the neighbour lists must have been made for, Angstrom.
        options: weights and checks; the key mapping, if explicit, must be that of the file.
        indices: members to show, all by default.

    Raises:
        DataError: truncated or foreign file, other format version, other r_max, other keys, or
            a configuration that the options refuse.
    """

    def __init__(
        self,
        path: str | Path,
        r_max: float,
        options: DataOptions,
        indices: Sequence[int] | None = None,
    ) -> None:
        self.path, self.r_max, self.options = str(path), float(r_max), options
        self.shards = _shards_of(path, options)
        for shard in self.shards:
            _check_shard(shard, self.r_max, options)
        self._load_options = _with_stored_weights(options, self.shards[0].manifest)
        self._with_cluster_id = any(shard.manifest.has_cluster_id for shard in self.shards)
        keep = options.keep_isolated_atoms
        self._isolated = [np.array([] if keep else s.manifest.isolated) for s in self.shards]
        counts = [
            shard.manifest.n_configurations - len(isolated)
            for shard, isolated in zip(self.shards, self._isolated, strict=True)
        ]
        self._ends = np.cumsum(counts)
        self._indices = None if indices is None else np.asarray(indices, dtype=np.int64)
        self.isolated_atom_energies = _isolated_energies(self.shards)
        self.info = self._stored_info() if indices is None else self._count_info()
        self.info.properties |= dict.fromkeys(options.defaults, self.info.n_configurations)
        if len(self) == 0:
            raise DataError(f"{self.path}: holds no configurations to train on or evaluate")
        check_info(self.info, options, self.path)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._indices is None else len(self._indices)

    def __getitem__(self, index: int) -> AtomicData:
        config, edges = self._read(index)
        return atomic_data(
            config,
            self.r_max,
            self._load_options,
            index=config.index,
            edges=edges,
            with_cluster_id=self._with_cluster_id,
        )

    def groups(self) -> list[str]:
        """Return the ``split_by`` value of each member."""
        return self._members([shard.groups() for shard in self.shards])

    def config_types(self) -> list[str]:
        """Return the ``config_type`` of each member."""
        return self._members([shard.config_types() for shard in self.shards])

    def pair_ids(self) -> list[int]:
        """Return the ``pair_id`` of each member, -1 where it has none."""
        return self._members([shard.pair_ids() for shard in self.shards])

    def heads(self) -> list[str]:
        """Return the head of each member."""
        return [self.options.head or ""] * len(self)

    def sizes(self) -> list[tuple[int, int]]:
        """Return the numbers of atoms and of edges of each member."""
        return self._members([shard.sizes() for shard in self.shards])

    def subset(self, indices: Sequence[int]) -> Hdf5Dataset:
        """Return the members at ``indices``; their counts are gathered in one pass."""
        chosen = [int(i) if self._indices is None else int(self._indices[i]) for i in indices]
        return Hdf5Dataset(self.path, self.r_max, self.options, chosen)

    def _read(self, index: int) -> tuple[Configuration, tuple[Array, Array]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        member = int(index) if self._indices is None else int(self._indices[index])
        number = int(np.searchsorted(self._ends, member, side="right"))
        place = member - (int(self._ends[number - 1]) if number else 0)
        isolated = self._isolated[number]
        place += int(np.searchsorted(isolated - np.arange(len(isolated)), place, side="right"))
        config, edges = self.shards[number].configuration(place)
        for name, value in self.options.defaults.items():
            config.properties.setdefault(name, np.asarray(value, dtype=np.float64))
        config.head = self.options.head or ""
        width = self.options.n_multipoles
        if "atomic_multipoles" in config.properties:
            columns = config.properties["atomic_multipoles"][:, :width]
            config.properties["atomic_multipoles"] = columns
        return config, edges

    def _members(self, per_shard: list[list[T]]) -> list[T]:
        values: list[T] = []
        for entries, isolated in zip(per_shard, self._isolated, strict=True):
            hidden = set(isolated.tolist())
            values.extend(entry for i, entry in enumerate(entries) if i not in hidden)
        return values if self._indices is None else [values[i] for i in self._indices]

    def _stored_info(self) -> DatasetInfo:
        info = DatasetInfo()
        for shard in self.shards:
            info = info.merge(DatasetInfo.from_json(shard.manifest.info))
            if self.options.keep_isolated_atoms:
                info = info.merge(DatasetInfo.from_json(shard.manifest.isolated_info))
        name = self.options.head
        return replace(info, heads={} if name is None else {name: info.n_configurations})

    def _count_info(self) -> DatasetInfo:
        info = DatasetInfo()
        for index in range(len(self)):
            config, edges = self._read(index)
            info.add(config, edges[0].shape[1])
        return info


def shard_paths(path: str | Path) -> list[Path]:
    """Return the file itself, or the ``.h5`` files of a directory in numerical order.

    Raises:
        DataError: nothing is there.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or directory")
    shards = [item for item in path.iterdir() if item.suffix in (".h5", ".hdf5")]
    if not shards:
        folders = [
            item.name for item in path.iterdir() if item.is_dir() and any(item.glob("*.h5"))
        ]
        hint = f"; did you mean {path / sorted(folders)[0]}?" if folders else ""
        raise DataError(f"{path}: holds no .h5 shards{hint}")

    def number(item: Path) -> tuple[list[int], str]:
        return [int(digits) for digits in re.findall(r"\d+", item.stem)], item.name

    return sorted(shards, key=number)


def heads_of_shards(path: str | Path, heads: Sequence[Head]) -> list[str]:
    """The heads that the shards of a data set belong to, in the order of ``heads``.

    Raises:
        DataError: a shard is of another head.
    """
    found = {_head_of(Shard(shard), heads) for shard in shard_paths(path)}
    return [head.name for head in heads if head.name in found]


def _head_of(shard: Shard, heads: Sequence[Head]) -> str:
    name = shard.manifest.keys.get("head", "Default")
    shard.close()
    known = [head.name for head in heads]
    if name not in known:
        raise DataError(
            f"{shard.path}: was preprocessed for the head '{name}', but heads has "
            f"{', '.join(known)}; name it as heads.NAME.train_file and the like, or preprocess "
            "again with these heads"
        )
    return str(name)


def _shards_of(path: str | Path, options: DataOptions) -> list[Shard]:
    """The shards of the head that the options name; all, if they are of one.

    Raises:
        DataError: the shards are of several heads, and none is named.
    """
    shards = [Shard(shard) for shard in shard_paths(path)]
    heads = list(dict.fromkeys(s.manifest.keys.get("head", "Default") for s in shards))
    if len(heads) == 1:
        return shards
    if options.head not in heads:
        raise DataError(
            f"{path}: holds shards of the heads {', '.join(map(str, heads))}; give heads with "
            "these names"
        )
    return [shard for shard in shards if shard.manifest.keys.get("head") == options.head]


def check_info(info: DatasetInfo, options: DataOptions, path: str) -> None:
    """Apply the checks that depend on the model to a data set checked earlier."""
    if options.elements is not None:
        for number in info.atomic_numbers:
            if number not in options.elements:
                known = ", ".join(chemical_symbols[z] for z in options.elements)
                raise DataError(
                    f"{path}: {info.first_element[str(number)]}: species: element"
                    f" {chemical_symbols[number]} is not in the model (it has {known})"
                )
    if options.pbc_handling is not None and options.pbc_handling in info.pbc_problems:
        raise DataError(f"{path}: {info.pbc_problems[options.pbc_handling]}")
    for name in options.required:
        missing = info.n_configurations - info.properties.get(name, 0)
        if missing:
            remedy = f"; give it, or default_{name}" if name in DEFAULT_INPUTS else ""
            raise DataError(
                f"{path}: {missing} of {info.n_configurations} configurations lack"
                f" {options.keys.key(name)} ({name}), which is required{remedy}"
            )


def _check_shard(shard: Shard, r_max: float, options: DataOptions) -> None:
    manifest, path = shard.manifest, shard.path
    if abs(manifest.r_max - r_max) > 1e-9:
        raise DataError(
            f"{path}: neighbour lists were made for r_max {manifest.r_max:g}, but r_max is"
            f" {r_max:g}; preprocess with --r_max {r_max:g} or set r_max to {manifest.r_max:g}"
        )
    if manifest.n_multipoles < options.n_multipoles:
        raise DataError(
            f"{path}: was preprocessed with {manifest.n_multipoles} multipole columns,"
            f" atomic_multipoles_max_l {options.multipoles_max_l} needs {options.n_multipoles};"
            f" preprocess with --atomic_multipoles_max_l {options.multipoles_max_l}"
        )
    stored = manifest.keys["keys"]
    for name in sorted(options.keys.explicit):
        if stored.get(name) != options.keys.key(name):
            raise DataError(
                f"{path}: {name} was read from key '{stored.get(name)}', but heads maps it to"
                f" '{options.keys.key(name)}'; preprocess again with these heads"
            )
    if options.split_by is not None and manifest.split_by not in (None, options.split_by):
        raise DataError(
            f"{path}: was preprocessed with split_by '{manifest.split_by}', not"
            f" '{options.split_by}'"
        )


def _with_stored_weights(options: DataOptions, manifest: Manifest) -> DataOptions:
    if options.config_type_weights is not None or manifest.config_type_weights is None:
        return options
    return replace(options, config_type_weights=manifest.config_type_weights)


def _isolated_energies(shards: Sequence[Shard]) -> dict[int, float]:
    energies: dict[int, float] = {}
    for shard in shards:
        for number, energy in shard.manifest.isolated_atom_energies.items():
            energies.setdefault(int(number), energy)
    return energies
