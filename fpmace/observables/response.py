"""Response properties of a batch in one call; the command line and calculators call it.

Example:
    >>> found = compute_response(model, batch, ("polarizability", "fukui"))  # doctest: +SKIP
    >>> found.polarizability, found.capacitance  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from ase.data import atomic_masses
from torch import Tensor

from fpmace.boundaries import FFF, MOLECULE, OPEN, boundary
from fpmace.data.batch import Batch
from fpmace.errors import ConfigError, suggestion
from fpmace.models.base import Model
from fpmace.observables.converged import ConvergedSolution, converge
from fpmace.observables.hessian import hessian
from fpmace.observables.periodic_born import born_charges_by_phases
from fpmace.observables.perturbation import (
    born_charges,
    charge_response,
    field_response,
    forces_by_field,
    position_response,
)
from fpmace.observables.vibrations import RigidMotions, Vibrations, vibrations
from fpmace.scf.options import ScfOptions

PROPERTIES: dict[str, str] = {
    "polarizability": "derivative of the dipole by the physical field",
    "density_by_field": "derivative of density and Fermi level by the physical field",
    "born_charges": "derivative of the dipole by the positions",
    "forces_by_field": "derivative of the forces by the physical field",
    "fukui": "derivative of the density by the Fermi level, capacitance, hardness",
    "density_by_positions": "derivative of density and Fermi level by the positions",
    "hessian": "second derivatives of the energy by the positions",
    "vibrations": "harmonic frequencies, normal modes, infrared intensities",
}
"""What can be asked for."""

LOCAL_PROPERTIES = ("hessian", "vibrations")
"""What every model offers."""

FIELD_PROPERTIES = ("polarizability", "density_by_field", "forces_by_field")
"""What needs a density that an external field acts on."""


@dataclass(slots=True)
class ResponseProperties:
    """Response properties of a batch; None where not asked for.

    Lists have one entry per graph, of n atoms. n_lm = (l_max + 1)^2 density components. Fields
    are physical fields, minus ``external_field``. All are at constant charge, or all at constant
    Fermi level, except the four of ``fukui``, which describe both.

    Attributes:
        solution: the converged solution; None for models without a density.
        polarizability: [n_graphs, 3, 3] d(dipole_a)/dE_b, e Angstrom^2/V.
        density_by_field: [n_atoms, n_lm, 3] e Angstrom^l per V/Angstrom.
        fermi_level_by_field: [n_graphs, 3] eV per V/Angstrom.
        born_charges: [n_atoms, 3, 3] element (i, a, b) is d(dipole_b)/d(R_ia), e.
        forces_by_field: [n_atoms, 3, 3] element (i, a, b) is dF_ia/dE_b, e.
        fukui: [n_atoms, n_lm] d(rho)/d(mu), e Angstrom^l/eV.
        capacitance: [n_graphs] dQ/d(mu), e/eV.
        fukui_normalised: [n_atoms, n_lm] d(rho)/dQ, Angstrom^l; column 0 sums to 1.
        hardness: [n_graphs] d(mu)/dN for N = -Q electrons, eV/e.
        density_by_positions: [n, n_lm, n, 3] per graph, e Angstrom^(l-1).
        fermi_level_by_positions: [n, 3] per graph, eV/Angstrom.
        hessian: [3n, 3n] per graph, eV/Angstrom^2.
        vibrations: one per graph.
    """

    solution: ConvergedSolution | None = None
    polarizability: Tensor | None = None
    density_by_field: Tensor | None = None
    fermi_level_by_field: Tensor | None = None
    born_charges: Tensor | None = None
    forces_by_field: Tensor | None = None
    fukui: Tensor | None = None
    capacitance: Tensor | None = None
    fukui_normalised: Tensor | None = None
    hardness: Tensor | None = None
    density_by_positions: list[Tensor] | None = None
    fermi_level_by_positions: list[Tensor] | None = None
    hessian: list[Tensor] | None = None
    vibrations: list[Vibrations] = field(default_factory=list)


def compute_response(
    model: Model,
    batch: Batch,
    properties: Collection[str],
    *,
    scf: ScfOptions | None = None,
    masses: Tensor | None = None,
    remove: RigidMotions | None = None,
) -> ResponseProperties:
    """Converge a batch once and compute the properties asked for by linear response.

    Args:
        model: any model; ``hessian`` and ``vibrations`` are there for all, the others where it
            has a density, ``fukui`` where that solves a self-consistency.
        batch: structures, of the model's dtype (use float64) and device.
        properties: names in :data:`PROPERTIES`.
        scf: tolerances and what is held constant; tight ones at constant charge if None.
        masses: [n_atoms] amu for ``vibrations``; standard atomic weights if None.
        remove: rigid motions to take out of ``vibrations``; if None, those that the boundary
            conditions and the field of each graph allow, see :func:`rigid_motions`.

    Raises:
        ConfigError: for an unknown property, or one that the model does not have.
        ScfError: if the self-consistency or a linear solve fails.
    """
    wanted = set(properties)
    _check(wanted, model)
    found = ResponseProperties()
    solution = converge(model, batch, scf)
    if model.has_density:
        found.solution = solution
        _density_responses(found, solution, wanted)
    if wanted & {"hessian", "vibrations"}:
        squares = hessian(solution)
        if "hessian" in wanted:
            found.hessian = squares
        if "vibrations" in wanted:
            found.vibrations = _vibrations(model, batch, squares, found, masses, remove)
    if "born_charges" not in wanted:
        found.born_charges = None
    return found


def _check(wanted: set[str], model: Model) -> None:
    for name in sorted(wanted):
        if name not in PROPERTIES:
            raise ConfigError(
                f"properties: unknown '{name}'{suggestion(name, PROPERTIES)} "
                f"(known: {', '.join(PROPERTIES)})"
            )
        needed = _lacks(model, name)
        if needed is not None:
            offered = ", ".join(offered_properties(model))
            raise ConfigError(
                f"properties: '{name}' needs {needed}, which a {type(model).__name__} does not "
                f"have (it has {offered})"
            )


def offered_properties(model: Model) -> tuple[str, ...]:
    """Names in :data:`PROPERTIES` that the model can be asked for."""
    return tuple(name for name in PROPERTIES if _lacks(model, name) is None)


def _lacks(model: Model, name: str) -> str | None:
    """What a property needs that the model does not have."""
    if name in LOCAL_PROPERTIES:
        return None
    if not model.has_density:
        return "a density"
    if name == "fukui" and not {"problem", "fermi_level"} <= model.outputs:
        return "a self-consistent density that follows a Fermi level"
    if name in FIELD_PROPERTIES and "external_field" not in model.inputs:
        return "an external field"
    return None


def _density_responses(
    found: ResponseProperties, solution: ConvergedSolution, wanted: set[str]
) -> None:
    if wanted & {"polarizability", "density_by_field"}:
        by_field = field_response(solution)
        if "polarizability" in wanted:
            found.polarizability = by_field.polarizability
        if "density_by_field" in wanted:
            found.density_by_field = by_field.density
            found.fermi_level_by_field = by_field.fermi_level
    if "fukui" in wanted:
        charge = charge_response(solution)
        found.fukui, found.capacitance = charge.fukui, charge.capacitance
        found.fukui_normalised, found.hardness = charge.fukui_normalised, charge.hardness
    if wanted & {"born_charges", "vibrations"}:
        by_phases = solution.model.born_charges_by_phases and bool(solution.batch.pbc.any())
        method = born_charges_by_phases if by_phases else born_charges
        found.born_charges = method(solution)
    if "forces_by_field" in wanted:
        found.forces_by_field = forces_by_field(solution)
    if "density_by_positions" in wanted:
        by_positions = position_response(solution)
        found.density_by_positions = by_positions.density
        found.fermi_level_by_positions = by_positions.fermi_level


def _vibrations(
    model: Model,
    batch: Batch,
    squares: list[Tensor],
    found: ResponseProperties,
    masses: Tensor | None,
    remove: RigidMotions | None,
) -> list[Vibrations]:
    if masses is None:
        table = torch.tensor(atomic_masses, dtype=torch.float64, device=batch.positions.device)
        masses = table[batch.atomic_numbers]
    constant_charge = found.solution is None or found.solution.constant_charge
    motions = rigid_motions(model, batch, constant_charge=constant_charge)
    born = found.born_charges
    result = []
    for graph, square in enumerate(squares):
        atoms = slice(int(batch.ptr[graph]), int(batch.ptr[graph + 1]))
        result.append(
            vibrations(
                square,
                masses[atoms],
                batch.positions[atoms],
                born_charges=None if born is None else born[atoms],
                remove=remove or motions[graph],
            )
        )
    return result


def rigid_motions(
    model: Model, batch: Batch, *, constant_charge: bool = True
) -> list[RigidMotions]:
    """Rigid motions of each graph that change no energy.

    Open structures may move and turn, periodic ones may only move. A field stops rotations, and
    at constant Fermi level translations too.
    """
    sums = model.electrostatics
    isolated = sums is None or boundary(sums.options.pbc_handling, FFF) in (OPEN, MOLECULE)
    result: list[RigidMotions] = []
    for pbc, strength in zip(batch.pbc, batch.external_field, strict=True):
        if bool(strength.any()):
            result.append("translations" if constant_charge else "none")
        else:
            result.append("all" if isolated and not bool(pbc.any()) else "translations")
    return result
