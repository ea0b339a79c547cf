"""Whether a response is physical: a dipole that follows the field."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fpmace.annotations import Values
from fpmace.data.batch import Batch
from fpmace.models.base import Model
from fpmace.observables.perturbation import open_directions

LEAST_EIGENVALUE = 1e-6
"""e Angstrom^2/V; zero is what lies above minus this, or 1e-5 of the largest (float32: 1e-3)."""

PASSIVE_PARTS = (
    "use fixedpoint_update_config: {type: OneBodyPassiveUpdate} with field_readout_config: "
    "{type: VariationalFieldReadout}, whose response is right by construction"
)
"""What to do about a response with a wrong sign."""


def remedy(model: Model) -> str:
    """What to change in a model, to be put behind a warning; empty where there is no advice."""
    if "fixedpoint_update_config" not in model.config or model.energy_is_stationary:
        return ""
    return f"; {PASSIVE_PARTS}"


def open_part(polarizability: Tensor, batch: Batch) -> Tensor:
    """Polarizability [n_graphs, 3, 3] along the open directions, zero along periodic ones.

    The dipole along a periodic direction depends on the choice of images, and no sign of its
    response is wrong.
    """
    free = open_directions(batch).to(polarizability.dtype)
    return polarizability * free.unsqueeze(1) * free.unsqueeze(2)


def eigenvalues(polarizability: Tensor) -> Tensor:
    """[n_graphs, 3] ascending eigenvalues of the symmetric part."""
    return torch.linalg.eigvalsh(0.5 * (polarizability + polarizability.mT))


def is_negative(values: Tensor) -> Tensor:
    """[n_graphs] bool, whether the smallest of the eigenvalues [n_graphs, 3] is below zero."""
    relative = 1e-5 if values.dtype == torch.float64 else 1e-3
    least = (relative * values.abs().amax(-1)).clamp_min(LEAST_EIGENVALUE)
    return values[:, 0] < -least


@dataclass
class NegativePolarizabilities:
    """Counts structures whose dipole falls with the field along some direction."""

    n_structures: int = 0
    n_negative: int = 0
    lowest: float = 0.0

    def add(self, polarizability: Tensor, batch: Batch) -> None:
        """Add the polarizabilities [n_graphs, 3, 3] of a batch."""
        values = eigenvalues(open_part(polarizability, batch))
        wrong = is_negative(values)
        self.n_structures += len(wrong)
        self.n_negative += int(wrong.sum())
        if bool(wrong.any()):
            self.lowest = min(self.lowest, float(values[wrong, 0].min()))

    def merge(self, other: NegativePolarizabilities) -> None:
        """Add the counts of other structures."""
        self.n_structures += other.n_structures
        self.n_negative += other.n_negative
        self.lowest = min(self.lowest, other.lowest)

    def taken(self) -> Values:
        """The counts as plain numbers; they start anew."""
        found = asdict(self)
        self.n_structures, self.n_negative, self.lowest = 0, 0, 0.0
        return found

    def warning(self, model: Model) -> str | None:
        """What is wrong and what to do about it, in words; None if nothing is."""
        if self.n_negative == 0:
            return None
        return (
            "the model's dipole falls with the field along some direction in "
            f"{self.n_negative} of {self.n_structures} structures (lowest eigenvalue of the "
            f"polarizability {self.lowest:.3g} e A^2/V){remedy(model)}"
        )
