"""Newton steps with GMRES on Jacobian products, and the one-solve form for affine maps.

Sources: D. A. Knoll and D. E. Keyes, J. Comput. Phys. 193, 357 (2004); forcing terms after
S. C. Eisenstat and H. F. Walker, SIAM J. Sci. Comput. 17, 16 (1996).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpmace.registry import register_scf_solver
from fpmace.scf.linear_response import LinearResponse, default_rtol
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.solvers.base import Report, Solver

_ACCURACY = 0.3
"""Part of the SCF tolerance below which a linear residual need not be reduced: a start that is
nearly right costs few products."""


@dataclass(frozen=True, slots=True)
class _State:
    density: Tensor
    fermi_level: Tensor
    residual: Tensor | None = None
    charge_error: Tensor | None = None
    size: Tensor | None = None
    base: tuple[Tensor, Tensor] | None = None
    step: tuple[Tensor, Tensor] | None = None
    base_size: Tensor | None = None
    fraction: Tensor | None = None
    n_matvecs: int = 0
    accuracy: float = 0.0


@register_scf_solver("newton_krylov")
class NewtonKrylov(Solver):
    """Newton's method on density and Fermi level; linear solves by GMRES, steps halved at need."""

    def __init__(
        self,
        *,
        linear_tolerance: float = 1e-3,
        max_linear_iterations: int = 60,
        min_step_fraction: float = 0.03,
    ) -> None:
        self.linear_tolerance = linear_tolerance
        self.max_linear_iterations = max_linear_iterations
        self.min_step_fraction = min_step_fraction

    def start(
        self, problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, options: ScfOptions
    ) -> _State:
        return _State(density, fermi_level, accuracy=_ACCURACY * options.scf_tolerance)

    def evaluate(
        self, problem: FixedPointProblem, state: _State, *, last: bool
    ) -> tuple[Report, _State]:
        level = state.fermi_level
        new, features = problem.evaluate(state.density, problem.spread(level))
        residual = new - state.density
        change = problem.mean_abs(residual)
        error = problem.charge_error(state.density)
        size = change + error.abs() / problem.atoms_per_graph
        report = Report(state.density, level, level, features, change, error)
        return report, replace(state, residual=residual, charge_error=error, size=size)

    def advance(self, problem: FixedPointProblem, state: _State, active: Tensor) -> _State:
        if state.residual is None or state.size is None or state.charge_error is None:
            raise RuntimeError("advance called before evaluate")
        retreat = self._must_retreat(state, active)
        if state.base is not None and bool(retreat.any()):
            return self._halve(problem, state, active, retreat)
        step, n_matvecs = self._newton_step(problem, state, active)
        moved = _move(problem, (state.density, state.fermi_level), step, active.to(step[1].dtype))
        return replace(
            state,
            density=moved[0],
            fermi_level=moved[1],
            base=(state.density, state.fermi_level),
            base_size=state.size,
            step=step,
            fraction=torch.ones_like(state.size),
            n_matvecs=state.n_matvecs + n_matvecs,
        )

    def n_matvecs(self, state: _State) -> int:
        return state.n_matvecs

    def _tolerance(self, dtype: torch.dtype) -> float:
        return max(self.linear_tolerance, default_rtol(dtype))

    def _newton_step(
        self, problem: FixedPointProblem, state: _State, active: Tensor
    ) -> tuple[tuple[Tensor, Tensor], int]:
        assert state.residual is not None
        assert state.charge_error is not None
        point = problem.linearise(state.density, problem.spread(state.fermi_level))
        response = LinearResponse(
            problem,
            point,
            rtol=self._tolerance(state.density.dtype),
            max_iterations=self.max_linear_iterations,
            accuracy=state.accuracy,
        )
        moving = problem.spread(active).unsqueeze(-1)
        a = torch.where(moving, state.residual, torch.zeros_like(state.residual))
        e = torch.where(active, -state.charge_error, torch.zeros_like(state.charge_error))
        return response.solve(a, e), response.n_matvecs

    def _must_retreat(self, state: _State, active: Tensor) -> Tensor:
        if state.base_size is None or state.fraction is None or state.size is None:
            return torch.zeros_like(active)
        worse = ~(state.size < state.base_size)
        return active & worse & (state.fraction > self.min_step_fraction)

    def _halve(
        self, problem: FixedPointProblem, state: _State, active: Tensor, retreat: Tensor
    ) -> _State:
        """Halve the last step where it made things worse; the other graphs wait one pass."""
        assert state.base is not None
        assert state.step is not None
        assert state.fraction is not None
        fraction = torch.where(retreat, 0.5 * state.fraction, state.fraction)
        moved = _move(problem, state.base, state.step, fraction)
        atoms = problem.spread(retreat).unsqueeze(-1)
        return replace(
            state,
            density=torch.where(atoms, moved[0], state.density),
            fermi_level=torch.where(retreat, moved[1], state.fermi_level),
            fraction=fraction,
        )


@register_scf_solver("response")
class Response(NewtonKrylov):
    """One linear solve with the atoms' response matrices, exact for affine update rules."""

    needs_affine = True

    def __init__(
        self, *, linear_tolerance: float = 1e-7, max_linear_iterations: int = 200
    ) -> None:
        super().__init__(
            linear_tolerance=linear_tolerance, max_linear_iterations=max_linear_iterations
        )


def _move(
    problem: FixedPointProblem,
    origin: tuple[Tensor, Tensor],
    step: tuple[Tensor, Tensor],
    fraction: Tensor,
) -> tuple[Tensor, Tensor]:
    atoms = problem.spread(fraction).unsqueeze(-1)
    return origin[0] + atoms * step[0], origin[1] + fraction * step[1]
