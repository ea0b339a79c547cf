"""Losses that grow less than quadratically: Huber, absolute and vector-norm forms."""

from __future__ import annotations

import torch
from torch.nn import functional

from fpmace.annotations import Positive
from fpmace.data.batch import Batch
from fpmace.metrics import residuals
from fpmace.metrics.averages import Average
from fpmace.metrics.residuals import Residual
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.training.losses.base import Loss


def _huber(residual: Residual, delta: float) -> Average:
    """Huber, Ann. Math. Stat. 35, 73 (1964): x^2/2 up to delta, then delta (|x| - delta/2)."""
    values = functional.huber_loss(
        residual.predicted, residual.reference, reduction="none", delta=delta
    )
    return residual.average(values)


@register_loss("huber_energy_per_atom")
class HuberEnergyPerAtomLoss(Loss):
    """mean_g w_g w^E_g huber_delta((E_ref - E) / N_g); delta in eV per atom."""

    requires_labels = ("energy",)
    requires_outputs = ("energy",)

    def __init__(self, *, delta: Positive = 0.01) -> None:
        self.delta = delta

    def average(self, batch: Batch, prediction: Observables) -> Average:
        return _huber(residuals.energy_per_atom(batch, prediction), self.delta)


@register_loss("huber_forces")
class HuberForcesLoss(Loss):
    """Mean over atoms and components of w_g w^F_g huber_delta(F_ref - F); delta in eV/A."""

    requires_labels = ("forces",)
    requires_outputs = ("forces",)

    def __init__(self, *, delta: Positive = 0.01) -> None:
        self.delta = delta

    def average(self, batch: Batch, prediction: Observables) -> Average:
        return _huber(residuals.forces(batch, prediction), self.delta)


@register_loss("huber_stress")
class HuberStressLoss(Loss):
    """Mean over graphs and components of w_g w^S_g huber_delta(S_ref - S); delta in eV/A^3."""

    requires_labels = ("stress",)
    requires_outputs = ("stress",)

    def __init__(self, *, delta: Positive = 0.01) -> None:
        self.delta = delta

    def average(self, batch: Batch, prediction: Observables) -> Average:
        return _huber(residuals.stress(batch, prediction), self.delta)


@register_loss("l1_energy_per_atom")
class L1EnergyPerAtomLoss(Loss):
    """mean_g w_g w^E_g |E_ref - E| / N_g, eV."""

    requires_labels = ("energy",)
    requires_outputs = ("energy",)

    def average(self, batch: Batch, prediction: Observables) -> Average:
        residual = residuals.energy_per_atom(batch, prediction)
        return residual.average(residual.difference.abs())


@register_loss("l1_forces")
class L1ForcesLoss(Loss):
    """Mean over atoms and components of w_g w^F_g |F_ref - F|, eV/A."""

    requires_labels = ("forces",)
    requires_outputs = ("forces",)

    def average(self, batch: Batch, prediction: Observables) -> Average:
        residual = residuals.forces(batch, prediction)
        return residual.average(residual.difference.abs())


@register_loss("l2_forces")
class L2ForcesLoss(Loss):
    """Mean over atoms of w_g w^F_g times the Euclidean norm of the force error, eV/A."""

    requires_labels = ("forces",)
    requires_outputs = ("forces",)

    def average(self, batch: Batch, prediction: Observables) -> Average:
        residual = residuals.forces(batch, prediction)
        norm = torch.linalg.vector_norm(residual.difference, dim=-1, keepdim=True)
        return residual.average(norm)
