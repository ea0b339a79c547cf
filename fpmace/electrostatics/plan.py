"""What the electrostatics computes once per structure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fpmace.electrostatics.corrections import Correction
from fpmace.electrostatics.kspace import KVectors

T = TypeVar("T")


@dataclass(frozen=True)
class Padding:
    """How the atoms of some graphs lie in padded tensors [n_graphs, n_max, ...].

    Attributes:
        n_graphs, n_max: sizes of the padded tensors.
        slot: [n] row of each atom in the flattened padded tensor; None where all graphs have
            equally many atoms, so that padding is a view.
        atoms: [n] atoms of the batch that are meant, None for all.
        graphs: [n_graphs] graphs of the batch that are meant, None for all.
    """

    n_graphs: int
    n_max: int
    slot: Tensor | None
    atoms: Tensor | None
    graphs: Tensor | None

    def pad(self, values: Tensor) -> Tensor:
        """[n_atoms of the batch, ...] -> [n_graphs, n_max, ...], zero where padded."""
        if self.atoms is not None:
            values = values[self.atoms]
        shape = (self.n_graphs, self.n_max, *values.shape[1:])
        if self.slot is None:
            return values.reshape(shape)
        empty = values.new_zeros(self.n_graphs * self.n_max, *values.shape[1:])
        return empty.index_copy(0, self.slot, values).view(shape)

    def unpad(self, values: Tensor) -> Tensor:
        """[n_graphs, n_max, ...] -> [n, ...] for the atoms that are meant."""
        flat = values.reshape(self.n_graphs * self.n_max, *values.shape[2:])
        return flat if self.slot is None else flat.index_select(0, self.slot)


def make_padding(ptr: list[int], graphs: list[int] | None, device: torch.device) -> Padding:
    """Padding for all graphs (``graphs`` None) or some of them."""
    chosen = range(len(ptr) - 1) if graphs is None else graphs
    sizes = [ptr[g + 1] - ptr[g] for g in chosen]
    n_max = max(sizes, default=0)
    slot = atoms = graph_index = None
    if any(size != n_max for size in sizes):
        rows = [i * n_max + j for i, size in enumerate(sizes) for j in range(size)]
        slot = torch.tensor(rows, dtype=torch.int64, device=device)
    if graphs is not None:
        members = [a for g in chosen for a in range(ptr[g], ptr[g + 1])]
        atoms = torch.tensor(members, dtype=torch.int64, device=device)
        graph_index = torch.tensor(list(chosen), dtype=torch.int64, device=device)
    return Padding(len(sizes), n_max, slot, atoms, graph_index)


@dataclass(frozen=True)
class PeriodicPart:
    """Graphs summed in reciprocal space.

    Attributes:
        k: the reciprocal lattice vectors.
        phases: [g, n_max, 2 n_k] cos and sin of k.R.
        source: complex [g, n_density, n_k], conjugate source form factors.
        receiver: complex [g, n_features, n_k], receiver form factors with the Coulomb weight.
        correction: slab or molecule correction, None if no graph has one.
    """

    padding: Padding
    k: KVectors
    phases: Tensor
    source: Tensor
    receiver: Tensor
    correction: Correction | None


@dataclass(frozen=True)
class OpenPart:
    """Graphs with open boundaries.

    Attributes:
        features: [g, n_max * n_features, n_max * n_density].
        energy: [g, n_max * n_density, n_max * n_density], the second derivative of the energy.
    """

    padding: Padding
    features: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Plan:
    """Geometry-dependent tensors of one batch, reused in every SCF step.

    Attributes:
        positions, cell, pbc, batch, ptr: the geometry, as given.
        parts: the graphs of the batch by how they are summed; one part unless modes are mixed.
        n_max: atoms of the largest graph.
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    ptr: Tensor
    parts: tuple[PeriodicPart | OpenPart, ...]
    n_max: int

    @property
    def n_atoms(self) -> int:
        return self.positions.shape[0]

    @property
    def n_graphs(self) -> int:
        return self.cell.shape[0]

    def detach(self) -> Plan:
        """The same numbers without their history."""
        return _detach(self)


def _detach(value: T) -> T:
    changed: Any = value
    if isinstance(value, Tensor):
        changed = value.detach()
    elif isinstance(value, tuple):
        changed = tuple(_detach(item) for item in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _detach(getattr(value, f.name)) for f in dataclasses.fields(value)}
        changed = dataclasses.replace(value, **parts)
    return changed
