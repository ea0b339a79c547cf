"""The solve of passive rules: conjugate gradients, or Cholesky factors for small graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpmace.errors import ConfigError, ScfError
from fpmace.registry import register_scf_solver
from fpmace.scf.options import DenseSize, LinearIterations, LinearTolerance, ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.quadratic import DENSE_SIZE, QuadraticSolve
from fpmace.scf.solvers.base import Iterate, Report, Solver, evaluate_at

_ACCURACY = 0.2
"""Part of the SCF tolerance to which the root mean square residual is reduced at most."""

_SMALLEST_CHARGE = 1e-6
"""Charge error (e) up to which a graph that can move no charge passes."""

_PATIENCE = 4
"""Passes without progress after which rounding is taken to be the limit."""


@dataclass(frozen=True, slots=True)
class _State:
    density: Tensor
    fermi_level: Tensor
    solve: QuadraticSolve
    best: Tensor
    idle: Tensor


@register_scf_solver("cg")
class ConjugateGradients(Solver[_State, Iterate]):
    """One symmetric positive solve for density and Fermi level, for passive update rules.

    Every graph has exactly one solution, which does not depend on the start, and the steps are
    bounded by the square root of the largest eigenvalue of 1 + B^T C B. See
    :mod:`fpmace.scf.quadratic`.
    """

    recovers = True

    def __init__(
        self,
        *,
        linear_tolerance: LinearTolerance = 1e-8,
        max_linear_iterations: LinearIterations = 200,
        max_dense_size: DenseSize = DENSE_SIZE,
    ) -> None:
        self.linear_tolerance = linear_tolerance
        self.max_linear_iterations = max_linear_iterations
        self.max_dense_size = max_dense_size

    def start(
        self, problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, options: ScfOptions
    ) -> _State:
        if problem.quadratic is None:
            raise ConfigError(
                "scf.solver: cg needs a passive update rule, such as OneBodyPassiveUpdate, and "
                "this one is not; use auto, anderson or newton_krylov"
            )
        solve = QuadraticSolve(
            problem,
            problem.quadratic,
            rtol=max(self.linear_tolerance, 100.0 * torch.finfo(density.dtype).eps),
            max_iterations=self.max_linear_iterations,
            accuracy=_ACCURACY * options.scf_tolerance,
            max_dense_size=self.max_dense_size,
        )
        return _State(
            density,
            fermi_level,
            solve,
            best=torch.full_like(fermi_level, torch.inf),
            idle=torch.zeros_like(problem.atoms_per_graph),
        )

    def evaluate(
        self, problem: FixedPointProblem, state: _State, *, last: bool
    ) -> tuple[Report, Iterate]:
        report, found = evaluate_at(problem, state.density, state.fermi_level)
        hopeless = (state.idle >= _PATIENCE) | torch.isinf(found.size)
        return replace(report, gave_up=hopeless), found

    def advance(
        self, problem: FixedPointProblem, state: _State, found: Iterate, active: Tensor
    ) -> _State:
        moving = active & torch.isfinite(found.size)
        atoms = problem.spread(moving).unsqueeze(-1)
        _refuse_immovable(problem, found.charge_error)
        change, shift = state.solve.solve(
            torch.where(atoms, found.residual, 0.0), torch.where(moving, -found.charge_error, 0.0)
        )
        better = found.size < 0.9 * state.best
        return replace(
            state,
            density=found.density + change,
            fermi_level=found.fermi_level + shift,
            best=torch.minimum(state.best, found.size),
            idle=torch.where(better, 0, state.idle + 1),
        )

    def n_matvecs(self, state: _State) -> int:
        return state.solve.n_matvecs


def _refuse_immovable(problem: FixedPointProblem, error: Tensor) -> None:
    """Refuse graphs whose charge is wrong and that can move none.

    Raises:
        ScfError: naming the graph.
    """
    if problem.target_charge is None or problem.quadratic is None:
        return
    movable = problem.charge_groups.sum(problem.quadratic.response[:, 0, 0]) > 0
    error = error.abs() * ~movable
    worst = int(error.argmax())
    if float(error[worst]) > _SMALLEST_CHARGE:
        raise ScfError(
            f"structure {worst}: its total charge cannot be met (off by {float(error[worst]):.3g} "
            "e): no atom takes up charge, since all responses of degree 0 are zero, and the local "
            "density has another charge; use isotropic: true in the update rule, another "
            "total_charge, or a constant Fermi level"
        )
