"""Reference and predicted values kept for parity plots."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.metrics.errors import Quantity
from fpmace.observables.types import Observables


@dataclass
class ParityData:
    """Reference and predicted values of one quantity, up to a limit."""

    limit: int
    reference: list[Tensor] = field(default_factory=list)
    predicted: list[Tensor] = field(default_factory=list)
    count: int = 0

    def add(self, quantity: Quantity, batch: Batch, prediction: Observables) -> None:
        residual = quantity.residual(batch, prediction)
        room = max(self.limit - self.count, 0)
        reference = residual.reference[residual.mask][:room]
        predicted = residual.predicted.detach()[residual.mask][:room]
        self.reference.append(reference.double().cpu())
        self.predicted.append(predicted.double().cpu())
        self.count += len(reference)
