"""Data sets from extended XYZ, HDF5 or a directory of shards, with one interface."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from torch.utils.data import Dataset

from fpmace.data.atomic_data import AtomicData, atomic_data, collate
from fpmace.data.checks import check_geometry, check_overlap
from fpmace.data.configuration import Configuration
from fpmace.data.extxyz import read_configurations
from fpmace.data.info import DatasetInfo, check_keys
from fpmace.data.isolated import add_isolated_energy
from fpmace.data.joined import JoinedDataset
from fpmace.data.keys import PROPERTIES
from fpmace.data.loader import EpochSampler, StructureLoader, make_loader
from fpmace.data.neighborhood import neighborhood
from fpmace.data.options import DataOptions
from fpmace.errors import DataError

__all__ = [
    "AtomicData",
    "EpochSampler",
    "InMemoryDataset",
    "StructureDataset",
    "StructureLoader",
    "collate",
    "dataset_from_configurations",
    "make_loader",
    "open_dataset",
]

logger = logging.getLogger(__name__)

HDF5_SUFFIXES = (".h5", ".hdf5")


class StructureDataset(Protocol):
    """What training needs of a data set, whatever file it comes from.

    Members are the configurations to train on or evaluate. ``IsolatedAtom`` configurations are
    members only with ``keep_isolated_atoms``; their energies are always kept aside.

    Attributes:
        path: file or directory it was opened from.
        r_max: cutoff of the neighbour lists, Angstrom.
        options: options it was opened with.
        info: counts over the members.
        isolated_atom_energies: eV by atomic number.
    """

    path: str
    r_max: float
    options: DataOptions
    info: DatasetInfo
    isolated_atom_energies: dict[int, float]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AtomicData: ...

    def groups(self) -> list[str]:
        """Return the ``split_by`` value of each member, empty where it has none."""
        ...

    def config_types(self) -> list[str]:
        """Return the ``config_type`` of each member."""
        ...

    def pair_ids(self) -> list[int]:
        """Return the ``pair_id`` of each member, -1 where it has none."""
        ...

    def heads(self) -> list[str]:
        """Return the head of each member, empty where the model has one."""
        ...

    def sizes(self) -> list[tuple[int, int]]:
        """Return the numbers of atoms and of edges of each member."""
        ...

    def subset(self, indices: Sequence[int]) -> StructureDataset:
        """Return the members at ``indices`` as a data set of its own."""
        ...


class InMemoryDataset(Dataset[AtomicData]):
    """Configurations held in memory with their neighbour lists; see ``StructureDataset``."""

    def __init__(
        self,
        configurations: Sequence[Configuration],
        items: Sequence[AtomicData],
        *,
        path: str,
        r_max: float,
        options: DataOptions,
        isolated_atom_energies: dict[int, float] | None = None,
    ) -> None:
        self.path, self.r_max, self.options = path, r_max, options
        self.configurations = list(configurations)
        self.items = list(items)
        self.isolated_atom_energies = dict(isolated_atom_energies or {})
        self.info = DatasetInfo()
        for config, item in zip(self.configurations, self.items, strict=True):
            self.info.add(config, item.n_edges)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> AtomicData:
        return self.items[index]

    def groups(self) -> list[str]:
        """Return the ``split_by`` value of each member."""
        return [config.group for config in self.configurations]

    def config_types(self) -> list[str]:
        """Return the ``config_type`` of each member."""
        return [config.config_type for config in self.configurations]

    def pair_ids(self) -> list[int]:
        """Return the ``pair_id`` of each member, -1 where it has none."""
        blank = PROPERTIES["pair_id"].blank
        return [int(c.properties.get("pair_id", blank)) for c in self.configurations]

    def heads(self) -> list[str]:
        """Return the head of each member."""
        return [config.head for config in self.configurations]

    def sizes(self) -> list[tuple[int, int]]:
        """Return the numbers of atoms and of edges of each member."""
        return [(item.n_atoms, item.n_edges) for item in self.items]

    def subset(self, indices: Sequence[int]) -> InMemoryDataset:
        """Return the members at ``indices``; isolated-atom energies are kept."""
        return InMemoryDataset(
            [self.configurations[i] for i in indices],
            [self.items[i] for i in indices],
            path=self.path,
            r_max=self.r_max,
            options=self.options,
            isolated_atom_energies=self.isolated_atom_energies,
        )


def dataset_from_configurations(
    configurations: Iterable[Configuration],
    r_max: float,
    options: DataOptions | None = None,
    *,
    path: str = "configurations",
) -> InMemoryDataset:
    """Check configurations, build their neighbour lists and keep them in memory.

    Raises:
        DataError: a configuration fails a check, or none is left to train on.
    """
    options = options or DataOptions()
    members: list[Configuration] = []
    items: list[AtomicData] = []
    energies: dict[int, float] = {}
    everything = list(configurations)
    with_cluster_id = any("cluster_id" in config.properties for config in everything)
    for config in everything:
        if config.is_isolated_atom:
            add_isolated_energy(energies, config)
            if not options.keep_isolated_atoms:
                continue
        check_geometry(config, options)
        edges = neighborhood(config.positions, config.cell, config.pbc, r_max)
        check_overlap(config, *edges, options)
        members.append(config)
        items.append(
            atomic_data(
                config,
                r_max,
                options,
                index=config.index,
                edges=edges,
                with_cluster_id=with_cluster_id,
            )
        )
    if not members:
        raise DataError(
            f"{path}: holds only IsolatedAtom configurations; nothing to train on or evaluate"
        )
    return InMemoryDataset(
        members, items, path=path, r_max=r_max, options=options, isolated_atom_energies=energies
    )


def open_dataset(
    path: str | Path, r_max: float, options: DataOptions | None = None
) -> StructureDataset:
    """Open an extended XYZ file, an HDF5 file, or a directory of HDF5 shards.

    The three give identical batches. XYZ is read into memory, HDF5 is read lazily.

    Args:
        path: file or directory.
        r_max: cutoff of the neighbour lists, Angstrom; an HDF5 file must have been made for it.
        options: keys, weights and checks; with several heads, configurations or shards say
            which they belong to, unless ``options.head`` does.

    Raises:
        DataError: the file is missing, damaged, or fails a check.
    """
    options = options or DataOptions()
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    if path.is_dir() or path.suffix in HDF5_SUFFIXES:
        from fpmace.data.hdf5 import Hdf5Dataset, heads_of_shards

        if options.heads and options.head is None:
            names = heads_of_shards(path, options.heads)
            return JoinedDataset(
                {n: open_dataset(path, r_max, options.for_head(n)) for n in names}
            )
        dataset: StructureDataset = Hdf5Dataset(path, r_max, options)
    else:
        configurations = list(read_configurations(path, options))
        if options.heads and options.head is None:
            return _by_head(configurations, r_max, options, str(path))
        dataset = dataset_from_configurations(configurations, r_max, options, path=str(path))
    _check(dataset)
    return dataset


def _by_head(
    configurations: Sequence[Configuration], r_max: float, options: DataOptions, path: str
) -> JoinedDataset:
    """A data set per head that the configurations name."""
    found: dict[str, list[Configuration]] = {}
    for config in configurations:
        found.setdefault(config.head, []).append(config)
    parts: dict[str, StructureDataset] = {}
    for name in (head.name for head in options.heads if head.name in found):
        mine = options.for_head(name)
        parts[name] = dataset_from_configurations(found[name], r_max, mine, path=path)
        _check(parts[name])
    return JoinedDataset(parts)


def _check(dataset: StructureDataset) -> None:
    options, path = dataset.options, dataset.path
    if options.check_keys:
        check_keys(dataset.info, options.keys, path)
    _warn_missing(dataset)


def _warn_missing(dataset: StructureDataset) -> None:
    info, keys = dataset.info, dataset.options.keys
    have = info.properties.get("total_charge", 0)
    if have < info.n_configurations:
        logger.warning(
            "%s: %d of %d configurations have no %s; they are taken as neutral",
            dataset.path,
            info.n_configurations - have,
            info.n_configurations,
            keys.key("total_charge"),
        )
