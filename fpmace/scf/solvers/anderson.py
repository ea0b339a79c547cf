"""Anderson (Pulay) mixing on density and Fermi level.

Sources: D. G. Anderson, J. ACM 12, 547 (1965); P. Pulay, Chem. Phys. Lett. 73, 393 (1980).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from fpmace.annotations import Bounds, Count, Doc
from fpmace.registry import register_scf_solver
from fpmace.scf.charge_control import answer_to_level
from fpmace.scf.jacobian_solve import JacobianSolve
from fpmace.scf.options import FermiStep, Mixing, ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.solvers.base import Iterate, Report, Solver, evaluate_at, within
from fpmace.scf.solvers.least_squares import Change, fit

_PRECONDITIONER_ACCURACY = 0.05


@dataclass(frozen=True, slots=True)
class _State:
    """The iterate, and the differences of earlier ones (newest first).

    ``best`` and ``best_step``: the iterate with the smallest residual and the step proposed
    there; ``depth`` [n_graphs]: how much of the history a graph may use; ``damping`` and
    ``n_retreats`` [n_graphs].
    """

    density: Tensor
    fermi_level: Tensor
    rough: JacobianSolve
    level_scale: Tensor
    usual_damping: float
    damping: Tensor
    depth: Tensor
    n_retreats: Tensor
    best: Iterate | None = None
    best_step: Change | None = None
    previous: tuple[Change, Change] | None = None
    steps: tuple[Change, ...] = ()
    changes: tuple[Change, ...] = ()


@register_scf_solver("anderson")
class Anderson(Solver[_State, Iterate]):
    """Least-squares combination of the last iterates, per graph, with a condition bound.

    With the preconditioner ``response`` the residual is first multiplied by a rough inverse of
    1 - J, taken at the start: a few products with J in place of map evaluations. ``auto`` uses
    it where the map is affine, so that J is the same everywhere.
    """

    recovers = True

    def __init__(
        self,
        *,
        history: Annotated[Count, Doc("earlier iterates that are combined")] = 8,
        damping: Mixing = 1.0,
        condition_bound: Annotated[
            float, Bounds(minimum=1.0), Doc("condition number up to which the history is used")
        ] = 1e8,
        growth_bound: Annotated[
            float,
            Bounds(minimum=1.0),
            Doc("growth of the residual from the best one at which a graph goes back to it"),
        ] = 20.0,
        max_retreats: Annotated[
            int, Bounds(minimum=0), Doc("times that a graph goes back before it gives up")
        ] = 6,
        max_fermi_step: FermiStep = 2.0,
        preconditioner: Annotated[
            Literal["auto", "none", "response"],
            Doc("multiply residuals by a rough inverse of 1 - J; auto: where the map is affine"),
        ] = "auto",
    ) -> None:
        self.history = history
        self.damping = damping
        self.condition_bound = condition_bound
        self.growth_bound = growth_bound
        self.max_retreats = max_retreats
        self.max_fermi_step = max_fermi_step
        self.preconditioner = preconditioner

    def start(
        self, problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, options: ScfOptions
    ) -> _State:
        line = problem.linearisation(density, fermi_level)
        norm = problem.sum(line.fermi_response.square().sum(-1)).sqrt()
        none = torch.zeros_like(problem.atoms_per_graph)
        damping = options.mixing_parameter or self.damping
        return _State(
            density,
            fermi_level,
            rough=JacobianSolve(problem, line, rtol=_PRECONDITIONER_ACCURACY, max_dense_size=0),
            level_scale=torch.where(norm > 0, norm, torch.ones_like(norm)),
            usual_damping=damping,
            damping=torch.full_like(fermi_level, damping),
            depth=none,
            n_retreats=none,
        )

    def evaluate(
        self, problem: FixedPointProblem, state: _State, *, last: bool
    ) -> tuple[Report, Iterate]:
        report, found = evaluate_at(problem, state.density, state.fermi_level)
        best = found.size if state.best is None else torch.minimum(found.size, state.best.size)
        hopeless = (state.n_retreats > self.max_retreats) | torch.isinf(best)
        return replace(report, gave_up=hopeless), found

    def advance(
        self, problem: FixedPointProblem, state: _State, found: Iterate, active: Tensor
    ) -> _State:
        step = self._propose(problem, state, found, active)
        steps, changes = self._remember(state, found, step)
        best, best_step = state.best or found, state.best_step or step
        # A residual far above the best one spoils the fit: go back there, take less of the step.
        lost = ~(found.size <= self.growth_bound * best.size)
        better = found.size < best.size
        best = best.replace_where(problem, better, found)
        best_step = _where(problem, better, step, best_step)
        found = found.replace_where(problem, lost, best)
        step = _where(problem, lost, best_step, step)
        recovered = (1.5 * state.damping).clamp_max(state.usual_damping)
        damping = torch.where(lost, 0.3 * state.damping, recovered)
        depth = torch.where(lost, 0, state.depth)
        moved = self._combine(problem, state, steps, changes, step, depth, damping)
        moving = active & torch.isfinite(found.size)
        return replace(
            state,
            density=found.density + _scaled(problem, moving, moved[0]),
            fermi_level=found.fermi_level + torch.where(moving, moved[1], 0.0),
            damping=damping,
            depth=depth + 1,
            n_retreats=state.n_retreats + lost,
            best=best,
            best_step=best_step,
            previous=((found.density, found.fermi_level), step),
            steps=steps,
            changes=changes,
        )

    def n_matvecs(self, state: _State) -> int:
        return state.rough.n_matvecs

    def _propose(
        self, problem: FixedPointProblem, state: _State, found: Iterate, active: Tensor
    ) -> Change:
        """The step of plain or preconditioned iteration, the Fermi level following the charge."""
        usable = active & torch.isfinite(found.size)
        residual = _scaled(problem, usable, found.residual)
        error = torch.where(usable, found.charge_error, 0.0)
        if self.preconditioner == "response" or (
            self.preconditioner == "auto" and problem.is_affine
        ):
            return state.rough.solve(residual, -error)
        if problem.target_charge is None:
            return residual, torch.zeros_like(error)
        t = state.rough.linearisation.fermi_response
        total, responsive = answer_to_level(problem, t)
        missing = -(error + problem.charge(residual))
        pivot = torch.where(responsive, total, state.level_scale)
        level = missing / pivot
        return residual + t * problem.spread(level).unsqueeze(-1), level

    def _remember(
        self, state: _State, found: Iterate, step: Change
    ) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
        if state.previous is None:
            return (), ()
        (density, level), earlier = state.previous
        moved = (found.density - density, found.fermi_level - level)
        change = (step[0] - earlier[0], step[1] - earlier[1])
        keep = self.history - 1
        return (moved, *state.steps[:keep]), (change, *state.changes[:keep])

    def _combine(
        self,
        problem: FixedPointProblem,
        state: _State,
        steps: tuple[Change, ...],
        changes: tuple[Change, ...],
        step: Change,
        depth: Tensor,
        damping: Tensor,
    ) -> Change:
        """The move from the iterate: the damped step of the best combination of the history."""
        weights = fit(problem, state.level_scale, changes, step, depth, self.condition_bound)
        rate = problem.spread(damping).unsqueeze(-1)
        density, level = rate * step[0], damping * step[1]
        for index, (moved, change) in enumerate(zip(steps, changes, strict=True)):
            weight = weights[:, index]
            atoms = problem.spread(weight).unsqueeze(-1)
            density = density - torch.where(atoms != 0, atoms * (moved[0] + rate * change[0]), 0.0)
            past = weight * (moved[1] + damping * change[1])
            level = level - torch.where(weight != 0, past, 0.0)
        if problem.is_affine:
            return density, level
        fraction = within(level, self.max_fermi_step)
        return density * problem.spread(fraction).unsqueeze(-1), level * fraction


def _where(problem: FixedPointProblem, mask: Tensor, a: Change, b: Change) -> Change:
    atoms = problem.spread(mask).unsqueeze(-1)
    return torch.where(atoms, a[0], b[0]), torch.where(mask, a[1], b[1])


def _scaled(problem: FixedPointProblem, mask: Tensor, values: Tensor) -> Tensor:
    """Values of the graphs of ``mask``, zero (also in place of NaN) elsewhere."""
    return torch.where(problem.spread(mask).unsqueeze(-1), values, 0.0)
