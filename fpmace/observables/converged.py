"""The converged solution of a batch, and the same solution with derivatives attached.

The self-consistency is solved once, without an autograd graph. Response properties then come
from linear solves about the solution: directly (few perturbations, many responses) or through
automatic differentiation with adjoint solves (many perturbations, few responses).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.density_modes.solved import SelfConsistent
from fpmace.differentiation.implicit import ImplicitDifferentiation
from fpmace.errors import ConfigError, ScfError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.models.geometry import element_index, make_geometry
from fpmace.observables.predict import predict
from fpmace.scf.jacobian_solve import JacobianSolve, default_rtol
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
    """The self-consistent density and Fermi level of a batch, detached.

    Attributes:
        model: the fixed-point model.
        batch: the structures.
        state: density [n_atoms, n_lm] and Fermi level [n_graphs].
        scf: how the solve went.
        constant_charge: whether responses are at constant charge (else constant Fermi level).
    """

    model: FixedPointCore
    batch: Batch
    state: ScfState
    scf: ScfResult | None
    constant_charge: bool


@dataclass(frozen=True, slots=True)
class AttachedSolution:
    """The solution as a function of leaves of the autograd graph.

    Attributes:
        positions: [n_atoms, 3] leaf.
        external_field: [n_graphs, 3] leaf, V/Angstrom, minus the physical field.
        problem: the fixed-point problem, attached to the leaves.
        density: [n_atoms, n_lm].
        fermi_level: [n_graphs] eV.
        energy: [n_graphs] eV.
        dipole: [n_graphs, 3] e Angstrom.
    """

    positions: Tensor
    external_field: Tensor
    problem: FixedPointProblem
    density: Tensor
    fermi_level: Tensor
    energy: Tensor
    dipole: Tensor


def converge(
    model: nn.Module, batch: Batch, options: ScfOptions | None = None
) -> ConvergedSolution:
    """Solve the self-consistency of a batch.

    Args:
        model: a fixed-point model, of the batch's dtype and device.
        batch: structures; ``fermi_level`` and ``atomic_multipoles`` are starting values if the
            options say ``from_data``.
        options: tolerances and what is held constant; :func:`response_scf_options` if None. The
            error of a response is about the SCF tolerance times the condition of the problem.

    Raises:
        ConfigError: if the model has no self-consistency.
        ScfError: if a graph fails and the policy is ``raise``.
    """
    if not isinstance(model, FixedPointCore):
        raise ConfigError(
            f"response properties need a fixed-point model, a {type(model).__name__} has no "
            "density; only hessian and vibrations are available for it"
        )
    options = options or response_scf_options(batch.positions.dtype)
    found = predict(model, batch, mode=SelfConsistent(scf=options), outputs=("density",))
    if found.density is None or found.fermi_level is None:
        raise RuntimeError("predict gave no density")
    state = ScfState(found.density, found.fermi_level)
    return ConvergedSolution(model, batch, state, found.scf, options.constant_charge)


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
    geometry = make_geometry(moved, element_index(model.atomic_numbers, moved))
    local = model.local_part(geometry, field)
    charge = batch.total_charge if solution.constant_charge else None
    problem = model.problem(local, charge, batch.atoms_per_graph)
    method = ImplicitDifferentiation(max_linear_iterations=MAX_LINEAR_ITERATIONS)
    state = method.reattach(problem, solution.state, order)
    features = problem.features(state.density, problem.spread(state.fermi_level))
    terms = model.build_observables(local, state.density, features)
    return AttachedSolution(
        place, field, problem, state.density, state.fermi_level, terms.total, terms.dipole
    )


def linear_response(solution: ConvergedSolution, problem: FixedPointProblem) -> JacobianSolve:
    """The linearised problem at the solution."""
    density = solution.state.density
    line = problem.linearise(density, problem.spread(solution.state.fermi_level))
    rtol = default_rtol(density.dtype)
    return JacobianSolve(problem, line, rtol=rtol, max_iterations=MAX_LINEAR_ITERATIONS)


def solve_checked(response: JacobianSolve, drive: Tensor) -> tuple[Tensor, Tensor]:
    """Response (density [n_atoms, n_lm], Fermi level [n_graphs]) to a change of the map.

    Args:
        response: the linearised problem.
        drive: [n_atoms, n_lm] derivative of the map at fixed density and Fermi level.

    Raises:
        ScfError: if the linear solve stagnates, as it does where 1 - J is singular.
    """
    problem, line = response.problem, response.linearisation
    density, level = response.solve(drive, torch.zeros_like(problem.charge(drive)))
    left = density - line.apply(density)
    left = left - line.fermi_response * problem.spread(level).unsqueeze(-1)
    error = problem.sum((left - drive).square().sum(-1)).sqrt()
    scale = problem.sum(drive.square().sum(-1)).sqrt()
    bad = error > 1e3 * response.rtol * scale
    if bool(bad.any()):
        worst = int(torch.nonzero(bad)[0])
        ratio = float(error[worst] / scale[worst])
        raise ScfError(
            f"linear response of structure {worst} is not converged (relative residual "
            f"{ratio:.1e}): the self-consistent solution is nearly unstable there, and its "
            "responses are not defined"
        )
    return density, level
