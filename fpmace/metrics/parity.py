"""Reference and predicted values kept for parity plots."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
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

    def merge(self, other: ParityData) -> None:
        """Add values of other structures, up to the limit."""
        room = max(self.limit - self.count, 0)
        reference = torch.cat([*other.reference, torch.zeros(0)])[:room]
        self.reference.append(reference)
        self.predicted.append(torch.cat([*other.predicted, torch.zeros(0)])[:room])
        self.count += len(reference)
