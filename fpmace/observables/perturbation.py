"""Responses of the converged density to fields, charges, Fermi levels and positions.

With the map G, the solution fulfils rho = G(rho, mu; x), so that a perturbation x changes it by

    (1 - J) d_rho - t d_mu = dG/dx,   J = dG/d_rho,  t = dG/d_mu

with sum Q(d_rho) = 0 at constant charge or d_mu = 0 at constant Fermi level. The physical field
is E = -external_field. The model's energy is not stationary in the density, so its derivative by
the field is not the dipole: derivatives of the dipole and of the energy are different quantities
and both are offered.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.errors import ConfigError
from fpmace.observables.converged import (
    ConvergedSolution,
    attach,
    jacobian_solve,
    solve_checked,
)
from fpmace.scf.jacobian_product import JacobianProduct


@dataclass(frozen=True, slots=True)
class FieldResponse:
    """Response to the physical field E, per V/Angstrom.

    Attributes:
        polarizability: [n_graphs, 3, 3] e Angstrom^2/V, element (a, b) is d(dipole_a)/dE_b.
        density: [n_atoms, n_lm, 3] e Angstrom^l per V/Angstrom.
        fermi_level: [n_graphs, 3] eV per V/Angstrom; zero at constant Fermi level.
    """

    polarizability: Tensor
    density: Tensor
    fermi_level: Tensor


@dataclass(frozen=True, slots=True)
class ChargeResponse:
    """Response to the Fermi level, and to the total charge.

    Attributes:
        fukui: [n_atoms, n_lm] d(rho)/d(mu) at fixed positions, e Angstrom^l/eV; column 0 holds
            the dq_i/d(mu).
        capacitance: [n_graphs] dQ/d(mu), e/eV.
        fukui_normalised: [n_atoms, n_lm] d(rho)/dQ = fukui / capacitance; column 0 sums to 1.
            It is also dn_i/dN in electrons, the textbook's Fukui function. NaN where the charge
            does not respond to the Fermi level.
        hardness: [n_graphs] d(mu)/dN = -1/capacitance for N electrons, N = -Q: eV/e.
    """

    fukui: Tensor
    capacitance: Tensor
    fukui_normalised: Tensor
    hardness: Tensor


@dataclass(frozen=True, slots=True)
class PositionResponse:
    """Response to the positions of the same graph, one entry per graph of n atoms.

    Attributes:
        density: [n, n_lm, n, 3]; element (i, lm, j, a) is d(rho_i,lm)/d(R_ja).
        fermi_level: [n, 3] d(mu)/d(R_ja), eV/Angstrom; zero at constant Fermi level.
    """

    density: list[Tensor]
    fermi_level: list[Tensor]


def field_response(solution: ConvergedSolution) -> FieldResponse:
    """Three linear solves, one per direction of the field.

    In periodic directions field and dipole follow the model's own definition, potential
    ``external_field . R`` and ``sum Q R + d`` with the coordinates as given; only along
    :func:`open_directions` are they independent of the choice of periodic images.

    Raises:
        ScfError: if the solution is nearly unstable.
    """
    with torch.enable_grad():
        attached = attach(solution, order=0, external_field=True)
        problem, state = attached.found.problem, solution.require_state()
        electrostatics = solution.model.electrostatics
        if problem is None or electrostatics is None:
            return _field_response_by_tangents(solution)
        new, _ = problem.evaluate(state.density, problem.spread(state.fermi_level))
        push = JacobianProduct(new, attached.external_field)
    linear = jacobian_solve(solution, problem)
    columns = []
    for axis in range(3):
        tangent = torch.zeros_like(attached.external_field)
        tangent[:, axis] = -1.0
        columns.append(solve_checked(linear, push(tangent)))
    density = torch.stack([column[0] for column in columns], dim=-1)
    batch = solution.batch
    rows = [
        electrostatics.dipole(batch.positions, change, batch.batch, batch.n_graphs)
        for change, _ in columns
    ]
    level = torch.stack([column[1] for column in columns], dim=-1)
    return FieldResponse(torch.stack(rows, dim=-1), density, level)


def _field_response_by_tangents(solution: ConvergedSolution) -> FieldResponse:
    """The same from products with the derivatives of density, level and dipole by the field."""
    attached = attach(solution, order=1, external_field=True)
    found, field = attached.found, attached.external_field
    level = torch.zeros_like(field[:, 0]) if found.fermi_level is None else found.fermi_level
    columns = []
    for output in (_given(found.dipole), _given(found.density), level):
        push = JacobianProduct(output, field)
        tangents = -torch.eye(3, dtype=field.dtype, device=field.device)
        parts = [push(tangent.expand_as(field)) for tangent in tangents]
        columns.append(torch.stack(parts, dim=-1))
    return FieldResponse(*columns)


def charge_response(solution: ConvergedSolution) -> ChargeResponse:
    """One linear solve at constant Fermi level gives capacitance and Fukui functions.

    Raises:
        ConfigError: if the model's density does not follow a Fermi level, or fragments are held.
        ScfError: if the solution is nearly unstable.
    """
    if solution.fragments:
        raise ConfigError(
            "properties: 'fukui' needs one Fermi level, and with charge_per: fragment each "
            "fragment has its own; use structure, or leave it out"
        )
    with torch.no_grad():
        problem = attach(solution, order=0).found.problem
    if problem is None:
        raise ConfigError(
            f"properties: 'fukui' needs a density that follows a Fermi level, which a "
            f"{type(solution.model).__name__} does not have"
        )
    grand = dataclasses.replace(problem, target_charge=None)
    linear = jacobian_solve(solution, grand)
    fukui, _ = solve_checked(linear, linear.linearisation.fermi_response)
    capacitance = grand.charge(fukui)
    answers = capacitance != 0
    divisor = torch.where(answers, capacitance, torch.nan)
    normalised = fukui / grand.spread(divisor).unsqueeze(-1)
    return ChargeResponse(fukui, capacitance, normalised, -1.0 / divisor)


def position_response(solution: ConvergedSolution) -> PositionResponse:
    """Derivative of density and Fermi level by the positions: one adjoint solve per component.

    The number of solves is that of the density components of the largest graph; the graphs of a
    batch are done at the same time.
    """
    with torch.enable_grad():
        attached = attach(solution, order=1, positions=True)
        batch, leaf = solution.batch, attached.positions
        density = jacobian_by_positions(_given(attached.found.density), leaf, batch)
        level = attached.found.fermi_level
        if solution.constant_charge and level is not None and level.requires_grad:
            (rows,) = torch.autograd.grad(level.sum(), leaf)
        else:
            rows = torch.zeros_like(leaf)
    return PositionResponse(density, list(rows.split(batch.atoms_per_graph.tolist())))


def born_charges(solution: ConvergedSolution) -> Tensor:
    """Born effective charges [n_atoms, 3, 3] in e: element (i, a, b) is d(dipole_b)/d(R_ia).

    Three adjoint solves. Their sum over atoms is the total charge times the unit matrix at
    constant charge, as long as the boundary condition does not prefer an origin; nothing of the
    kind holds at constant Fermi level. For dipoles in periodic directions see
    :func:`field_response`.
    """
    with torch.enable_grad():
        attached = attach(solution, order=1, positions=True)
        rows = _rows(_given(attached.found.dipole), attached.positions)
    return torch.stack(rows, dim=-1)


def forces_by_field(solution: ConvergedSolution) -> Tensor:
    """Derivative of the forces by the physical field, [n_atoms, 3, 3] in e.

    Element (i, a, b) is dF_ia/dE_b, from the mixed second derivative of the energy. It equals
    the Born charges only for an energy that is stationary in the density.
    """
    with torch.enable_grad():
        attached = attach(solution, order=2, positions=True, external_field=True)
        rows = _rows(attached.slope(attached.external_field), attached.positions)
    return torch.stack(rows, dim=-1)


def open_directions(batch: Batch) -> Tensor:
    """[n_graphs, 3] bool: Cartesian directions along which no periodic lattice vector points."""
    scale = batch.cell.abs().amax(dim=(1, 2), keepdim=True)
    along = batch.cell.abs() > 1e-6 * scale
    return ~(along & batch.pbc.unsqueeze(-1)).any(dim=1)


def jacobian_by_positions(values: Tensor, positions: Tensor, batch: Batch) -> list[Tensor]:
    """Derivatives of per-atom values by positions, within each graph.

    One backward pass per atom and component of the largest graph; all graphs share the passes.

    Args:
        values: [n_atoms, m], attached to ``positions``.
        positions: [n_atoms, 3] leaf.
        batch: which atom belongs to which graph.

    Returns:
        [n, m, n, 3] for each graph of n atoms.
    """
    sizes = batch.atoms_per_graph.tolist()
    starts = batch.ptr[:-1].tolist()
    width = values.shape[1]
    found = [values.new_zeros(n, width, n, 3) for n in sizes]
    if not values.requires_grad:
        return found
    for atom in range(max(sizes)):
        active = [graph for graph, n in enumerate(sizes) if atom < n]
        index = [starts[graph] + atom for graph in active]
        for component in range(width):
            target = values[index, component].sum()
            (row,) = torch.autograd.grad(
                target, positions, retain_graph=True, materialize_grads=True
            )
            for graph in active:
                start = starts[graph]
                found[graph][atom, component] = row[start : start + sizes[graph]]
    return found


def _rows(values: Tensor, leaf: Tensor) -> list[Tensor]:
    """Gradient of each column of [n_graphs, 3], summed over graphs, by a leaf."""
    if not values.requires_grad:
        return [torch.zeros_like(leaf)] * values.shape[1]
    return [
        torch.autograd.grad(
            values[:, axis].sum(), leaf, retain_graph=True, materialize_grads=True
        )[0].detach()
        for axis in range(values.shape[1])
    ]


def _given(value: Tensor | None) -> Tensor:
    if value is None:
        raise RuntimeError("the model did not give an output that it declares")
    return value
