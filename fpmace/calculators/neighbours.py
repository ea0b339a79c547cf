"""Neighbour lists that are kept until an atom has moved too far."""

from __future__ import annotations

import numpy as np

from fpmace.data.neighborhood import Array, edge_vectors, neighborhood
from fpmace.errors import ConfigError


class SkinNeighbourList:
    """Edges up to ``r_max``, filtered from a longer list that is rebuilt when it may be stale.

    The edges, and their order, are those of a new list at every call.

    Args:
        r_max: Angstrom.
        skin: Angstrom added to ``r_max``; the list is rebuilt when an atom moved more than half
            of it, or the cell, the periodicity or the number of atoms changed. 0: always.

    Attributes:
        n_builds: how often a list was built.
    """

    def __init__(self, r_max: float, skin: float = 0.5) -> None:
        if not isinstance(skin, int | float) or not 0.0 <= skin < np.inf:
            raise ConfigError(f"must be 0 or more (Angstrom), got {skin!r}", where="skin")
        self.r_max, self.skin = float(r_max), float(skin)
        self.n_builds = 0
        self._origin: tuple[Array, Array, Array] | None = None
        self._edges: tuple[Array, Array] | None = None

    def edges(self, positions: Array, cell: Array, pbc: Array) -> tuple[Array, Array]:
        """Return edge_index [2, n_edges] and unit_shifts [n_edges, 3], see ``neighborhood``."""
        if self._edges is None or self._stale(positions, cell, pbc):
            self._edges = neighborhood(positions, cell, pbc, self.r_max + self.skin)
            self._origin = (positions.copy(), cell.copy(), pbc.copy())
            self.n_builds += 1
        index, shifts = self._edges
        vectors = edge_vectors(positions, cell, index, shifts)
        near = np.einsum("ij,ij->i", vectors, vectors) < self.r_max**2
        return index[:, near], shifts[near]

    def _stale(self, positions: Array, cell: Array, pbc: Array) -> bool:
        assert self._origin is not None
        before, old_cell, old_pbc = self._origin
        if before.shape != positions.shape or not np.array_equal(old_pbc, pbc):
            return True
        if not np.array_equal(old_cell, cell):
            return True
        moved = np.square(positions - before).sum(axis=1).max()
        return bool(moved > (0.5 * self.skin) ** 2)
