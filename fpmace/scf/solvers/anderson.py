"""Anderson (Pulay) mixing on density and Fermi level.

Sources: D. G. Anderson, J. ACM 12, 547 (1965); P. Pulay, Chem. Phys. Lett. 73, 393 (1980).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpmace.registry import register_scf_solver
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.solvers.base import Report, Solver


@dataclass(frozen=True, slots=True)
class _State:
    """The iterate, its residual, and the differences of earlier ones (newest first)."""

    density: Tensor
    fermi_level: Tensor
    fermi_response: Tensor
    level_scale: Tensor
    damping: float
    residual: tuple[Tensor, Tensor] | None = None
    previous: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    steps: tuple[tuple[Tensor, Tensor], ...] = ()
    changes: tuple[tuple[Tensor, Tensor], ...] = ()
    depth: Tensor | None = None
    best: Tensor | None = None


@register_scf_solver("anderson")
class Anderson(Solver):
    """Least-squares combination of the last iterates, per graph, with a condition bound."""

    def __init__(
        self,
        *,
        history: int = 8,
        damping: float = 1.0,
        condition_bound: float = 1e8,
        growth_bound: float = 20.0,
    ) -> None:
        self.history = history
        self.damping = damping
        self.condition_bound = condition_bound
        self.growth_bound = growth_bound

    def start(
        self, problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, options: ScfOptions
    ) -> _State:
        response = torch.zeros_like(density)
        scale = torch.ones_like(fermi_level)
        if problem.target_charge is not None:
            line = problem.linearise(density, problem.spread(fermi_level))
            response = line.fermi_response
            norm = problem.sum(response.square().sum(-1)).sqrt()
            scale = torch.where(norm > 0, norm, scale)
        return _State(
            density,
            fermi_level,
            response,
            scale,
            options.mixing_parameter or self.damping,
            depth=torch.zeros_like(problem.atoms_per_graph),
        )

    def evaluate(
        self, problem: FixedPointProblem, state: _State, *, last: bool
    ) -> tuple[Report, _State]:
        level = state.fermi_level
        new, features = problem.evaluate(state.density, problem.spread(level))
        difference = new - state.density
        error = problem.charge_error(state.density)
        change = problem.mean_abs(difference)
        report = Report(state.density, level, level, features, change, error)
        shift = torch.zeros_like(level)
        if problem.target_charge is not None:
            total = problem.sum(state.fermi_response[:, 0])
            magnitude = problem.sum(state.fermi_response[:, 0].abs())
            usable = total.abs() > 1e-3 * magnitude
            safe = torch.where(usable, total, torch.ones_like(total))
            missing = -problem.charge_error(new)
            shift = torch.where(usable, missing / safe, missing / state.level_scale)
            difference = difference + state.fermi_response * problem.spread(shift).unsqueeze(-1)
        return report, replace(state, residual=(difference, shift))

    def advance(self, problem: FixedPointProblem, state: _State, active: Tensor) -> _State:
        if state.residual is None or state.depth is None:
            raise RuntimeError("advance called before evaluate")
        residual, shift = state.residual
        size = self._dot(problem, state, state.residual, state.residual).sqrt()
        steps, changes = self._remember(state)
        best = size if state.best is None else torch.minimum(size, state.best)
        # A residual far above the best one spoils the fit: forget the history and start afresh.
        lost = ~(size <= self.growth_bound * best)
        depth = torch.where(lost, 0, state.depth)
        weights = self._fit(problem, state, changes, depth)
        moved_density = state.damping * residual
        moved_level = state.damping * shift
        for index, (step, change) in enumerate(zip(steps, changes, strict=True)):
            gamma = weights[:, index]
            atoms = problem.spread(gamma).unsqueeze(-1)
            moved_density = moved_density - atoms * (step[0] + state.damping * change[0])
            moved_level = moved_level - gamma * (step[1] + state.damping * change[1])
        moving = problem.spread(active).unsqueeze(-1)
        zero = torch.zeros_like(moved_level)
        return replace(
            state,
            density=torch.where(moving, state.density + moved_density, state.density),
            fermi_level=state.fermi_level + torch.where(active, moved_level, zero),
            previous=(state.density, state.fermi_level, residual, shift),
            steps=steps,
            changes=changes,
            depth=depth + 1,
            best=best,
            residual=None,
        )

    def _remember(
        self, state: _State
    ) -> tuple[tuple[tuple[Tensor, Tensor], ...], tuple[tuple[Tensor, Tensor], ...]]:
        if state.previous is None or state.residual is None:
            return (), ()
        density, level, residual, shift = state.previous
        step = (state.density - density, state.fermi_level - level)
        change = (state.residual[0] - residual, state.residual[1] - shift)
        keep = self.history - 1
        return (step, *state.steps[:keep]), (change, *state.changes[:keep])

    def _fit(
        self,
        problem: FixedPointProblem,
        state: _State,
        changes: tuple[tuple[Tensor, Tensor], ...],
        depth: Tensor,
    ) -> Tensor:
        """Coefficients [n_graphs, m] that minimise |residual - sum gamma_k change_k|."""
        m = len(changes)
        n = problem.n_graphs
        if m == 0 or state.residual is None:
            return state.density.new_zeros((n, 0))
        gram = state.density.new_zeros((n, m, m))
        right = state.density.new_zeros((n, m))
        for i in range(m):
            right[:, i] = self._dot(problem, state, changes[i], state.residual)
            for j in range(i, m):
                gram[:, i, j] = self._dot(problem, state, changes[i], changes[j])
                gram[:, j, i] = gram[:, i, j]
        known = torch.arange(m, device=depth.device) < depth.unsqueeze(-1)
        pair = known.unsqueeze(-1) & known.unsqueeze(-2)
        gram = torch.where(pair, torch.nan_to_num(gram), torch.zeros_like(gram))
        right = torch.where(known, torch.nan_to_num(right), torch.zeros_like(right))
        return self._bounded_solve(gram, right)

    def _bounded_solve(self, gram: Tensor, right: Tensor) -> Tensor:
        """Solve the normal equations, dropping directions beyond the condition bound."""
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()
        scaled = gram * scale.unsqueeze(-1) * scale.unsqueeze(-2)
        values, vectors = torch.linalg.eigh(scaled)
        largest = values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)
        bound = max(1.0 / self.condition_bound**2, 10 * torch.finfo(values.dtype).eps)
        kept = values > bound * largest
        inverse = torch.where(kept, 1.0 / torch.where(kept, values, 1.0), 0.0)
        projected = torch.einsum("gij,gi->gj", vectors, right * scale)
        return torch.einsum("gij,gj->gi", vectors, inverse * projected) * scale

    @staticmethod
    def _dot(
        problem: FixedPointProblem,
        state: _State,
        a: tuple[Tensor, Tensor],
        b: tuple[Tensor, Tensor],
    ) -> Tensor:
        levels = state.level_scale.square() * a[1] * b[1]
        return problem.sum((a[0] * b[0]).sum(-1)) + levels
