"""The converged solution of a batch, and the same solution with derivatives attached.

The self-consistency is solved once, without an autograd graph. Response properties then come
from linear solves about the solution: directly (few perturbations, many responses) or through
automatic differentiation with adjoint solves (many perturbations, few responses).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.density_modes.solved import KnownSolution, SelfConsistent
from fpmace.differentiation.implicit import ImplicitDifferentiation
from fpmace.errors import ConfigError, ScfError
from fpmace.models.base import Model, Request
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.scf.jacobian_solve import LinearisedSolve, default_rtol, linearised_solve
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult, ScfState

MAX_LINEAR_ITERATIONS = 500
"""Limit on the Krylov space of a linear-response solve."""


def response_scf_options(dtype: torch.dtype) -> ScfOptions:
    """Settings tight enough for response properties in a precision; failures raise."""
    double = dtype == torch.float64
    return ScfOptions(
        scf_tolerance=1e-10 if double else 1e-5,
        charge_tolerance=1e-9 if double else 1e-4,
        on_failure="raise",
        history="none",
    )


@dataclass(frozen=True, slots=True)
class ConvergedSolution:
    """The density and Fermi level of a batch, detached; self-consistent where the model is.

    Attributes:
        model: the model.
        batch: the structures.
        state: density [n_atoms, n_lm] and Fermi level [n_graphs]; None without a density.
        scf: how the solve went; None where none was needed.
        constant_charge: whether responses are at constant charge (else constant Fermi level).
        fragments: whether the charge that is constant is that of each fragment.
    """

    model: Model
    batch: Batch
    state: ScfState | None
    scf: ScfResult | None
    constant_charge: bool
    fragments: bool = False

    def require_state(self) -> ScfState:
        """The density and Fermi level.

        Raises:
            ConfigError: if the model has none.
        """
        if self.state is None:
            raise ConfigError(f"a {type(self.model).__name__} has no density")
        return self.state


@dataclass(frozen=True, slots=True)
class AttachedSolution:
    """The solution as a function of leaves of the autograd graph.

    Attributes:
        positions: [n_atoms, 3] leaf.
        external_field: [n_graphs, 3] leaf, V/Angstrom, minus the physical field.
        found: what the model gives there, attached to the leaves.
    """

    positions: Tensor
    external_field: Tensor
    found: Observables

    def slope(self, leaf: Tensor) -> Tensor:
        """Derivative of the energy by a leaf, differentiable; zero where there is none."""
        with self.found.hold_density():
            (gradient,) = torch.autograd.grad(
                self.found.energy.sum(), leaf, create_graph=True, materialize_grads=True
            )
        return gradient


def converge(model: Model, batch: Batch, options: ScfOptions | None = None) -> ConvergedSolution:
    """Find the density of a batch, by solving the self-consistency where there is one.

    Args:
        model: any model, of the batch's dtype and device.
        batch: structures; ``fermi_level`` and ``atomic_multipoles`` are starting values if the
            options say ``from_data``.
        options: tolerances and what is held constant; :func:`response_scf_options` if None. The
            error of a response is about the SCF tolerance times the condition of the problem.

    Raises:
        ScfError: if a graph fails and the policy is ``raise``.
    """
    if not model.has_density:
        return ConvergedSolution(model, batch, None, None, constant_charge=True)
    options = options or response_scf_options(batch.positions.dtype)
    mode = SelfConsistent(scf=options) if model.solves_self_consistency else None
    found = predict(model, batch, mode=mode, outputs=("density",))
    if found.density is None:
        raise RuntimeError(f"{type(model).__name__}.observe gave no density")
    level = batch.fermi_level if found.fermi_level is None else found.fermi_level
    held = options.constant_charge if mode is not None else True
    density = found.density if found.unknowns is None else found.unknowns.found.detach()
    fragments = mode is not None and mode.holds_fragments
    state = ScfState(density, level)
    return ConvergedSolution(model, batch, state, found.scf, held, fragments)


def attach(
    solution: ConvergedSolution,
    *,
    order: int,
    positions: bool = False,
    external_field: bool = False,
) -> AttachedSolution:
    """Attach derivatives to a solution; call under ``torch.enable_grad()``.

    Args:
        order: derivatives of the solution are exact to this order (0: only the problem depends
            on the leaves, not the density).
        positions: differentiate by positions.
        external_field: differentiate by the external field.
    """
    model, batch = solution.model, solution.batch
    place = batch.positions.detach().requires_grad_(positions)
    field = batch.external_field.detach().requires_grad_(external_field)
    moved = dataclasses.replace(batch, positions=place, external_field=field)
    mode = None
    if model.solves_self_consistency:
        method = ImplicitDifferentiation(max_linear_iterations=MAX_LINEAR_ITERATIONS)
        mode = KnownSolution(
            solution.require_state(),
            method,
            constant_charge=solution.constant_charge,
            fragments=solution.fragments,
        )
    outputs = frozenset({"energy", "density", "dipole", "fermi_level", "problem"})
    if model.energy_is_stationary and solution.constant_charge:
        # The first derivative of the energy needs none of the density.
        order = min(order, 1)
    request = Request(outputs & model.outputs, mode, order)
    return AttachedSolution(place, field, model.observe(model.geometry(moved), moved, request))


def jacobian_solve(solution: ConvergedSolution, problem: FixedPointProblem) -> LinearisedSolve:
    """The linearised problem at the solution."""
    state = solution.require_state()
    density = state.density
    line = problem.linearise(density, problem.spread(state.fermi_level))
    rtol = default_rtol(density.dtype)
    return linearised_solve(problem, line, rtol=rtol, max_iterations=MAX_LINEAR_ITERATIONS)


def solve_checked(linear: LinearisedSolve, drive: Tensor) -> tuple[Tensor, Tensor]:
    """Response (density [n_atoms, n_lm], Fermi level [n_graphs]) to a change of the map.

    Args:
        linear: the linearised problem.
        drive: [n_atoms, n_lm] derivative of the map at fixed density and Fermi level.

    Raises:
        ScfError: if the linear solve stagnates, as it does where 1 - J is singular.
    """
    problem, line = linear.problem, linear.linearisation
    density, level = linear.solve(drive, torch.zeros_like(problem.charge(drive)))
    left = density - line.apply(density)
    left = left - line.fermi_response * problem.spread(level).unsqueeze(-1)
    error = problem.sum((left - drive).square().sum(-1)).sqrt()
    scale = problem.sum(drive.square().sum(-1)).sqrt()
    bad = error > 1e3 * linear.rtol * scale
    if bool(bad.any()):
        worst = int(torch.nonzero(bad)[0])
        ratio = float(error[worst] / scale[worst])
        raise ScfError(
            f"linear response of structure {worst} is not converged (relative residual "
            f"{ratio:.1e}): the self-consistent solution is nearly unstable there, and its "
            "responses are not defined"
        )
    return density, level
