"""One function from batch to predictions; trainer, evaluation and calculators all call it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import torch
from torch import Tensor

from fpmace.annotations import Values
from fpmace.data.batch import Batch
from fpmace.density_modes.base import DensityMode, Start
from fpmace.errors import ConfigError
from fpmace.models.base import Model, Request
from fpmace.models.geometry import Geometry
from fpmace.observables.dipole_derivatives import born_charges, polarizability
from fpmace.observables.types import OUTPUTS, Observables

DIPOLE_DERIVATIVES = frozenset({"polarizability", "born_charges"})
"""Outputs that are derivatives of the dipole, and so of the density."""

DERIVATIVES = frozenset({"forces", "stress", "virials"}) | DIPOLE_DERIVATIVES
"""Outputs that are derivatives of the energy or dipole."""


def predict(
    model: Model,
    batch: Batch,
    *,
    mode: DensityMode | None = None,
    outputs: Collection[str] = ("energy", "forces"),
    create_graph: bool = False,
    start: Start | None = None,
) -> Observables:
    """Predict observables of a batch.

    Args:
        model: any model.
        batch: structures, of the model's dtype and device.
        mode: how the density is found and differentiated; None for models that solve nothing.
        outputs: names of :class:`Observables` fields; energy comes always, and so does whatever
            costs nothing extra.
        create_graph: keep the graph of derivatives, for losses that contain them.
        start: where the search for the density starts, in place of what the mode's options say.

    Raises:
        ConfigError: if the model does not have the outputs, cannot use the mode or lacks one.
    """
    wanted = frozenset(outputs)
    unknown = sorted(wanted - OUTPUTS)
    if unknown:
        raise ConfigError(f"outputs: unknown '{unknown[0]}' (known: {', '.join(sorted(OUTPUTS))})")
    model.check(wanted, mode)
    with_stress = bool(wanted & {"stress", "virials"})
    with_positions = bool(wanted & {"forces", "born_charges"})
    if model.electrostatics is not None and (with_stress or with_positions):
        model.electrostatics.check_derivatives(2 if create_graph else 1)
    with torch.set_grad_enabled(create_graph or bool(wanted & DERIVATIVES)):
        leaf, strain, field = _leaves(
            batch, with_positions, with_stress, "polarizability" in wanted
        )
        strained = dataclasses.replace(batch, positions=leaf, external_field=field)
        geometry = model.geometry(strained, strain)
        order = _order(model, mode, wanted, create_graph)
        request = Request(wanted, mode, order, start, training=create_graph)
        observables = model.observe(geometry, strained, request)
        _differentiate(observables, geometry, leaf, strain, field, wanted, create_graph)
    return observables if create_graph else _detach(observables)


def _order(
    model: Model, mode: DensityMode | None, wanted: frozenset[str], create_graph: bool
) -> int:
    """How often the density will be differentiated: once for derivatives, once for the loss.

    At a solution where the energy is stationary (at constant charge), forces and stress need no
    derivative of it; nor do forces at a held density.
    """
    of_energy = wanted & {"forces", "stress", "virials"}
    stationary = mode is not None and mode.solves and mode.constant_charge
    stationary = stationary and model.energy_is_stationary
    if stationary or (mode is not None and mode.forces_at_fixed_density):
        of_energy = frozenset()
    derivatives = 1 if of_energy or wanted & DIPOLE_DERIVATIVES else 0
    return derivatives + (1 if create_graph else 0)


def _leaves(
    batch: Batch, with_positions: bool, stress: bool, with_field: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    positions = batch.positions.detach()
    positions = positions.requires_grad_() if with_positions else positions
    strain = torch.zeros_like(batch.cell).requires_grad_() if stress else None
    field = batch.external_field.detach()
    field = field.requires_grad_() if with_field else field
    return positions, strain, field


def _differentiate(
    observables: Observables,
    geometry: Geometry,
    positions: Tensor,
    strain: Tensor | None,
    field: Tensor,
    wanted: frozenset[str],
    create_graph: bool,
) -> None:
    """Forces and stress from the energy, polarizability and Born charges from the dipole."""
    if wanted & DIPOLE_DERIVATIVES:
        _differentiate_dipole(observables, positions, field, wanted, create_graph)
    leaves = [leaf for leaf in (positions, strain) if leaf is not None and leaf.requires_grad]
    if not leaves:
        return
    with observables.hold_density():
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


def _differentiate_dipole(
    observables: Observables,
    positions: Tensor,
    field: Tensor,
    wanted: frozenset[str],
    create_graph: bool,
) -> None:
    assert observables.dipole is not None
    dipole = observables.dipole
    if "polarizability" in wanted and observables.polarizability is None:
        observables.polarizability = polarizability(dipole, field, create_graph=create_graph)
    if "born_charges" in wanted and observables.born_charges is None:
        observables.born_charges = born_charges(dipole, positions, create_graph=create_graph)


def _detach(observables: Observables) -> Observables:
    changes: Values = {
        item.name: value.detach()
        for item in dataclasses.fields(observables)
        if isinstance(value := getattr(observables, item.name), Tensor)
    }
    return dataclasses.replace(observables, **changes)
