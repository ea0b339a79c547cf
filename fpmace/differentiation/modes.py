"""Modes: named pairs of a solve and a differentiation, chosen by ``mode`` in a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpmace.differentiation.implicit import ImplicitDifferentiation, NoDifferentiation
from fpmace.errors import ConfigError, ScfError
from fpmace.registry import register_training_mode, set_base
from fpmace.scf.driver import make_solver, solve
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult, ScfState


@dataclass(frozen=True, slots=True)
class Solution:
    """Density [n_atoms, n_lm], Fermi level [n_graphs] and features, with derivatives attached."""

    density: Tensor
    fermi_level: Tensor
    features: Tensor
    scf: ScfResult | None = None


class TrainingMode(ABC):
    """Finds the density of a batch and attaches derivatives to it."""

    scf: ScfOptions | None = None

    @property
    def constant_charge(self) -> bool:
        """Whether the total charge is held (else the Fermi level)."""
        return self.scf is None or self.scf.constant_charge

    @property
    def requires_labels(self) -> tuple[str, ...]:
        """Labels that every configuration must carry."""
        if self.scf is None:
            return ()
        needed = []
        if self.scf.initial_density == "from_data":
            needed.append("atomic_multipoles")
        if self.scf.initial_fermi_level == "from_data":
            needed.append("fermi_level")
        return tuple(needed)

    @abstractmethod
    def run(self, problem: FixedPointProblem, reference: ScfState, *, order: int) -> Solution:
        """Find the density.

        Args:
            problem: attached to positions and parameters.
            reference: density and Fermi level of the data (zeros where there are none).
            order: how many times the result will be differentiated (0, 1, 2).
        """


set_base("training_mode", TrainingMode)


def initial_state(
    problem: FixedPointProblem, reference: ScfState, options: ScfOptions
) -> ScfState:
    """The density and Fermi level that the options ask to start from."""
    if options.initial_density == "local_guess":
        density = problem.local_density
    elif options.initial_density == "from_data":
        density = reference.density
    else:
        density = torch.zeros_like(problem.local_density)
    if options.initial_fermi_level == "from_data":
        level = reference.fermi_level
    elif options.initial_fermi_level == "zero":
        level = torch.zeros_like(reference.fermi_level)
    else:
        level = torch.full_like(reference.fermi_level, float(options.initial_fermi_level))
    return ScfState(density, level)


@register_training_mode("direct")
class Direct(TrainingMode):
    """One evaluation of the map at the reference density and Fermi level; no SCF."""

    def __init__(self) -> None:
        self.scf = None

    @property
    def requires_labels(self) -> tuple[str, ...]:
        return ("atomic_multipoles", "fermi_level")

    def run(self, problem: FixedPointProblem, reference: ScfState, *, order: int) -> Solution:
        level = reference.fermi_level
        density, features = problem.evaluate(reference.density, problem.spread(level))
        return Solution(density, level, features)


@register_training_mode("unroll_scf")
class UnrolledScf(TrainingMode):
    """Derivatives through the passes of the SCF loop; memory grows with their number."""

    def __init__(self, *, scf: ScfOptions, final_evaluation: bool = False) -> None:
        if scf.solver == "auto":
            scf = replace(scf, solver="linear")
        self.scf: ScfOptions = scf
        self.final_evaluation = final_evaluation
        self.solver = make_solver(scf)
        if not self.solver.differentiable:
            raise ConfigError(
                f"fixed_point_training_options.scf.solver: unroll_scf cannot differentiate "
                f"through {scf.solver!r}; use 'linear', or mode implicit"
            )

    def run(self, problem: FixedPointProblem, reference: ScfState, *, order: int) -> Solution:
        options = self.scf
        detach = 0
        if not options.use_autograd_forces and not options.constant_charge:
            detach = options.num_scf_steps - 2
        start = initial_state(problem, reference, options)
        with torch.set_grad_enabled(order > 0 and torch.is_grad_enabled()):
            result = solve(problem, start, options, solver=self.solver, detach_before=detach)
            features = result.features
            if self.final_evaluation:
                level = problem.spread(result.fermi_level)
                features = problem.features(result.density, level)
        return Solution(result.density, result.fermi_level, features, _detached(result))


class _SolvedScf(TrainingMode):
    """Solve without an autograd graph, then attach derivatives to the solution."""

    def __init__(self, scf: ScfOptions, differentiation: ImplicitDifferentiation) -> None:
        self.scf: ScfOptions = scf
        self.solver = make_solver(scf)
        self.differentiation = differentiation
        self.max_order = 2

    def run(self, problem: FixedPointProblem, reference: ScfState, *, order: int) -> Solution:
        with torch.no_grad():
            start = initial_state(problem, reference, self.scf)
            result = solve(problem, start, self.scf, solver=self.solver)
        self._check(result, order)
        found = ScfState(result.density, result.fermi_level)
        if not self.scf.use_autograd_forces:
            state = NoDifferentiation().reattach(problem, found, order)
        else:
            state = self.differentiation.reattach(problem, found, min(order, self.max_order))
        features = problem.features(state.density, problem.spread(state.fermi_level))
        return Solution(state.density, state.fermi_level, features, result)

    def _check(self, result: ScfResult, order: int) -> None:
        if self.scf.on_unconverged == "raise" and not bool(result.converged.all()):
            worst = int(torch.nonzero(~result.converged)[0])
            raise ScfError(f"SCF not converged in training: {result.describe(worst)}")


@register_training_mode("scf")
class SelfConsistent(_SolvedScf):
    """The converged solution with first derivatives by the adjoint: evaluation and inference."""

    def __init__(self, *, scf: ScfOptions) -> None:
        super().__init__(scf, ImplicitDifferentiation())


@register_training_mode("implicit")
class Implicit(_SolvedScf):
    """Exact derivatives of the converged solution by adjoint solves, to the order needed."""

    def __init__(
        self,
        *,
        order: int | None = None,
        linear_tolerance: float | None = None,
        scf: ScfOptions,
    ) -> None:
        super().__init__(scf, ImplicitDifferentiation(linear_tolerance=linear_tolerance))
        if order is not None:
            if order not in (1, 2):
                raise ConfigError(
                    f"fixed_point_training_options.order: got {order}, allowed: 1, 2"
                )
            self.max_order = order


@register_training_mode("linearize_solve")
class LinearizeSolve(_SolvedScf):
    """Linear solves about the solution, forward as well: also polishes a loosely converged one."""

    def __init__(self, *, linear_tolerance: float | None = None, scf: ScfOptions) -> None:
        super().__init__(
            scf,
            ImplicitDifferentiation(linear_tolerance=linear_tolerance, newton_correction=True),
        )


def _detached(result: ScfResult) -> ScfResult:
    return replace(
        result,
        density=result.density.detach(),
        fermi_level=result.fermi_level.detach(),
        features=result.features.detach(),
    )
