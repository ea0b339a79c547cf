"""A loss of your own: keep atomic charges small where nothing else is known.

Use it from YAML::

    plugins: [docs/examples/my_loss.py]
    loss: {forces: 100.0, charge_size: {weight: 0.1, power: 2.0}}
"""

from fpmace.data.batch import Batch
from fpmace.metrics.averages import Average
from fpmace.metrics.residuals import output
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.training.losses import Loss


@register_loss("charge_size")
class ChargeSize(Loss):
    """Mean over atoms of w_g |Q_i|^power, in e^power."""

    requires_labels = ()
    requires_outputs = ("density",)

    def __init__(self, *, power: float = 2.0) -> None:
        self.power = power

    def average(self, batch: Batch, prediction: Observables) -> Average:
        charge = output(prediction, "density")[:, 0]
        return Average.of(batch.weight[batch.batch] * charge.abs().pow(self.power))
