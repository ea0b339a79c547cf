"""Whether a response is physical: a dipole that follows the field."""

from __future__ import annotations

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.models.base import Model
from fpmace.observables.perturbation import open_directions

LEAST_EIGENVALUE = 1e-6
"""e Angstrom^2/V; eigenvalues above minus this, or 1e-5 of the largest, count as zero."""

PASSIVE_PARTS = (
    "use fixedpoint_update_config: {type: OneBodyPassiveUpdate} with field_readout_config: "
    "{type: VariationalFieldReadout}, whose response is right by construction"
)
"""What to do about a response with a wrong sign."""


def remedy(model: Model) -> str:
    """What to change in a model, to be put behind a warning; empty where there is no advice."""
    if not model.solves_self_consistency or model.energy_is_stationary:
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
    least = (1e-5 * values.abs().amax(-1)).clamp_min(LEAST_EIGENVALUE)
    return values[:, 0] < -least


def negative_polarizability(model: Model, polarizability: Tensor, batch: Batch) -> str | None:
    """A warning in words if a dipole falls with the field, else None."""
    values = eigenvalues(open_part(polarizability, batch))
    wrong = torch.nonzero(is_negative(values)).squeeze(-1).tolist()
    if not wrong:
        return None
    worst = float(values[wrong, 0].min())
    whole = f"{len(wrong)} of {batch.n_graphs} structures" if batch.n_graphs > 1 else "structure"
    return (
        f"polarizability of {'the ' if batch.n_graphs == 1 else ''}{whole} has a negative "
        f"eigenvalue ({worst:.3g} e A^2/V): the model's dipole falls with the field along one "
        f"direction{remedy(model)}"
    )
