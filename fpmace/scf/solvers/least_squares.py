"""Least squares over a history of iterates, graph by graph, with a condition bound."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fpmace.scf.problem import FixedPointProblem

Change = tuple[Tensor, Tensor]
"""A change of density [n_atoms, n_lm] and Fermi level [n_graphs]."""


def inner(problem: FixedPointProblem, level_scale: Tensor, a: Change, b: Change) -> Tensor:
    """[n_graphs] inner product; ``level_scale`` (e/eV) makes levels comparable to densities."""
    return problem.sum((a[0] * b[0]).sum(-1)) + level_scale.square() * a[1] * b[1]


def fit(
    problem: FixedPointProblem,
    level_scale: Tensor,
    changes: Sequence[Change],
    target: Change,
    depth: Tensor,
    condition_bound: float,
) -> Tensor:
    """Coefficients [n_graphs, m] that minimise ``|target - sum_k c_k changes_k|``.

    Args:
        changes: m changes, newest first.
        depth: [n_graphs] how many of them a graph may use.
        condition_bound: directions beyond this condition number are dropped.
    """
    m, n = len(changes), problem.n_graphs
    gram = target[0].new_zeros((n, m, m))
    right = target[0].new_zeros((n, m))
    if m == 0:
        return right
    for i in range(m):
        right[:, i] = inner(problem, level_scale, changes[i], target)
        for j in range(i, m):
            gram[:, i, j] = inner(problem, level_scale, changes[i], changes[j])
            gram[:, j, i] = gram[:, i, j]
    known = torch.arange(m, device=depth.device) < depth.unsqueeze(-1)
    pair = known.unsqueeze(-1) & known.unsqueeze(-2)
    gram = torch.where(pair, torch.nan_to_num(gram), 0.0)
    right = torch.where(known, torch.nan_to_num(right), 0.0)
    return _bounded_solve(gram, right, condition_bound)


def _bounded_solve(gram: Tensor, right: Tensor, condition_bound: float) -> Tensor:
    """Solve the normal equations, dropping directions beyond the condition bound."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()
    scaled = gram * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(scaled)
    largest = values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)
    bound = max(1.0 / condition_bound**2, 10 * torch.finfo(values.dtype).eps)
    kept = values > bound * largest
    inverse = torch.where(kept, 1.0 / torch.where(kept, values, 1.0), 0.0)
    projected = torch.einsum("gij,gi->gj", vectors, right * scale)
    return torch.einsum("gij,gj->gi", vectors, inverse * projected) * scale
