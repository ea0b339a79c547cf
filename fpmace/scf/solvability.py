"""Whether an unconverged affine problem has a solution at all."""

from __future__ import annotations

import torch
from torch import Tensor

from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState, ScfStatus

MAX_SIZE = 2000
"""Unknowns of the largest graph up to which the question is answered, by a dense least-squares
solve (less than a second)."""


def without_solution(problem: FixedPointProblem, status: Tensor, start: ScfState) -> Tensor:
    """Mark unconverged graphs whose linear system [[1 - J, -t], [q, 0]] x = r is inconsistent.

    An affine map has a fixed point exactly where that system has a solution. It is inconsistent
    where its least-squares residual is not small against r.

    Args:
        status: [n_graphs] values of :class:`ScfStatus`.
        start: any density and Fermi level.

    Returns:
        The status, ``NO_SOLUTION`` where that is proven.
    """
    failed = (status != int(ScfStatus.CONVERGED)) & (status != int(ScfStatus.NONFINITE))
    n_lm = start.density.shape[1]
    size = int(problem.atoms_per_graph.max()) * n_lm
    if not problem.is_affine or size > MAX_SIZE or not bool(failed.any()):
        return status
    with torch.no_grad():
        density, level = start.density.detach(), start.fermi_level.detach()
        left = problem.spread(failed).unsqueeze(-1)
        line = problem.linearisation(density, level)
        new, _ = problem.evaluate(density, problem.spread(level))
        residual = torch.where(left, new - density, 0.0)
        error = torch.where(failed, -problem.charge_error(density), 0.0)
        singular = [
            _inconsistent(problem, line.dense(), line.fermi_response, residual, error, graph)
            for graph in torch.nonzero(failed).flatten().tolist()
        ]
    marked = status.clone()
    graphs = torch.nonzero(failed).flatten()
    found = torch.tensor(singular, dtype=torch.bool, device=status.device)
    marked[graphs[found]] = int(ScfStatus.NO_SOLUTION)
    return marked


def _inconsistent(
    problem: FixedPointProblem, jacobian: Tensor, t: Tensor, a: Tensor, e: Tensor, graph: int
) -> bool:
    atoms = problem.batch == graph
    t, a = t[atoms].flatten(), a[atoms].flatten()
    size = t.shape[0]
    matrix = torch.eye(size, dtype=t.dtype, device=t.device) - jacobian[graph, :size, :size]
    right = a
    if problem.target_charge is not None:
        charges = torch.zeros_like(t)
        charges[:: size // int(problem.atoms_per_graph[graph])] = 1.0
        top = torch.cat([matrix, -t.unsqueeze(-1)], dim=1)
        bottom = torch.cat([charges, charges.new_zeros(1)]).unsqueeze(0)
        matrix = torch.cat([top, bottom])
        right = torch.cat([a, e[graph : graph + 1]])
    if not bool(torch.isfinite(matrix).all() and torch.isfinite(right).all()):
        return False
    left, values, _ = torch.linalg.svd(matrix)
    small = values < 1e3 * torch.finfo(t.dtype).eps * size * values[0].clamp_min(1.0)
    unreachable = left[:, small].T @ right
    return bool(unreachable.norm() > 1e-6 * right.norm())
