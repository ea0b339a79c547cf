"""Starting densities from earlier solutions along a trajectory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from fpmace.data.neighborhood import Array
from fpmace.errors import ConfigError
from fpmace.scf.state import ScfState

Restart = Literal["extrapolate", "last", "none"]
RESTARTS: tuple[str, ...] = ("extrapolate", "last", "none")


@dataclass(frozen=True)
class Snapshot:
    """What a solution belongs to.

    Attributes:
        signature: solutions of different signatures are never mixed (composition, periodicity,
            charge, boundary condition).
        positions: [n_atoms, 3] Angstrom.
        cell: [3, 3] Angstrom.
        pbc: [3] bool.
        drives: other continuous inputs, scaled to act like displacements in Angstrom.
    """

    signature: tuple[object, ...]
    positions: Array
    cell: Array
    pbc: Array
    drives: Array

    def step_from(self, other: Snapshot) -> Array:
        """Displacement vector from ``other``, by the nearest images of the atoms."""
        moved = self.positions - other.positions
        if self.pbc.any():
            basis = other.cell[other.pbc]
            moved = moved - np.round(moved @ np.linalg.pinv(basis)) @ basis
        strain = (self.cell - other.cell)[self.pbc]
        return np.concatenate([moved.ravel(), strain.ravel(), self.drives - other.drives])


class DensityHistory:
    """Keeps the last solutions and predicts the next one.

    ``extrapolate`` writes the new geometry as a combination of the stored ones, by regularised
    least squares with coefficients that sum to 1, and combines the solutions likewise. On a
    smooth trajectory of equal steps this is polynomial extrapolation of the order that the
    accuracy of the stored solutions supports; other sequences (optimisation, line searches) need
    no special treatment. After E. Polack et al., Mol. Phys. 118, e1779834 (2020).

    Args:
        restart: ``extrapolate``, ``last`` (the last solution as it is) or ``none``.
        depth: number of solutions kept.
        noise: accuracy of the stored solutions, as a displacement in Angstrom per coordinate.
        reach: Angstrom per coordinate (root mean square); a geometry farther than this from the
            last one begins a new history.
    """

    def __init__(
        self,
        restart: str = "extrapolate",
        *,
        depth: int = 6,
        noise: float = 1e-6,
        reach: float = 0.3,
    ) -> None:
        if restart not in RESTARTS:
            raise ConfigError(f"got {restart!r}, allowed: {', '.join(RESTARTS)}", where="restart")
        self.restart, self.noise, self.reach = restart, noise, reach
        self._kept: deque[tuple[Snapshot, ScfState]] = deque(
            maxlen=depth if restart == "extrapolate" else 1
        )

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def store(self, geometry: Snapshot, solution: ScfState) -> None:
        """Keep a converged solution; one for the same geometry is replaced."""
        if self.restart == "none":
            return
        self._forget_others(geometry)
        if self._kept and not np.any(geometry.step_from(self._kept[0][0])):
            self._kept.popleft()
        self._kept.appendleft((geometry, solution))

    def predict(self, geometry: Snapshot) -> ScfState | None:
        """Where to start for a geometry; None where nothing fits."""
        self._forget_others(geometry)
        if not self._kept:
            return None
        if len(self._kept) == 1:
            return self._kept[0][1]
        weights = self._weights(geometry)
        density = torch.zeros_like(self._kept[0][1].density)
        level = torch.zeros_like(self._kept[0][1].fermi_level)
        for weight, (_, solution) in zip(weights.tolist(), self._kept, strict=True):
            density = density + weight * solution.density
            level = level + weight * solution.fermi_level
        return ScfState(density, level)

    def _weights(self, geometry: Snapshot) -> Array:
        newest = self._kept[0][0]
        target = geometry.step_from(newest)
        steps = np.stack([item.step_from(newest) for item, _ in list(self._kept)[1:]], axis=1)
        floor = self.noise * np.sqrt(len(target))
        matrix = np.vstack([steps, floor * np.eye(steps.shape[1])])
        right = np.concatenate([target, np.zeros(steps.shape[1])])
        found = np.linalg.lstsq(matrix, right, rcond=None)[0]
        return np.concatenate([[1.0 - found.sum()], found])

    def _forget_others(self, geometry: Snapshot) -> None:
        if not self._kept:
            return
        last = self._kept[0][0]
        if last.signature != geometry.signature or _rms(geometry.step_from(last)) > self.reach:
            self._kept.clear()


def _rms(vector: Array) -> float:
    return float(np.sqrt(np.mean(np.square(vector))))
