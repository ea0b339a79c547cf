"""The range of inputs that a model was trained on, and what lies outside of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fpmace.data.batch import Batch

COMPARED: Mapping[str, tuple[str, str]] = {
    "total charge": ("e", "total_charge"),
    "charge per atom": ("e", "total_charge"),
    "external field": ("V/A", "external_field"),
    "Fermi level": ("eV", "fermi_level"),
}
"""Unit, and input that it comes from; the field by its size, the level only where it is held."""

_SLACK = 1e-3
"""Fraction of the largest value by which the range is widened."""


@dataclass(frozen=True)
class TrainedRange:
    """Smallest and largest value of each quantity in the training data, JSON-able.

    Attributes:
        values: by name in :data:`COMPARED`; Fermi levels only if the data has them.
    """

    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> TrainedRange:
        """Gather the range in one pass over the training batches."""
        found: dict[str, tuple[float, float]] = {}
        for batch in batches:
            for name, value in _quantities(batch).items():
                for number in (float(value.min()), float(value.max())) if len(value) else ():
                    low, high = found.get(name, (math.inf, -math.inf))
                    found[name] = (min(low, number), max(high, number))
        return cls(found)

    def outside(self, given: Mapping[str, float]) -> dict[str, str]:
        """What of ``given`` (see :func:`charge_and_field`) lies outside, with a text for each."""
        texts = {}
        for name, value in given.items():
            if name not in self.values:
                continue
            low, high = self.values[name]
            slack = _SLACK * max(abs(low), abs(high)) + 1e-6
            if not low - slack <= value <= high + slack:
                unit = COMPARED[name][0]
                texts[name] = (
                    f"{name} {value:.6g} {unit} lies outside of what the model was trained on "
                    f"({low:.6g} to {high:.6g} {unit}); it extrapolates"
                )
        return texts


def charge_and_field(
    total_charge: float,
    external_field: Iterable[float],
    n_atoms: int,
    fermi_level: float | None = None,
) -> dict[str, float]:
    """Quantities of one structure; ``fermi_level`` where it is held."""
    found = {
        "total charge": float(total_charge),
        "charge per atom": float(total_charge) / max(n_atoms, 1),
        "external field": math.hypot(*map(float, external_field)),
    }
    if fermi_level is not None:
        del found["total charge"], found["charge per atom"]
        found["Fermi level"] = float(fermi_level)
    return found


def _quantities(batch: Batch) -> dict[str, Tensor]:
    """[n] values of each quantity."""
    return {
        "total charge": batch.total_charge,
        "charge per atom": batch.total_charge / batch.atoms_per_graph,
        "external field": batch.external_field.norm(dim=-1),
        "Fermi level": batch.labels["fermi_level"][batch.weights["fermi_level"] > 0],
    }
