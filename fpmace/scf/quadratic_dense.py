"""The quadratic problem of small graphs by Cholesky factors of 1 + B^T C B, S = B B^T."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fpmace.scf.problem import ChargeGroups
    from fpmace.scf.quadratic import QuadraticForm


def semidefinite_root(matrix: Tensor) -> Tensor:
    """Lower triangular B with B B^T = matrix, for semidefinite [..., n, n]; exact to rounding.

    A pivot of the size of rounding belongs to a null direction: its column is left out.
    """
    n = matrix.shape[-1]
    rest = matrix
    floor = n * torch.finfo(matrix.dtype).eps * matrix.diagonal(dim1=-2, dim2=-1)
    columns = []
    for k in range(n):
        pivot = rest[..., k, k]
        usable = pivot > floor[..., k]
        scale = torch.where(usable, torch.where(usable, pivot, 1.0).rsqrt(), 0.0)
        column = rest[..., k] * scale.unsqueeze(-1)
        columns.append(torch.cat([torch.zeros_like(column[..., :k]), column[..., k:]], dim=-1))
        rest = rest - columns[-1].unsqueeze(-1) * columns[-1].unsqueeze(-2)
    return torch.stack(columns, dim=-1)


class CholeskySolve:
    """Solves (1 + C S) w = r + mu u with u.S.w = c directly.

    Graphs are padded to the size of the largest with rows of the identity.
    """

    def __init__(self, groups: ChargeGroups, form: QuadraticForm, atoms_per_graph: Tensor) -> None:
        assert form.dense_interaction is not None
        self._interaction = form.dense_interaction()
        self._groups = groups
        self._place(groups, atoms_per_graph, form.own.shape[0])
        root = self._pad(semidefinite_root(form.response))
        self._root = root
        g, m, n = root.shape[:3]
        half = torch.einsum("gxbq,gbqr->gxbr", self._interaction.view(g, -1, m, n), root)
        product = torch.einsum("gaqy,gaqr->gary", half.reshape(g, m, n, -1), root)
        matrix = product.reshape(g, m * n, m * n)
        matrix.diagonal(dim1=1, dim2=2).add_(1.0)
        sound = torch.isfinite(matrix).all(-1).all(-1)[:, None, None]
        matrix = torch.where(sound, matrix, torch.eye(m * n, dtype=root.dtype, device=root.device))
        self._factor, _ = torch.linalg.cholesky_ex(matrix)
        self._selectors = self._group_columns(form)
        reduced = self._reduce(self._selectors)
        self._shifted = torch.cholesky_solve(reduced, self._factor)
        capacity = reduced.mT @ self._shifted
        # A group that can move no charge has a row of zeros: its level is left at zero.
        self._movable = capacity.diagonal(dim1=1, dim2=2) > 0
        self._capacity = capacity + torch.diag_embed((~self._movable).to(capacity.dtype))

    def solve(self, right: Tensor, charge: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(w, S w, mu) for [n_atoms, n] and [n_groups]; mu = 0 where ``charge`` is None."""
        padded = self._pad(right).flatten(1).unsqueeze(-1)
        y = torch.cholesky_solve(self._reduce(padded), self._factor)
        level = right.new_zeros(self._groups.count)
        if charge is not None:
            wanted = charge.new_zeros(self._capacity.shape[:2])
            wanted[self._groups.graph, self._column] = charge
            missing = wanted.unsqueeze(-1) - self._selectors.mT @ self._expand(y)
            missing = torch.where(self._movable.unsqueeze(-1), missing, 0.0)
            levels = torch.linalg.solve(self._capacity, missing)
            y = y + self._shifted @ levels
            padded = padded + self._selectors @ levels
            level = levels[self._groups.graph, self._column, 0]
        moved = self._expand(y)
        potential = padded - self._interaction @ moved
        return self._unpad(potential), self._unpad(moved), level

    def _place(self, groups: ChargeGroups, atoms_per_graph: Tensor, n: int) -> None:
        """Where atoms and groups lie in the padded tensors."""
        n_graphs, device = len(atoms_per_graph), atoms_per_graph.device
        graph = groups.graph[groups.index]
        first = atoms_per_graph.cumsum(0) - atoms_per_graph
        self._n_max = self._interaction.shape[1] // n
        atoms = torch.arange(len(graph), device=device)
        self._slot = graph * self._n_max + atoms - first[graph]
        sizes = torch.bincount(groups.graph, minlength=n_graphs)
        before = sizes.cumsum(0) - sizes
        self._column = torch.arange(groups.count, device=device) - before[groups.graph]
        self._shape = (n_graphs, int(sizes.max()), n)

    def _group_columns(self, form: QuadraticForm) -> Tensor:
        """[n_graphs, n_max n, n_columns]: u of each group of a graph."""
        n_graphs, n_columns, n = self._shape
        columns = self._column[self._groups.index]
        out = form.response.new_zeros(n_graphs * self._n_max, n, n_columns)
        out[self._slot, 0, columns] = 1.0
        return out.view(n_graphs, -1, n_columns)

    def _reduce(self, padded: Tensor) -> Tensor:
        """B^T times [n_graphs, n_max n, k]."""
        g, m, n = self._root.shape[:3]
        return (self._root.mT @ padded.view(g, m, n, -1)).view(g, m * n, -1)

    def _expand(self, y: Tensor) -> Tensor:
        """B times [n_graphs, n_max n, k]."""
        g, m, n = self._root.shape[:3]
        return (self._root @ y.view(g, m, n, -1)).view(g, m * n, -1)

    def _pad(self, values: Tensor) -> Tensor:
        """[n_atoms, ...] to [n_graphs, n_max, ...]."""
        n_graphs = self._shape[0]
        empty = values.new_zeros(n_graphs * self._n_max, *values.shape[1:])
        return empty.index_copy(0, self._slot, values).view(n_graphs, -1, *values.shape[1:])

    def _unpad(self, values: Tensor) -> Tensor:
        """[n_graphs, n_max n, 1] to [n_atoms, n]."""
        return values.reshape(-1, self._shape[2])[self._slot]
