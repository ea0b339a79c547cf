"""Losses on the potential of the density, against that of the reference multipoles."""

from __future__ import annotations

from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.training import residuals
from fpmace.training.losses.base import Loss
from fpmace.training.losses.stability import the_problem
from fpmace.training.residuals import output


@register_loss("field_features")
class FieldFeaturesLoss(Loss):
    """Mean over atoms and components of w_g w^q_g (v(q_ref) - v(q))^2, without the Fermi level.

    ``v`` are the normalised field features; external field and Fermi level cancel in the
    difference. The weight is that of the reference multipoles, from which ``v(q_ref)`` comes.
    """

    requires_labels = ("atomic_multipoles",)
    requires_outputs = ("density", "fermi_level", "problem")

    def __call__(self, batch: Batch, prediction: Observables) -> Tensor:
        problem = the_problem(prediction)
        residual = residuals.atomic_multipoles(batch, prediction)
        levels = problem.spread(output(prediction, "fermi_level").detach())
        _, wanted = problem.evaluate(residual.reference, levels)
        _, found = problem.evaluate(residual.predicted, levels)
        return (residual.weight * (wanted - found).square()).mean()
