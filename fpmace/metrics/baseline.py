"""Trivial predictions, so that errors can be read against something.

Each element has one mean multipole set and one energy (least squares over the training data),
forces are zero, and the dipole is that of the mean multipoles.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.observables.types import Observables
from fpmace.scf.problem import graph_sum

DESCRIPTION = (
    "trivial: mean multipoles per element, least-squares energies per element, zero forces"
)
_MAX_ELEMENT = 119


class TrivialBaseline(nn.Module):
    """Means over the training data by element; see :meth:`fit`."""

    def __init__(self, multipoles: Tensor, energies: Tensor, fermi_level: Tensor) -> None:
        super().__init__()
        self.multipoles, self.energies, self.fermi_level = multipoles, energies, fermi_level

    @classmethod
    def fit(cls, batches: Iterable[Batch]) -> TrivialBaseline:
        """Gather the means in one pass over the training batches."""
        sums: Tensor | None = None
        weights = torch.zeros(_MAX_ELEMENT, 1, dtype=torch.float64)
        gram = torch.zeros(_MAX_ELEMENT, _MAX_ELEMENT, dtype=torch.float64)
        right = torch.zeros(_MAX_ELEMENT, dtype=torch.float64)
        level = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            batch = batch.to("cpu", torch.float64)
            density = batch.labels["atomic_multipoles"]
            known = torch.zeros_like(density)
            known[:, 1:] = (batch.weights["atomic_multipoles"] > 0)[batch.batch, None]
            known[:, 0] = (batch.weights["charges"] > 0)[batch.batch]
            if sums is None:
                sums = torch.zeros(_MAX_ELEMENT, density.shape[1], dtype=torch.float64)
                weights = torch.zeros_like(sums)
            sums = sums.index_add(0, batch.atomic_numbers, density * known)
            weights = weights.index_add(0, batch.atomic_numbers, known)
            counts = _counts(batch) * (batch.weights["energy"] > 0)[:, None]
            gram += counts.T @ counts
            right += counts.T @ batch.labels["energy"]
            present = (batch.weights["fermi_level"] > 0).to(density.dtype)
            level += torch.stack([(batch.labels["fermi_level"] * present).sum(), present.sum()])
        if sums is None:
            raise ValueError("no batches")
        energies = torch.linalg.lstsq(gram, right[:, None], driver="gelsd").solution[:, 0]
        return cls(sums / weights.clamp_min(1.0), energies, level[0] / level[1].clamp_min(1.0))

    def predict(self, model: nn.Module, batch: Batch, **_: Any) -> Observables:
        """Stand in for :func:`fpmace.observables.predict.predict`; ``model`` is not used."""
        like = batch.positions
        density = self.multipoles.to(like)[batch.atomic_numbers]
        dipoles = density[:, [3, 1, 2]] if density.shape[1] >= 4 else torch.zeros_like(like)
        n = batch.n_graphs
        return Observables(
            energy=_counts(batch) @ self.energies.to(like),
            forces=torch.zeros_like(like),
            stress=torch.zeros_like(batch.cell),
            virials=torch.zeros_like(batch.cell),
            density=density,
            dipole=graph_sum(density[:, :1] * like + dipoles, batch.batch, n),
            total_charge=graph_sum(density[:, 0], batch.batch, n),
            fermi_level=self.fermi_level.to(like).expand(n),
            polarizability=torch.zeros_like(batch.cell),
        )


def _counts(batch: Batch) -> Tensor:
    """[n_graphs, 119] number of atoms of each element."""
    one_hot = nn.functional.one_hot(batch.atomic_numbers, _MAX_ELEMENT).to(batch.positions)
    return graph_sum(one_hot, batch.batch, batch.n_graphs)
