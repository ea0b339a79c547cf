"""Modes: named pairs of a solve and a differentiation, chosen by ``mode`` in a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fpmace.differentiation.base import Differentiation
from fpmace.differentiation.implicit import ImplicitDifferentiation, NoDifferentiation
from fpmace.errors import ConfigError, ScfError
from fpmace.registry import register_training_mode, set_base
from fpmace.scf.driver import make_solver, solve
from fpmace.scf.jacobian_solve import DENSE_SIZE
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult, ScfState, ScfStatus


@dataclass(frozen=True, slots=True)
class Solution:
    """Density [n_atoms, n_lm], Fermi level [n_graphs] and features, with derivatives attached.

    ``hold_density`` is a context in which the attached derivatives of the density vanish: for
    energies that are stationary in it, whose gradient by positions and strain is the explicit one.
    """

    density: Tensor
    fermi_level: Tensor
    features: Tensor
    scf: ScfResult | None = None
    hold_density: Callable[[], AbstractContextManager[None]] = field(
        default=nullcontext, repr=False, compare=False
    )


@dataclass(frozen=True, slots=True)
class Start:
    """Where the search for a density starts.

    Attributes:
        state: density [n_atoms, n_lm] and Fermi level [n_graphs].
        above_local: whether the field-independent density is to be added to the density.
    """

    state: ScfState
    above_local: bool = False

    def resolve(self, problem: FixedPointProblem) -> ScfState:
        """The starting density and Fermi level of a problem."""
        density = self.state.density
        if self.above_local:
            density = problem.local_density.detach() + density
        return ScfState(density, self.state.fermi_level)


class TrainingMode(ABC):
    """Finds the density of a batch and attaches derivatives to it."""

    scf: ScfOptions | None = None

    solves: bool = False
    """Whether the density found is a converged solution wherever the solve succeeds."""

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

    def training_reference(self, reference: ScfState, problem: FixedPointProblem) -> ScfState:
        """What a training step gets in place of the reference of the data; by default the same."""
        return reference

    @abstractmethod
    def run(
        self,
        problem: FixedPointProblem,
        reference: ScfState,
        *,
        order: int,
        start: Start | None = None,
    ) -> Solution:
        """Find the density.

        Args:
            problem: attached to positions and parameters.
            reference: density and Fermi level of the data (zeros where there are none).
            order: how many times the result will be differentiated (0, 1, 2).
            start: where to start, in place of what the options say.
        """


set_base("training_mode", TrainingMode)


def initial_state(
    problem: FixedPointProblem,
    reference: ScfState,
    options: ScfOptions,
    start: Start | None = None,
) -> ScfState:
    """The density and Fermi level to start from: as given, or what the options ask for."""
    if start is not None:
        return start.resolve(problem)
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
    """One evaluation of the map at the reference density and Fermi level; no SCF.

    With ``density_noise`` training evaluates the map at the reference plus noise (standard
    deviation in e Angstrom^l; no charge is added to a structure), so that it learns to lead
    back to the reference from beside it.
    """

    def __init__(self, *, density_noise: float = 0.0) -> None:
        if density_noise < 0:
            raise ConfigError(
                "fixed_point_training_options.density_noise: expected 0 or more, "
                f"got {density_noise}"
            )
        self.scf = None
        self.density_noise = density_noise

    @property
    def requires_labels(self) -> tuple[str, ...]:
        return ("atomic_multipoles", "fermi_level")

    def training_reference(self, reference: ScfState, problem: FixedPointProblem) -> ScfState:
        if self.density_noise == 0:
            return reference
        noise = self.density_noise * torch.randn_like(reference.density)
        gained = problem.charge(noise) / problem.atoms_per_graph
        charges = noise[:, :1] - problem.spread(gained).unsqueeze(-1)
        noise = torch.cat([charges, noise[:, 1:]], dim=-1)
        return ScfState(reference.density + noise, reference.fermi_level)

    def run(
        self,
        problem: FixedPointProblem,
        reference: ScfState,
        *,
        order: int,
        start: Start | None = None,
    ) -> Solution:
        if start is not None:
            raise ConfigError("start: direct evaluates the map at the reference; leave it out")
        level = reference.fermi_level
        density, features = problem.evaluate(reference.density, problem.spread(level))
        return Solution(density, level, features)


@register_training_mode("unroll_scf")
class UnrolledScf(TrainingMode):
    """Derivatives through the passes of the SCF loop; memory grows with their number.

    ``checkpoint`` keeps only the densities between passes and repeats each pass when it is
    differentiated: less memory where the loss has no forces, at most the cost of one more loop.
    """

    def __init__(
        self, *, scf: ScfOptions, final_evaluation: bool = False, checkpoint: bool = False
    ) -> None:
        if scf.solver == "auto":
            scf = replace(scf, solver="linear")
        self.scf: ScfOptions = scf
        self.final_evaluation = final_evaluation
        self.checkpoint = checkpoint
        self.solver = make_solver(scf)
        if not self.solver.differentiable:
            raise ConfigError(
                f"fixed_point_training_options.scf.solver: unroll_scf cannot differentiate "
                f"through {scf.solver!r}; use 'linear', or mode implicit"
            )

    def run(
        self,
        problem: FixedPointProblem,
        reference: ScfState,
        *,
        order: int,
        start: Start | None = None,
    ) -> Solution:
        options = self.scf
        detach = 0
        if not options.use_autograd_forces and not options.constant_charge:
            detach = options.num_scf_steps - 2
        problem = replace(problem, recompute=self.checkpoint)
        first = initial_state(problem, reference, options, start)
        with torch.set_grad_enabled(order > 0 and torch.is_grad_enabled()):
            result = solve(
                problem,
                first,
                options,
                solver=self.solver,
                detach_before=detach,
                explain=False,
            )
            features = result.features
            if self.final_evaluation:
                level = problem.spread(result.fermi_level)
                features = problem.features(result.density, level)
        return Solution(result.density, result.fermi_level, features, _detached(result))


class _SolvedScf(TrainingMode):
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
        self._check(result, order)
        found = ScfState(result.density, result.fermi_level)
        sound = result.status != int(ScfStatus.NONFINITE)
        sound = sound & (result.status != int(ScfStatus.DIVERGED))
        if self.scf.use_autograd_forces:
            order = min(order, self.max_order)
            state = self.differentiation.reattach(problem, found, order, sound)
        else:
            state = NoDifferentiation().reattach(problem, found, order)
        if self._must_unroll(result, order):
            state, result = _unroll_failed(problem, reference, self.scf, state, result)
        features = problem.features(state.density, problem.spread(state.fermi_level))
        return Solution(state.density, state.fermi_level, features, result)

    def _check(self, result: ScfResult, order: int) -> None:
        if self.scf.on_unconverged == "raise" and not bool(result.converged.all()):
            worst = int(torch.nonzero(~result.converged)[0])
            raise ScfError(f"SCF not converged in training: {result.describe(worst)}")

    def _must_unroll(self, result: ScfResult, order: int) -> bool:
        failed = not bool(result.converged.all())
        return failed and order > 0 and self.scf.on_unconverged == "unroll"


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


@register_training_mode("scf")
class SelfConsistent(_SolvedScf):
    """The converged solution with first derivatives by the adjoint: evaluation and inference.

    The adjoint is solved to a hundredth of the SCF tolerance, so that the error of forces is that
    of the density.
    """

    explains_failures = True

    def __init__(self, *, scf: ScfOptions) -> None:
        tolerance = min(max(0.01 * scf.scf_tolerance, 1e-10), 1e-6)
        super().__init__(scf, ImplicitDifferentiation(linear_tolerance=tolerance))


@register_training_mode("implicit")
class Implicit(_SolvedScf):
    """Exact derivatives of the converged solution by adjoint solves, to the order needed."""

    def __init__(
        self,
        *,
        order: int | None = None,
        linear_tolerance: float | None = None,
        max_dense_size: int = DENSE_SIZE,
        scf: ScfOptions,
    ) -> None:
        method = ImplicitDifferentiation(
            linear_tolerance=linear_tolerance, max_dense_size=max_dense_size
        )
        super().__init__(scf, method)
        if order is not None:
            if order not in (1, 2):
                raise ConfigError(
                    f"fixed_point_training_options.order: got {order}, allowed: 1, 2"
                )
            self.max_order = order


@register_training_mode("linearize_solve")
class LinearizeSolve(_SolvedScf):
    """Linear solves about the solution, forward as well: also polishes a loosely converged one.

    One detached solve for each order of derivatives, so that they are exact for every rule.
    """

    def __init__(
        self,
        *,
        linear_tolerance: float | None = None,
        max_dense_size: int = DENSE_SIZE,
        scf: ScfOptions,
    ) -> None:
        method = ImplicitDifferentiation(
            linear_tolerance=linear_tolerance,
            max_dense_size=max_dense_size,
            newton_correction=True,
        )
        super().__init__(scf, method)


@register_training_mode("linearize_solve_one_step")
class LinearizeSolveOneStep(_SolvedScf):
    """One linearised step about the detached solution, as earlier codes do.

    First derivatives are exact; second derivatives (a loss with forces or stress) lack the
    curvature of the map and are exact only where the update rule is affine.
    """

    def __init__(
        self,
        *,
        linear_tolerance: float | None = None,
        max_dense_size: int = DENSE_SIZE,
        scf: ScfOptions,
    ) -> None:
        method = ImplicitDifferentiation(
            linear_tolerance=linear_tolerance,
            max_dense_size=max_dense_size,
            newton_correction=True,
            linearised=True,
        )
        super().__init__(scf, method)


def _detached(result: ScfResult) -> ScfResult:
    return replace(
        result,
        density=result.density.detach(),
        fermi_level=result.fermi_level.detach(),
        features=result.features.detach(),
    )
