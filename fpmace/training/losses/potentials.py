"""Losses on the potential of the density, against that of the reference multipoles."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Mean over atoms of w_g w_g^p (phi_ref - phi(q))^2, V^2.

    ``phi`` is the potential of the smeared density at the atoms. ``reference: auto`` compares
    with labelled potentials, and their weight, where a structure has them, and else with the
    potential of the reference multipoles and their weight (the external field cancels then);
    ``labels`` and ``multipoles`` know only one of them.
    """

    requires_labels = ("electrostatic_potentials or atomic_multipoles",)
    requires_outputs = ("density", "problem")

    def __init__(self, *, reference: Literal["auto", "multipoles", "labels"] = "auto") -> None:
        self.reference = reference
        if reference != "auto":
            one = "electrostatic_potentials" if reference == "labels" else "atomic_multipoles"
            self.requires_labels = (one,)

    def describe(self, label_counts: Mapping[str, int]) -> str:
        labelled = label_counts.get("electrostatic_potentials", 0)
        if self.reference == "multipoles" or not labelled:
            return "compares with the potential of the reference multipoles"
        rest = "" if self.reference == "labels" else ", elsewhere with that of the multipoles"
        return f"compares with labelled potentials ({labelled} structures){rest}"

    def average(self, batch: Batch, prediction: Observables) -> Average:
        potentials = the_problem(prediction).potentials
        if potentials is None:
            raise TrainingError("loss esps: this model gives no potentials at the atoms")
        found = potentials(output(prediction, "density"))
        weight = torch.zeros_like(found)
        wanted = torch.zeros_like(found)
        if self.reference != "labels":
            weight = _weight(batch).squeeze(-1)
            wanted = potentials(_reference(batch, prediction))
        name = "electrostatic_potentials"
        if self.reference != "multipoles" and name in batch.labels:
            own = residuals.property_weight(batch, name)[batch.batch]
            weight = torch.where(own > 0, own, weight)
            wanted = torch.where(own > 0, batch.labels[name], wanted)
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
