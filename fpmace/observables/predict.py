"""One function from batch to predictions; trainer, evaluation and calculators all call it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.differentiation.modes import Solution, TrainingMode
from fpmace.errors import ConfigError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.models.geometry import Geometry, element_index, make_geometry
from fpmace.models.local_state import LocalState
from fpmace.observables.types import Observables
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState

DERIVATIVES = ("forces", "stress", "virials", "polarizability")
"""Outputs that are derivatives of the energy or dipole."""


def predict(
    model: nn.Module,
    batch: Batch,
    *,
    mode: TrainingMode | None = None,
    outputs: Collection[str] = ("energy", "forces"),
    create_graph: bool = False,
) -> Observables:
    """Predict observables of a batch.

    Args:
        model: FixedPointCore, or a local model (MACE, ScaleShiftMACE).
        batch: structures, of the model's dtype and device.
        mode: how the density is found and differentiated; None for local models.
        outputs: names of :class:`Observables` fields; energy comes always, and so does whatever
            costs nothing extra.
        create_graph: keep the graph of derivatives, for losses that contain them.

    Raises:
        ConfigError: if the outputs do not exist for the model or the mode is missing.
    """
    wanted = set(outputs)
    _check_outputs(model, wanted, mode)
    with_stress = bool(wanted & {"stress", "virials"})
    with_forces = "forces" in wanted
    with torch.set_grad_enabled(create_graph or bool(wanted & set(DERIVATIVES))):
        leaf, strain, field = _leaves(batch, with_forces, with_stress, "polarizability" in wanted)
        strained = dataclasses.replace(batch, positions=leaf, external_field=field)
        element = element_index(model.get_buffer("atomic_numbers"), strained)
        geometry = make_geometry(strained, element, strain)
        if isinstance(model, FixedPointCore):
            if mode is None:
                raise ConfigError(
                    "predict: a fixed-point model needs a mode, such as scf or direct"
                )
            order = _order(wanted, create_graph)
            observables = _fixed_point(
                model, strained, geometry, mode, wanted, order, training=create_graph
            )
        else:
            output = model(geometry)
            observables = Observables(
                energy=output.energy,
                node_energy=output.node_energy,
                contributions=output.contributions,
            )
        _differentiate(observables, geometry, leaf, strain, field, wanted, create_graph)
    return observables if create_graph else _detach(observables)


def _check_outputs(model: nn.Module, wanted: set[str], mode: TrainingMode | None) -> None:
    known = {item.name for item in dataclasses.fields(Observables)}
    unknown = sorted(wanted - known)
    if unknown:
        raise ConfigError(f"outputs: unknown '{unknown[0]}' (known: {', '.join(sorted(known))})")
    if isinstance(model, FixedPointCore):
        return
    local = {"energy", "node_energy", "forces", "stress", "virials", "contributions"}
    missing = sorted(wanted - local)
    if missing:
        raise ConfigError(
            f"outputs: a {type(model).__name__} has no '{missing[0]}' "
            f"(it has {', '.join(sorted(local))})"
        )


def _order(wanted: set[str], create_graph: bool) -> int:
    """How often the density will be differentiated: once for derivatives, once for the loss."""
    derivatives = 1 if wanted & set(DERIVATIVES) else 0
    return derivatives + (1 if create_graph else 0)


def _leaves(
    batch: Batch, forces: bool, stress: bool, polarizability: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    positions = batch.positions.detach()
    positions = positions.requires_grad_() if forces else positions
    strain = torch.zeros_like(batch.cell).requires_grad_() if stress else None
    field = batch.external_field.detach()
    field = field.requires_grad_() if polarizability else field
    return positions, strain, field


def _fixed_point(
    model: FixedPointCore,
    batch: Batch,
    geometry: Geometry,
    mode: TrainingMode,
    wanted: set[str],
    order: int,
    *,
    training: bool,
) -> Observables:
    local = model.local_part(geometry, batch.external_field)
    charge = batch.total_charge if mode.constant_charge else None
    problem = model.problem(local, charge, batch.atoms_per_graph)
    reference = _reference(model, batch)
    if training:
        reference = mode.training_reference(reference, problem)
    solution = mode.run(problem, reference, order=order)
    return _assemble(model, local, solution, problem if "problem" in wanted else None, wanted)


def _assemble(
    model: FixedPointCore,
    local: LocalState,
    solution: Solution,
    problem: FixedPointProblem | None,
    wanted: set[str],
) -> Observables:
    terms = model.build_observables(local, solution.density, solution.features)
    geometry = local.geometry
    potentials = None
    if "electrostatic_potentials" in wanted or model.return_electrostatic_potentials:
        potentials = model.potentials_at_atoms(local, solution.density)
    return Observables(
        energy=terms.total,
        node_energy=local.node_energy,
        dipole=terms.dipole,
        density=solution.density,
        fermi_level=solution.fermi_level,
        total_charge=geometry.sum_over_atoms(solution.density[:, 0]),
        electrostatic_energy=terms.electrostatic,
        electron_energy=terms.electron,
        field_energy=terms.field,
        contributions=local.contributions,
        electrostatic_features=solution.features,
        electrostatic_potentials=potentials,
        field_independent_density=local.local_density,
        scf=solution.scf,
        problem=problem,
    )


def _reference(model: FixedPointCore, batch: Batch) -> ScfState:
    """Density and Fermi level of the data; zeros where the data has none."""
    n_lm = model.electrostatics.n_density
    density = batch.labels.get("atomic_multipoles")
    if density is None:
        density = batch.positions.new_zeros(batch.n_atoms, n_lm)
    elif density.shape[1] < n_lm:
        missing = density.new_zeros(batch.n_atoms, n_lm - density.shape[1])
        density = torch.cat([density, missing], dim=-1)
    return ScfState(density[:, :n_lm], batch.fermi_level)


def _differentiate(
    observables: Observables,
    geometry: Geometry,
    positions: Tensor,
    strain: Tensor | None,
    field: Tensor,
    wanted: set[str],
    create_graph: bool,
) -> None:
    """Forces and stress from the energy, polarizability from the dipole."""
    if "polarizability" in wanted:
        observables.polarizability = _polarizability(observables, field, create_graph)
    leaves = [leaf for leaf in (positions, strain) if leaf is not None and leaf.requires_grad]
    if not leaves:
        return
    gradients = torch.autograd.grad(
        observables.energy.sum(), leaves, create_graph=create_graph, allow_unused=True
    )
    found = iter(
        torch.zeros_like(leaf) if grad is None else grad
        for leaf, grad in zip(leaves, gradients, strict=True)
    )
    if positions.requires_grad:
        observables.forces = -next(found)
    if strain is not None:
        virials = -next(found)
        observables.virials = virials
        volume = geometry.volume.detach()
        safe = torch.where(volume > 0, volume, torch.ones_like(volume)).view(-1, 1, 1)
        observables.stress = torch.where(volume.view(-1, 1, 1) > 0, -virials / safe, 0.0)


def _polarizability(observables: Observables, field: Tensor, create_graph: bool) -> Tensor:
    assert observables.dipole is not None
    rows = [
        torch.autograd.grad(
            observables.dipole[:, i].sum(), field, create_graph=create_graph, retain_graph=True
        )[0]
        for i in range(3)
    ]
    return -torch.stack(rows, dim=1)


def _detach(observables: Observables) -> Observables:
    changes: dict[str, Any] = {
        item.name: value.detach()
        for item in dataclasses.fields(observables)
        if isinstance(value := getattr(observables, item.name), Tensor)
    }
    return dataclasses.replace(observables, **changes)
