"""The linearised problem of small graphs as dense matrices, factorised once and used often."""

from __future__ import annotations

import torch
from torch import Tensor

from fpmace.scf.problem import FixedPointProblem, Linearisation


class DenseSolve:
    """LU factors of [[1 - J, -t], [q, 0]] of each graph, q the sum of charges.

    Graphs are padded to the size of the largest with rows of the identity. Without a fixed
    charge the last row and column are those of the identity too.
    """

    def __init__(self, problem: FixedPointProblem, linearisation: Linearisation) -> None:
        self._problem = problem
        t = linearisation.fermi_response
        jacobian = linearisation.dense()
        n_graphs, size = jacobian.shape[:2]
        self._n_max, self._n_lm = size // t.shape[1], t.shape[1]
        first = problem.atoms_per_graph.cumsum(0) - problem.atoms_per_graph
        local = torch.arange(t.shape[0], device=t.device) - first[problem.batch]
        self._slot = problem.batch * self._n_max + local
        matrix = t.new_zeros(n_graphs, size + 1, size + 1)
        matrix[:, :size, :size] = torch.eye(size, dtype=t.dtype, device=t.device) - jacobian
        if problem.target_charge is None:
            matrix[:, size, size] = 1.0
        else:
            matrix[:, :size, size] = -self._pad(t)
            charges = torch.zeros_like(t)
            charges[:, 0] = 1.0
            matrix[:, size, :size] = self._pad(charges)
        sound = torch.isfinite(matrix).all(-1).all(-1)[:, None, None]
        matrix = torch.where(sound, matrix, torch.eye(size + 1, dtype=t.dtype, device=t.device))
        self._lu, self._pivots, info = torch.linalg.lu_factor_ex(matrix)
        singular = info != 0
        self._singular = singular if bool(singular.any()) else None
        self._inverse = torch.linalg.pinv(matrix) if self._singular is not None else None

    def solve(self, a: Tensor, e: Tensor, *, transpose: bool = False) -> tuple[Tensor, Tensor]:
        """Solve the system, or the transposed one, for [n_atoms, n_lm] and [n_graphs]."""
        fixed = self._problem.target_charge is not None
        last = e if fixed else torch.zeros_like(e)
        right = torch.cat([self._pad(a), last.unsqueeze(-1)], dim=1).unsqueeze(-1)
        solution = torch.linalg.lu_solve(self._lu, self._pivots, right, adjoint=transpose)
        if self._singular is not None and self._inverse is not None:
            inverse = self._inverse.mT if transpose else self._inverse
            solution = torch.where(self._singular[:, None, None], inverse @ right, solution)
        solution = solution.squeeze(-1)
        flat = solution[:, :-1].reshape(-1, self._n_lm)
        return flat[self._slot], solution[:, -1]

    def _pad(self, values: Tensor) -> Tensor:
        """[n_atoms, n_lm] to [n_graphs, n_max n_lm]."""
        n_graphs = self._problem.n_graphs
        empty = values.new_zeros(n_graphs * self._n_max, self._n_lm)
        return empty.index_copy(0, self._slot, values).view(n_graphs, -1)
