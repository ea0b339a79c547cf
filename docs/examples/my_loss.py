"""Losses of your own: without labels, with a label of a structure, with a label of every atom.

Use them from YAML::

    plugins: [docs/examples/my_loss.py]
    loss:
      forces: 100.0
      charge_size: {weight: 0.1, power: 2.0}
      dipole_length: 10.0
      log_cosh_charges: {weight: 10.0, scale: 0.05}
"""

from math import log
from typing import Annotated

from torch import Tensor
from torch.nn.functional import softplus

from fpmace.annotations import Bounds, Doc, Unit
from fpmace.data.batch import Batch
from fpmace.metrics.averages import Average
from fpmace.metrics.residuals import charges, output
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.training.losses import Loss


@register_loss("charge_size")
class ChargeSize(Loss):
    """Mean over atoms of w_g |Q_i|^power, in e^power: no label."""

    requires_labels = ()
    requires_outputs = ("density",)

    def __init__(self, *, power: float = 2.0) -> None:
        self.power = power

    def average(self, batch: Batch, prediction: Observables) -> Average:
        charge = output(prediction, "density")[:, 0]
        return Average.of(batch.weight[batch.batch] * charge.abs().pow(self.power))


@register_loss("dipole_length")
class DipoleLength(Loss):
    """Mean over structures of w_g w^D_g (|D_ref| - |D|)^2, (e A)^2: a label of a structure.

    Labels and weights by name: ``batch.labels["dipole"]`` [n_graphs, 3], the weight of a structure
    ``batch.weight`` [n_graphs], and that of its label, zero where it is missing,
    ``batch.weights["dipole"]`` [n_graphs, 3].
    """

    requires_labels = ("dipole",)
    requires_outputs = ("dipole",)

    def average(self, batch: Batch, prediction: Observables) -> Average:
        weight = batch.weight * batch.weights["dipole"].mean(-1)
        error = _length(output(prediction, "dipole")) - _length(batch.labels["dipole"])
        return Average.of(weight * error.square())


@register_loss("log_cosh_charges")
class LogCoshCharges(Loss):
    """Mean over atoms of w_g w^q_g scale^2 ln cosh(dq/scale), e^2: a label of every atom.

    Quadratic for small errors, linear for large ones. ``residuals.charges`` has reference,
    prediction and weight of every atom, [n_atoms, 1], from charges or from multipoles.
    """

    requires_labels = ("charges",)
    requires_outputs = ("density",)

    def __init__(
        self,
        *,
        scale: Annotated[
            float, Bounds(above=0.0), Unit("e"), Doc("error where the loss turns linear")
        ] = 0.05,
    ) -> None:
        self.scale = scale

    def average(self, batch: Batch, prediction: Observables) -> Average:
        found = charges(batch, prediction)
        error = found.difference / self.scale
        log_cosh = error + softplus(-2.0 * error) - log(2.0)
        return found.average(self.scale**2 * log_cosh)


def _length(vectors: Tensor) -> Tensor:
    """Smooth at zero: the root of a square that is never zero."""
    return (vectors.square().sum(-1) + 1e-12).sqrt()
