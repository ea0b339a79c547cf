"""Geometry of a batch as the models see it: edge vectors, element indices, strain applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpmace.blocks.edges import EdgeLayout
from fpmace.data.batch import Batch
from fpmace.errors import DataError


@dataclass(frozen=True, slots=True)
class Geometry:
    """Positions, cells and edges of a batch, possibly strained; differentiable in both.

    Attributes:
        positions: [n_atoms, 3] Angstrom.
        cell: [n_graphs, 3, 3] Angstrom, rows are lattice vectors.
        pbc: [n_graphs, 3] bool.
        element: [n_atoms] int64, index of the element in the model's ``atomic_numbers``.
        edge_index: [2, n_edges] int64, row 0 sender, row 1 receiver, sorted by receiver.
        edge_vectors: [n_edges, 3] Angstrom, from sender to receiver.
        edge_lengths: [n_edges] Angstrom.
        edges: who is connected to whom, prepared for sums over neighbours.
        batch: [n_atoms] int64, graph of each atom.
        head: [n_atoms] int64, head of each atom's structure; None for models of one head.
        inputs: [n_graphs, ...] what the features of the model depend on besides, by name.
        ptr: [n_graphs + 1] int64.
        n_graphs: number of structures.
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    element: Tensor
    edge_index: Tensor
    edge_vectors: Tensor
    edge_lengths: Tensor
    edges: EdgeLayout
    batch: Tensor
    ptr: Tensor
    n_graphs: int
    head: Tensor | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_atoms(self) -> int:
        return self.positions.shape[0]

    @property
    def volume(self) -> Tensor:
        """[n_graphs] Angstrom^3; 0 where there is no cell."""
        return torch.linalg.det(self.cell).abs()

    def sum_over_atoms(self, values: Tensor) -> Tensor:
        """Sum [n_atoms, ...] over the atoms of each graph to [n_graphs, ...]."""
        total = values.new_zeros(self.n_graphs, *values.shape[1:])
        return total.index_add(0, self.batch, values)


def make_geometry(
    batch: Batch, element: Tensor, strain: Tensor | None = None, head: Tensor | None = None
) -> Geometry:
    """Build the geometry of a batch.

    Args:
        batch: the structures.
        element: [n_atoms] int64 index of the element, see :func:`element_index`.
        head: [n_atoms] int64, see :func:`head_index`; None for models of one head.
        strain: [n_graphs, 3, 3]; its symmetric part e acts as ``r -> r (1 + e)`` on positions and
            cell, so that ``(1/V) dE/d(strain)`` at zero strain is the (symmetric) stress.
    """
    positions, cell = batch.positions, batch.cell
    if strain is not None:
        symmetric = 0.5 * (strain + strain.transpose(-1, -2))
        positions = positions + torch.einsum("ni,nij->nj", positions, symmetric[batch.batch])
        cell = cell + cell @ symmetric
    sender, receiver = batch.edge_index
    per_edge = cell.index_select(0, batch.batch.index_select(0, receiver))
    shifts = torch.einsum("ei,eij->ej", batch.unit_shifts, per_edge)
    vectors = positions.index_select(0, receiver) - positions.index_select(0, sender) + shifts
    return Geometry(
        positions=positions,
        cell=cell,
        pbc=batch.pbc,
        element=element,
        edge_index=batch.edge_index,
        edge_vectors=vectors,
        edge_lengths=torch.linalg.vector_norm(vectors, dim=-1),
        edges=EdgeLayout.build(batch.edge_index, batch.n_atoms, batch.unit_shifts),
        batch=batch.batch,
        ptr=batch.ptr,
        n_graphs=batch.n_graphs,
        head=head,
    )


def element_index(atomic_numbers: Tensor, batch: Batch) -> Tensor:
    """Position of each atom's element in the ascending ``atomic_numbers`` of a model.

    Raises:
        DataError: if an atom's element is unknown to the model.
    """
    position = torch.searchsorted(atomic_numbers, batch.atomic_numbers)
    position = position.clamp(max=len(atomic_numbers) - 1)
    unknown = atomic_numbers[position] != batch.atomic_numbers
    if bool(unknown.any()):
        from ase.data import chemical_symbols

        numbers = sorted(set(batch.atomic_numbers[unknown].tolist()))
        names = ", ".join(f"{chemical_symbols[z]} (Z={z})" for z in numbers)
        known = ", ".join(chemical_symbols[z] for z in atomic_numbers.tolist())
        graph = int(batch.batch[int(unknown.nonzero()[0, 0])])
        where = f"configuration {int(batch.index[graph])}: " if len(batch.index) > graph else ""
        raise DataError(
            f"{where}element {names} is unknown to the model, which knows {known}; "
            "use a model trained with it or remove the configuration"
        )
    return position


def head_index(heads: Sequence[str], batch: Batch) -> Tensor | None:
    """The head of each atom's structure, [n_atoms] int64; None if there is one head only.

    Raises:
        DataError: if the model has several and a structure names none of them.
    """
    if len(heads) == 1:
        return None
    if len(batch.head) != batch.n_graphs or int(batch.head.min()) < 0:
        raise DataError(
            f"head: the model has the heads {', '.join(heads)}, and a structure names none; "
            "say which one is meant"
        )
    if int(batch.head.max()) >= len(heads):
        raise DataError(
            f"head: number {int(batch.head.max())} is not among the {len(heads)} of the model "
            f"({', '.join(heads)}, counted from 0)"
        )
    return batch.head[batch.batch]
