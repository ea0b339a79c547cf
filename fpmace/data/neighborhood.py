"""Neighbour lists in all boundary conditions, by matscipy."""

from __future__ import annotations

from typing import Any

import numpy as np
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray

Array = NDArray[Any]
"""NumPy array of any type of number."""


def neighborhood(positions: Array, cell: Array, pbc: Array, r_max: float) -> tuple[Array, Array]:
    """Return all directed edges shorter than ``r_max``, sorted by receiver, then sender.

    The vector of an edge is ``positions[receiver] - positions[sender] + unit_shifts @ cell``.
    Images of an atom are its neighbours too; an atom is not its own at zero distance. Periodic
    cells may be smaller than ``r_max`` and atoms may lie outside; along directions that are
    not periodic the cell plays no part (it may be zero) and shifts are 0.

    Args:
        positions: [n_atoms, 3] Angstrom.
        cell: [3, 3] Angstrom, rows.
        pbc: [3] bool; the cell vectors of periodic directions must be linearly independent.
        r_max: Angstrom.

    Returns:
        edge_index [2, n_edges] int64 (row 0 sender, row 1 receiver) and unit_shifts [n_edges, 3]
        int64.
    """
    search_cell, wrapped, offsets = _search_geometry(positions, cell, pbc, r_max)
    sender, receiver, shifts = neighbour_list(
        "ijS", positions=wrapped, cell=search_cell, pbc=pbc.astype(bool), cutoff=float(r_max)
    )
    sender, receiver = sender.astype(np.int64), receiver.astype(np.int64)
    unit_shifts = shifts.astype(np.int64) + offsets[sender] - offsets[receiver]
    unit_shifts[:, ~pbc] = 0
    order = np.lexsort((*unit_shifts.T[::-1], sender, receiver))
    return np.stack([sender[order], receiver[order]]), unit_shifts[order]


def edge_vectors(positions: Array, cell: Array, edge_index: Array, unit_shifts: Array) -> Array:
    """Return [n_edges, 3] vectors from sender to receiver, Angstrom."""
    sender, receiver = edge_index
    return positions[receiver] - positions[sender] + unit_shifts @ cell


def _search_geometry(
    positions: Array, cell: Array, pbc: Array, r_max: float
) -> tuple[Array, Array, Array]:
    """Return a full-rank cell that holds all atoms, positions inside it, and the wrap [n, 3].

    Vectors of open directions are replaced by ones orthogonal to the periodic ones, long enough
    for the atoms, so that the search depends neither on the given cell there nor on the origin.
    """
    search = np.array(cell, dtype=np.float64)
    basis = _orthonormal_complement(search[pbc])
    search[~pbc] = basis
    fractional = positions @ np.linalg.inv(search)
    offsets = np.where(pbc, np.floor(fractional), 0.0)
    low = fractional.min(axis=0)
    extent = fractional.max(axis=0) - low
    margin = np.where(pbc, 0.0, r_max)
    wrapped = positions - offsets @ search + np.where(pbc, 0.0, margin - low) @ search
    scale = np.where(pbc, 1.0, extent + 2.0 * margin + 1.0)
    return search * scale[:, None], wrapped, offsets.astype(np.int64)


def _orthonormal_complement(vectors: Array) -> Array:
    """Return rows that complete ``vectors`` ([k, 3], independent) to a basis."""
    if len(vectors) == 0:
        return np.eye(3)
    _, _, rows = np.linalg.svd(vectors)
    return rows[len(vectors) :]
