"""The converged solution, with derivatives attached to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch

from fpmace import registry
from fpmace.density_modes.base import DensityMode, Solution, Start, initial_state
from fpmace.differentiation.base import Differentiation
from fpmace.differentiation.implicit import ImplicitDifferentiation
from fpmace.differentiation.stationary import Gate, held_solution
from fpmace.errors import ConfigError, ScfError
from fpmace.registry import Part, PartConfig, register_density_mode
from fpmace.scf.driver import make_solver, solve
from fpmace.scf.jacobian_solve import DENSE_SIZE
from fpmace.scf.options import DenseSize, LinearTolerance, ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult, ScfState, ScfStatus


class SolvedScf(DensityMode):
    """Solve without an autograd graph, then attach derivatives to the solution."""

    solves = True
    explains_failures = False
    """Whether the status is to tell of problems without a solution: what a training step that
    leaves out unconverged structures need not know."""

    def __init__(self, scf: ScfOptions, differentiation: Differentiation) -> None:
        self.scf: ScfOptions = scf
        self.solver = make_solver(scf)
        self.differentiation = differentiation
        self.max_order = 2

    def run(
        self,
        problem: FixedPointProblem,
        reference: ScfState,
        *,
        order: int,
        start: Start | None = None,
    ) -> Solution:
        with torch.no_grad():
            first = initial_state(problem, reference, self.scf, start)
            explain = self.explains_failures or self.scf.on_unconverged == "raise"
            result = solve(problem, first, self.scf, solver=self.solver, explain=explain)
        self.refuse(result)
        found = ScfState(result.density, result.fermi_level)
        sound = result.status != int(ScfStatus.NONFINITE)
        sound = sound & (result.status != int(ScfStatus.DIVERGED))
        order = min(order, self.max_order)
        state = self.differentiation.reattach(problem, found, order, sound)
        if self._must_unroll(result, order):
            state, result = _unroll_failed(problem, reference, self.scf, state, result)
        return _with_features(problem, state, order, result, hold=self.forces_at_fixed_density)

    def refuse(self, result: ScfResult) -> None:
        """Raise for failures that are not to pass, before any derivative is taken."""
        if self.scf.on_unconverged == "raise" and not bool(result.converged.all()):
            worst = int(torch.nonzero(~result.converged)[0])
            raise ScfError(f"SCF not converged in training: {result.describe(worst)}")

    def _must_unroll(self, result: ScfResult, order: int) -> bool:
        failed = not bool(result.converged.all())
        return failed and order > 0 and self.scf.on_unconverged == "unroll"


class KnownSolution(DensityMode):
    """Derivatives attached to a solution that is known; nothing is solved."""

    solves = True

    def __init__(
        self,
        solution: ScfState,
        differentiation: Differentiation,
        *,
        constant_charge: bool,
        fragments: bool = False,
    ) -> None:
        self.solution, self.differentiation = solution, differentiation
        self._constant_charge, self._fragments = constant_charge, fragments

    @property
    def constant_charge(self) -> bool:
        return self._constant_charge

    @property
    def holds_fragments(self) -> bool:
        return self._fragments

    def run(
        self,
        problem: FixedPointProblem,
        reference: ScfState,
        *,
        order: int,
        start: Start | None = None,
    ) -> Solution:
        state = self.differentiation.reattach(problem, self.solution, order)
        return _with_features(problem, state, order)


def _with_features(
    problem: FixedPointProblem,
    state: ScfState,
    order: int,
    result: ScfResult | None = None,
    *,
    hold: bool = False,
) -> Solution:
    """The solution with its features; held for forces if asked, or if the energy is stationary."""
    if not problem.stationary:
        gate = Gate()
        if hold and order > 0:
            density, level = gate.guard(state.density), gate.guard(state.fermi_level)
            state = ScfState(density, level)
        features = problem.features(state.density, problem.spread(state.fermi_level))
        return Solution(state.density, state.fermi_level, features, result, gate.closed)
    found = None if result is None else result.features
    level, features, closed = held_solution(problem, state, order, found)
    return Solution(state.density, level, features, result, closed)


def _unroll_failed(
    problem: FixedPointProblem,
    reference: ScfState,
    options: ScfOptions,
    state: ScfState,
    result: ScfResult,
) -> tuple[ScfState, ScfResult]:
    """Replace unconverged graphs by a short differentiated loop of linear mixing."""
    linear = replace(
        options,
        solver="linear",
        num_scf_steps=options.unroll_steps + 1,
        on_failure="ignore",
        history="none",
        diagnostics=False,
    )
    loop = solve(problem, initial_state(problem, reference, linear), linear, explain=False)
    kept = (loop.status == int(ScfStatus.CONVERGED)) | (loop.status == int(ScfStatus.MAX_STEPS))
    taken = ~result.converged & kept
    atoms = problem.spread(taken).unsqueeze(-1)
    mixed = ScfState(
        torch.where(atoms, loop.density, state.density),
        torch.where(taken, loop.fermi_level, state.fermi_level),
    )
    evaluations = result.n_map_evaluations + loop.n_map_evaluations
    return mixed, replace(result, fallback=taken, n_map_evaluations=evaluations)


DifferentiationPart = Annotated[PartConfig | None, Part("differentiation")]


@register_density_mode("scf")
class SelfConsistent(SolvedScf):
    """The converged solution with first derivatives by the adjoint: evaluation and inference.

    Unless ``differentiation`` names another way, the adjoint is solved to a hundredth of the SCF
    tolerance, so that the error of forces is that of the density.
    """

    def __init__(self, *, differentiation: DifferentiationPart = None, scf: ScfOptions) -> None:
        tolerance = min(max(0.01 * scf.scf_tolerance, 1e-10), 1e-6)
        default = ImplicitDifferentiation(linear_tolerance=tolerance)
        super().__init__(scf, _named(differentiation) or default)


@register_density_mode("implicit")
class Implicit(SolvedScf):
    """Exact derivatives of the converged solution by adjoint solves, to the order needed.

    ``linear_tolerance`` and ``max_dense_size`` set those solves; ``differentiation`` names
    another way to attach derivatives, which has settings of its own.
    """

    def __init__(
        self,
        *,
        order: Literal[1, 2] | None = None,
        linear_tolerance: LinearTolerance | None = None,
        max_dense_size: DenseSize = DENSE_SIZE,
        differentiation: DifferentiationPart = None,
        scf: ScfOptions,
    ) -> None:
        if differentiation is not None and (
            linear_tolerance is not None or max_dense_size != DENSE_SIZE
        ):
            raise ConfigError(
                "fixed_point_training_options.differentiation: has a linear_tolerance and a "
                "max_dense_size of its own; give them there"
            )
        default = ImplicitDifferentiation(
            linear_tolerance=linear_tolerance, max_dense_size=max_dense_size
        )
        super().__init__(scf, _named(differentiation) or default)
        self.max_order = order or 2


@register_density_mode("linearize_solve")
class LinearizeSolve(SolvedScf):
    """Linear solves about the solution, forward as well: also polishes a loosely converged one.

    One detached solve for each order of derivatives, so that they are exact for every rule.
    """

    linearised = False

    def __init__(
        self,
        *,
        linear_tolerance: LinearTolerance | None = None,
        max_dense_size: DenseSize = DENSE_SIZE,
        scf: ScfOptions,
    ) -> None:
        method = ImplicitDifferentiation(
            linear_tolerance=linear_tolerance,
            max_dense_size=max_dense_size,
            newton_correction=True,
            linearised=self.linearised,
        )
        super().__init__(scf, method)


@register_density_mode("linearize_solve_one_step")
class LinearizeSolveOneStep(LinearizeSolve):
    """One linearised step about the detached solution, as earlier codes do.

    First derivatives are exact; second derivatives (a loss with forces or stress) lack the
    curvature of the map and are exact only where the update rule is affine.
    """

    linearised = True


def _named(part: PartConfig | None) -> Differentiation | None:
    """The differentiation that an option names; None where it names none."""
    if part is None:
        return None
    made: Differentiation = registry.build("differentiation", part)
    return made
