"""Means kept as sum and count, so that parts of a data set add up exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Average:
    """A mean over entries (atoms, components, structures) that can be added to others.

    Attributes:
        total: scalar, sum over the entries.
        count: number of entries.
    """

    total: Tensor
    count: int

    @classmethod
    def of(cls, values: Tensor) -> Average:
        """The plain mean over all entries of ``values``."""
        return cls(values.sum(), values.numel())

    @property
    def mean(self) -> Tensor:
        """Scalar; NaN if there are no entries."""
        return self.total / self.count

    def __add__(self, other: Average) -> Average:
        return Average(self.total + other.total, self.count + other.count)


def detached(averages: Mapping[str, Average]) -> dict[str, Average]:
    """The same numbers without their derivatives."""
    return {name: Average(item.total.detach(), item.count) for name, item in averages.items()}
