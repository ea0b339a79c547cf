"""Losses on the potential of the density, against that of the reference multipoles."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.errors import TrainingError
from fpmace.metrics import residuals
from fpmace.metrics.averages import Average
from fpmace.metrics.residuals import output
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.training.losses.base import Loss
from fpmace.training.losses.stability import the_problem


@register_loss("field_features")
class FieldFeaturesLoss(Loss):
    """Mean over atoms and components of w_g w^q_g (v(q_ref) - v(q))^2, without the Fermi level.

    ``v`` are the normalised field features; external field and Fermi level cancel in the
    difference. The weight is that of the reference multipoles, from which ``v(q_ref)`` comes.
    """

    requires_labels = ("atomic_multipoles",)
    requires_outputs = ("density", "fermi_level", "problem")

    def average(self, batch: Batch, prediction: Observables) -> Average:
        problem = the_problem(prediction)
        levels = problem.spread(output(prediction, "fermi_level").detach())
        wanted = problem.features(_reference(batch, prediction), levels)
        found = problem.features(output(prediction, "density"), levels)
        return Average.of(_weight(batch) * (wanted - found).square())


@register_loss("esps")
class ElectrostaticPotentialsLoss(Loss):
    """Mean over atoms of w_g w^q_g (phi(q_ref) - phi(q))^2, V^2.

    ``phi`` is the potential of the smeared density at the atoms; the external field cancels in
    the difference. ``reference: labels`` compares with labelled potentials, and their weights,
    instead of with the potential of the reference multipoles.
    """

    requires_labels = ("atomic_multipoles",)
    requires_outputs = ("density", "problem")

    def __init__(self, *, reference: Literal["multipoles", "labels"] = "multipoles") -> None:
        self.reference = reference
        if reference == "labels":
            self.requires_labels = ("electrostatic_potentials",)

    def average(self, batch: Batch, prediction: Observables) -> Average:
        potentials = the_problem(prediction).potentials
        if potentials is None:
            raise TrainingError("loss esps: this model gives no potentials at the atoms")
        found = potentials(output(prediction, "density"))
        if self.reference == "labels":
            wanted = batch.labels["electrostatic_potentials"]
            weight = residuals.property_weight(batch, "electrostatic_potentials")[batch.batch]
        else:
            wanted = potentials(_reference(batch, prediction))
            weight = _weight(batch).squeeze(-1)
        return Average.of(weight * (wanted - found).square())


def _weight(batch: Batch) -> Tensor:
    """[n_atoms, 1] weight of the reference multipoles."""
    return residuals.property_weight(batch, "atomic_multipoles")[batch.batch].unsqueeze(-1)


def _reference(batch: Batch, prediction: Observables) -> Tensor:
    """[n_atoms, n_lm] reference multipoles; degrees that the data lacks are zero."""
    density = output(prediction, "density")
    found = torch.zeros_like(density)
    label = batch.labels.get("atomic_multipoles")
    if label is not None:
        n_lm = min(label.shape[1], density.shape[1])
        found[:, :n_lm] = label[:, :n_lm]
    return found
