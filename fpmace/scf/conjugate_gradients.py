"""Conjugate gradients for (1 + C S) w = r + mu u, many graphs at once, charges held exactly.

The operator is self-adjoint in the inner product <a, b> = a.S.b, with eigenvalues of 1 or more.
Charges u.S.w = c are constraints that every iterate fulfils: search directions are projected,
as in N. I. M. Gould, M. E. Hribar, J. Nocedal, SIAM J. Sci. Comput. 23, 1376 (2001), with the
operator's blocks on single atoms as preconditioner, so that one product with C per step serves
density and Fermi levels, however many groups of atoms hold their charge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fpmace.scf.problem import ChargeGroups, graph_sum, spread

if TYPE_CHECKING:
    from fpmace.scf.quadratic import QuadraticForm


class DualProblem:
    """The operator, its preconditioner, and the projection onto charges that are held."""

    def __init__(self, form: QuadraticForm, batch: Tensor, groups: ChargeGroups) -> None:
        self.form, self.groups = form, groups
        self.batch, self.n_graphs = batch, int(groups.graph.max()) + 1
        n = form.own.shape[0]
        response = form.response
        eye = torch.eye(n, dtype=response.dtype, device=response.device)
        inverse = torch.linalg.inv(eye + form.own.unsqueeze(-1) * response)
        # S M^-1 is symmetric; one product gives M^-1 r, S M^-1 r and S r.
        self._stack = torch.cat([inverse, response @ inverse, response], dim=1)
        self._n = n
        self._unit = self._stack[:, :, 0]
        capacity = groups.sum(self._unit[:, n])
        self._capacity = torch.where(capacity > 0, capacity, torch.inf)

    def apply(self, direction: Tensor, responded: Tensor) -> Tensor:
        """(1 + C S) p from p and S p."""
        return direction + self.form.interaction(responded)

    def sum(self, values: Tensor) -> Tensor:
        """[n_atoms, n] to [n_graphs]."""
        return graph_sum(values.sum(-1), self.batch, self.n_graphs)

    def spread(self, values: Tensor) -> Tensor:
        """[n_graphs] to [n_atoms, 1]."""
        return spread(values, self.batch, self.n_graphs).unsqueeze(-1)

    def precondition(self, residual: Tensor, level: Tensor | None) -> _Preconditioned:
        """M^-1 of the residual, its level shifted so that no charge is gained.

        Args:
            residual: [n_atoms, n].
            level: [n_groups] levels so far, None where no charge is held.
        """
        stacked = torch.bmm(self._stack, residual.unsqueeze(-1)).squeeze(-1)
        if level is not None:
            # Taken out of the residual itself: a large level would drown the rest in rounding.
            shift = -self.groups.sum(stacked[:, self._n]) / self._capacity
            at_atoms = self.groups.spread(shift).unsqueeze(-1)
            stacked = stacked + self._unit * at_atoms
            residual = torch.cat([residual[:, :1] + at_atoms, residual[:, 1:]], dim=1)
            level = level + shift
        z, sz, sr = torch.split(stacked, self._n, dim=1)
        return _Preconditioned(residual, level, z, sz, sr, self.sum(residual * sz))

    def start(self, charge: Tensor) -> tuple[Tensor, Tensor]:
        """(w, S w) with u.S.w = charge: a shift of the level that the preconditioner sees."""
        level = self.groups.spread(charge / self._capacity).unsqueeze(-1)
        return self._unit[:, : self._n] * level, self._unit[:, self._n : 2 * self._n] * level


@dataclass(frozen=True, slots=True)
class _Preconditioned:
    """r + mu u, levels, z = M^-1 (r + mu u), S z, S (r + mu u), and z.S.r of each graph."""

    residual: Tensor
    level: Tensor | None
    z: Tensor
    sz: Tensor
    sr: Tensor
    size: Tensor


@dataclass(frozen=True, slots=True)
class DualSolution:
    """w, S w [n_atoms, n], levels [n_groups], graphs that did not reach the tolerance."""

    potential: Tensor
    moved: Tensor
    level: Tensor
    n_products: int
    n_unconverged: int


def conjugate_gradients(
    dual: DualProblem,
    right: Tensor,
    charge: Tensor | None,
    *,
    rtol: float,
    accuracy: float = 0.0,
    max_iterations: int = 200,
) -> DualSolution:
    """Solve (1 + C S) w = r + mu u with u.S.w = charge; mu = 0 where ``charge`` is None.

    A graph stops when the energy norm of its preconditioned residual has fallen by ``rtol``, or
    the root mean square of S r is below ``accuracy``; it no longer changes while others go on.

    Args:
        right: [n_atoms, n].
        charge: [n_groups].
    """
    n_products = 0
    w, sw = torch.zeros_like(right), torch.zeros_like(right)
    now = dual.precondition(right, None if charge is None else torch.zeros_like(charge))
    first = now.size
    if charge is not None and bool((charge != 0).any()):
        w, sw = dual.start(charge)
        now = dual.precondition(right - dual.apply(w, sw), torch.zeros_like(charge))
        n_products, first = 1, torch.maximum(first, now.size)
    small = accuracy**2 * dual.sum(torch.ones_like(right))
    p, sp = now.z, now.sz
    while True:
        done = (now.size <= rtol**2 * first) | (dual.sum(now.sr.square()) <= small)
        active = ~done & torch.isfinite(now.size) & (now.size > 0)
        if n_products >= max_iterations or not bool(active.any()):
            break
        tp = dual.apply(p, sp)
        n_products += 1
        curvature = dual.sum(sp * tp)
        step = dual.spread(torch.where(active & (curvature > 0), now.size / curvature, 0.0))
        w, sw = w + step * p, sw + step * sp
        before, now = now.size, dual.precondition(now.residual - step * tp, now.level)
        keep = dual.spread(torch.where(active, now.size / before, 0.0))
        p, sp = now.z + keep * p, now.sz + keep * sp
    level = right.new_zeros(dual.groups.count) if now.level is None else now.level
    return DualSolution(w, sw, level, n_products, int(active.sum()))
