"""Newton steps with linear solves of the linearised problem.

Sources: D. A. Knoll and D. E. Keyes, J. Comput. Phys. 193, 357 (2004); pseudo-transient damping
after C. T. Kelley and D. E. Keyes, SIAM J. Numer. Anal. 35, 508 (1998).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from fpmace.annotations import Count, Doc, Positive
from fpmace.registry import register_scf_solver
from fpmace.scf.jacobian_solve import DENSE_SIZE, LinearisedSolve, default_rtol, linearised_solve
from fpmace.scf.options import (
    DenseSize,
    FermiStep,
    LinearIterations,
    LinearTolerance,
    ScfOptions,
)
from fpmace.scf.problem import FixedPointProblem, Linearisation
from fpmace.scf.quadratic import QuadraticLinearisation
from fpmace.scf.solvers.base import Iterate, Report, Solver, evaluate_at, within

_ACCURACY = 0.2
"""Part of the SCF tolerance to which the root mean square linear residual is reduced at most: the
mean absolute one is then well below the tolerance, and a start that is nearly right costs few
products."""

_FIRST_SHIFT, _SMALLEST_SHIFT = 0.5, 0.05


@dataclass(frozen=True, slots=True)
class _State:
    """``density``, ``fermi_level``: what the next pass evaluates; ``base``: where the last step
    began; ``shift`` [n_graphs]: damping; ``idle`` [n_graphs]: passes without progress."""

    density: Tensor
    fermi_level: Tensor
    accuracy: float
    shift: Tensor
    best: Tensor
    idle: Tensor
    base: Iterate | None = None
    n_matvecs: int = 0


@register_scf_solver("newton_krylov")
class NewtonKrylov(Solver[_State, Iterate]):
    """Newton's method on density and Fermi level, damped towards plain iteration at need.

    A step solves ``(shift + 1 - J) step = residual`` by GMRES, or by conjugate gradients where
    the rule is passive and the problem symmetric. A step that increases the residual
    is taken back and repeated with a larger shift, up to ``max_shift``; each success lowers it.
    """

    recovers = True

    def __init__(
        self,
        *,
        linear_tolerance: LinearTolerance = 1e-3,
        max_linear_iterations: LinearIterations = 60,
        max_dense_size: DenseSize = DENSE_SIZE,
        max_fermi_step: FermiStep = 2.0,
        max_shift: Annotated[Positive, Doc("largest shift; beyond it a graph gives up")] = 32.0,
        patience: Annotated[Count, Doc("passes without progress before a graph gives up")] = 20,
    ) -> None:
        self.linear_tolerance = linear_tolerance
        self.max_linear_iterations = max_linear_iterations
        self.max_dense_size = max_dense_size
        self.max_fermi_step = max_fermi_step
        self.max_shift = max_shift
        self.patience = patience

    def start(
        self, problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, options: ScfOptions
    ) -> _State:
        return _State(
            density,
            fermi_level,
            accuracy=_ACCURACY * options.scf_tolerance,
            shift=torch.zeros_like(fermi_level),
            best=torch.full_like(fermi_level, torch.inf),
            idle=torch.zeros_like(problem.atoms_per_graph),
        )

    def evaluate(
        self, problem: FixedPointProblem, state: _State, *, last: bool
    ) -> tuple[Report, Iterate]:
        report, found = evaluate_at(problem, state.density, state.fermi_level)
        hopeless = torch.isinf(torch.minimum(found.size, state.best))
        return replace(report, gave_up=(state.idle >= self.patience) | hopeless), found

    def advance(
        self, problem: FixedPointProblem, state: _State, found: Iterate, active: Tensor
    ) -> _State:
        better = found.size < 0.9 * state.best
        base, shift = self._judge_step(problem, state, found)
        linear = self._linear(problem, base, shift, state.accuracy)
        moving = active & torch.isfinite(base.size)
        scale = torch.where(moving, 1.0 / (1.0 + shift), 0.0)
        wanted = torch.where(
            problem.spread(moving).unsqueeze(-1), base.residual, torch.zeros_like(base.residual)
        )
        density, level = linear.solve(
            wanted * problem.spread(scale).unsqueeze(-1),
            torch.where(moving, -base.charge_error, 0.0) * scale,
        )
        taken = moving.to(level.dtype)
        if not problem.is_affine:
            taken = taken * within(level, self.max_fermi_step)
        return replace(
            state,
            density=base.density + problem.spread(taken).unsqueeze(-1) * density,
            fermi_level=base.fermi_level + taken * level,
            base=base,
            shift=shift,
            best=torch.where(better, found.size, state.best),
            idle=torch.where(better, 0, state.idle + 1),
            n_matvecs=state.n_matvecs + linear.n_matvecs,
        )

    def n_matvecs(self, state: _State) -> int:
        return state.n_matvecs

    def _judge_step(
        self, problem: FixedPointProblem, state: _State, found: Iterate
    ) -> tuple[Iterate, Tensor]:
        """Go back where the last step made things worse; raise or lower the damping."""
        if state.base is None:
            return found, state.shift
        worse = ~(found.size <= state.base.size) & (state.shift < self.max_shift)
        worse = worse | ~torch.isfinite(found.size)
        base = found.replace_where(problem, worse, state.base)
        ratio = (found.size / state.base.size).clamp(0.1, 1.0)
        lower = 0.5 * ratio * state.shift
        lower = torch.where(lower < _SMALLEST_SHIFT, 0.0, lower)
        higher = (4.0 * state.shift).clamp(_FIRST_SHIFT, self.max_shift)
        return base, torch.where(worse, higher, lower)

    def _linear(
        self, problem: FixedPointProblem, base: Iterate, shift: Tensor, accuracy: float
    ) -> LinearisedSolve:
        line = problem.linearisation(base.density, base.fermi_level)
        if bool((shift > 0).any()):
            line = _damped(line, problem, 1.0 / (1.0 + shift))
        return linearised_solve(
            problem,
            line,
            rtol=max(self.linear_tolerance, default_rtol(base.density.dtype)),
            max_iterations=self.max_linear_iterations,
            accuracy=accuracy,
            max_dense_size=self.max_dense_size,
        )


def _damped(line: Linearisation, problem: FixedPointProblem, factor: Tensor) -> Linearisation:
    if isinstance(line, QuadraticLinearisation):
        return QuadraticLinearisation(line.form.damped(problem.spread(factor)))
    return _Damped(line, problem, factor)


class _Damped:
    """J and the response to the Fermi level, both divided by 1 + shift of the atom's graph."""

    def __init__(self, line: Linearisation, problem: FixedPointProblem, factor: Tensor) -> None:
        self._line, self._graphs = line, factor
        self._factor = problem.spread(factor).unsqueeze(-1)
        self.fermi_response = line.fermi_response * self._factor
        self.cheap_dense = line.cheap_dense

    def apply(self, tangent: Tensor) -> Tensor:
        return self._line.apply(tangent) * self._factor

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        return self._line.apply_transpose(cotangent * self._factor)

    def dense(self) -> Tensor:
        return self._line.dense() * self._graphs[:, None, None]
