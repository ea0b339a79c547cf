"""Who is connected to whom: index tables for sums over neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class EdgeLayout:
    """Connectivity of a batch; holds integers only and is shared by all layers.

    Attributes:
        sender, receiver: [n_edges] int64; edges are sorted by receiver.
        n_atoms: number of atoms.
    """

    sender: Tensor
    receiver: Tensor
    n_atoms: int

    @classmethod
    def build(cls, edge_index: Tensor, n_atoms: int) -> EdgeLayout:
        """Prepare the tables for ``edge_index`` [2, n_edges]."""
        return cls(edge_index[0], edge_index[1], n_atoms)

    def sum_to_receivers(self, values: Tensor) -> Tensor:
        """Sum [n_edges, ...] over the edges that end at each atom, to [n_atoms, ...]."""
        total = values.new_zeros(self.n_atoms, *values.shape[1:])
        return total.index_add(0, self.receiver, values)
