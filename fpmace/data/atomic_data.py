"""Per-structure tensors and their concatenation into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.data.configuration import Configuration
from fpmace.data.keys import LABELS, PROPERTIES, WEIGHTED
from fpmace.data.neighborhood import neighborhood
from fpmace.data.options import DataOptions


@dataclass(frozen=True, slots=True)
class AtomicData:
    """One structure as tensors (float64), with every label of the contract.

    A property that the configuration lacks is filled with zeros and has weight 0. Shapes are
    those of ``Batch`` without the graph axis.
    """

    positions: Tensor
    atomic_numbers: Tensor
    cell: Tensor
    pbc: Tensor
    edge_index: Tensor
    unit_shifts: Tensor
    total_charge: Tensor
    total_spin: Tensor
    external_field: Tensor
    fermi_level: Tensor
    labels: dict[str, Tensor]
    weights: dict[str, Tensor]
    weight: Tensor
    index: int
    head: int = 0

    @property
    def n_atoms(self) -> int:
        return len(self.atomic_numbers)

    @property
    def n_edges(self) -> int:
        return int(self.edge_index.shape[1])


def blank_value(name: str, n_atoms: int, n_multipoles: int) -> np.ndarray:
    """Return what stands for property ``name`` where it is absent: zeros, or -1 for a number."""
    item = PROPERTIES[name]
    tail = tuple(n_multipoles if size is None else size for size in item.shape)
    shape = (n_atoms, *tail) if item.per == "atom" else tail
    return np.full(shape, item.blank, dtype=np.int64 if item.integer else np.float64)


def atomic_data(
    config: Configuration,
    r_max: float,
    options: DataOptions,
    *,
    index: int = 0,
    edges: tuple[np.ndarray, np.ndarray] | None = None,
    with_cluster_id: bool | None = None,
) -> AtomicData:
    """Turn a configuration into tensors.

    Where only one of ``charges`` and ``atomic_multipoles`` is given, the charges of the other are
    the same; multipoles made of charges have the weight 0.

    Args:
        config: the configuration; it is not checked here.
        r_max: cutoff of the neighbour list, Angstrom.
        options: multipole columns and weights by ``config_type``.
        index: position in the data set.
        edges: ``(edge_index, unit_shifts)`` if known already.
        with_cluster_id: add the label ``cluster_id`` (zeros where absent); None: if it is there.
    """
    if edges is None:
        edges = neighborhood(config.positions, config.cell, config.pbc, r_max)

    def value(name: str) -> Tensor:
        found = config.properties.get(name)
        if found is None:
            found = blank_value(name, config.n_atoms, options.n_multipoles)
        return torch.from_numpy(np.array(found, order="C"))

    if with_cluster_id is None:
        with_cluster_id = "cluster_id" in config.properties
    names = (*LABELS, "fermi_level", *(("cluster_id",) if with_cluster_id else ()))
    labels = {name: value(name) for name in names}
    weights = {name: torch.from_numpy(config.property_weight(name)) for name in WEIGHTED}
    if "charges" not in config.properties:
        labels["charges"] = labels["atomic_multipoles"][:, 0].clone()
        weights["charges"] = weights["atomic_multipoles"]
    elif "atomic_multipoles" not in config.properties:
        labels["atomic_multipoles"][:, 0] = labels["charges"]
    return AtomicData(
        positions=torch.from_numpy(config.positions),
        atomic_numbers=torch.from_numpy(config.atomic_numbers),
        cell=torch.from_numpy(config.cell),
        pbc=torch.from_numpy(config.pbc),
        edge_index=torch.from_numpy(edges[0].astype(np.int64, copy=False)),
        unit_shifts=torch.from_numpy(edges[1].astype(np.float64)),
        total_charge=value("total_charge"),
        total_spin=value("total_spin"),
        external_field=value("external_field"),
        fermi_level=value("fermi_level"),
        labels=labels,
        weights=weights,
        weight=torch.tensor(
            config.weight
            * options.type_weight(config.config_type)
            * options.head_weight(config.head),
            dtype=torch.float64,
        ),
        index=index,
        head=options.head_index(config.head),
    )


def collate(items: Sequence[AtomicData], dtype: torch.dtype = torch.float64) -> Batch:
    """Concatenate structures into a batch; floating tensors get ``dtype``."""
    counts = torch.tensor([item.n_atoms for item in items], dtype=torch.int64)
    ptr = torch.zeros(len(items) + 1, dtype=torch.int64)
    ptr[1:] = counts.cumsum(0)
    offsets = ptr.tolist()

    def stack(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors)

    def label(name: str) -> Tensor:
        values = [item.labels[name] for item in items]
        return torch.cat(values) if PROPERTIES[name].per == "atom" else stack(values)

    batch = Batch(
        positions=torch.cat([item.positions for item in items]),
        atomic_numbers=torch.cat([item.atomic_numbers for item in items]),
        cell=stack([item.cell for item in items]),
        pbc=stack([item.pbc for item in items]),
        batch=torch.repeat_interleave(torch.arange(len(items), dtype=torch.int64), counts),
        ptr=ptr,
        edge_index=torch.cat(
            [item.edge_index + start for item, start in zip(items, offsets, strict=False)], dim=1
        ),
        unit_shifts=torch.cat([item.unit_shifts for item in items]),
        total_charge=stack([item.total_charge for item in items]),
        total_spin=stack([item.total_spin for item in items]),
        external_field=stack([item.external_field for item in items]),
        fermi_level=stack([item.fermi_level for item in items]),
        labels={name: label(name) for name in items[0].labels if _in_all(name, items)},
        weights={name: stack([item.weights[name] for item in items]) for name in WEIGHTED},
        weight=stack([item.weight for item in items]),
        index=torch.tensor([item.index for item in items], dtype=torch.int64),
        head=torch.tensor([item.head for item in items], dtype=torch.int64),
    )
    return batch if dtype == torch.float64 else batch.to(dtype=dtype)


def _in_all(name: str, items: Sequence[AtomicData]) -> bool:
    return all(name in item.labels for item in items)


def batch_from_configurations(
    configurations: Sequence[Configuration],
    r_max: float,
    options: DataOptions | None = None,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Return one batch of configurations, with neighbour lists up to ``r_max`` Angstrom."""
    options = options or DataOptions()
    items = [
        atomic_data(config, r_max, options, index=number)
        for number, config in enumerate(configurations)
    ]
    return collate(items, dtype)
