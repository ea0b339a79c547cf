"""Atoms of several graphs in padded tensors [n_graphs, n_max, ...]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fpmace.electrostatics.tables import upload


@dataclass(frozen=True)
class Padding:
    """How the atoms of some graphs lie in padded tensors [n_graphs, n_max, ...].

    Attributes:
        members: graphs of the batch that are meant.
        n_max: atoms of the largest of them.
        slot: [n] row of each atom in the flattened padded tensor; None where all graphs have
            equally many atoms, so that padding is a view.
        atoms: [n] atoms of the batch that are meant, None for all.
        graphs: [n_graphs] graphs of the batch that are meant, None for all.
    """

    members: tuple[int, ...]
    n_max: int
    slot: Tensor | None
    atoms: Tensor | None
    graphs: Tensor | None

    @property
    def n_graphs(self) -> int:
        return len(self.members)

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

    def of_graphs(self, values: Tensor) -> Tensor:
        """[n_graphs of the batch, ...] -> [n_graphs, ...] for the graphs that are meant."""
        return values if self.graphs is None else values[self.graphs]


def make_padding(
    offsets: Sequence[int], graphs: Sequence[int] | None, device: torch.device
) -> Padding:
    """Padding for all graphs (``graphs`` None) or some of them; ``offsets`` of the first atoms."""
    members = tuple(range(len(offsets) - 1)) if graphs is None else tuple(graphs)
    counts = [offsets[g + 1] - offsets[g] for g in members]
    n_max = max(counts, default=0)
    even = all(count == n_max for count in counts)
    if even and graphs is None:
        return Padding(members, n_max, None, None, None)
    starts = torch.tensor([offsets[g] for g in members], dtype=torch.int64)
    sizes = torch.tensor(counts, dtype=torch.int64)
    within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    slot = atoms = index = None
    if not even:
        rows = torch.arange(len(members)) * n_max
        slot = upload(rows.repeat_interleave(sizes) + within, device)
    if graphs is not None:
        atoms = upload(starts.repeat_interleave(sizes) + within, device)
        index = upload(torch.tensor(members, dtype=torch.int64), device)
    return Padding(members, n_max, slot, atoms, index)


def largest(offsets: Sequence[int]) -> int:
    """Atoms of the largest graph."""
    return max((b - a for a, b in pairwise(offsets)), default=0)


def matrices_by_columns(
    apply: Callable[[Tensor], Tensor], padding: Padding, n_columns: int, like: Tensor
) -> Tensor:
    """A linear map of the atoms of every graph as matrices, one column of all graphs at a time.

    Args:
        apply: [n_atoms, n_columns] -> [n_atoms, n_rows].
        padding: of all graphs.
        like: for precision and device.

    Returns:
        [n_graphs, n_max * n_rows, n_max * n_columns], zero where padded.
    """
    unit = like.new_zeros(padding.n_graphs, padding.n_max, n_columns)
    found = []
    for atom in range(padding.n_max):
        for column in range(n_columns):
            chosen = unit.clone()
            chosen[:, atom, column] = 1.0
            found.append(padding.pad(apply(padding.unpad(chosen))).flatten(1))
    return torch.stack(found, dim=-1)
