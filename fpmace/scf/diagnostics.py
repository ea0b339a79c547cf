"""What the map looks like at its fixed point: eigenvalues of its Jacobian, best linear mixing.

The eigenvalues are estimated by Arnoldi's process (W. E. Arnoldi, Q. Appl. Math. 9, 17 (1951)),
graph by graph: a few products with the Jacobian give its extreme eigenvalues. At constant charge
the Jacobian is that of the map with the Fermi level following, so that no charge is gained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fpmace.scf.krylov import Segments, arnoldi

if TYPE_CHECKING:
    from fpmace.scf.problem import FixedPointProblem
    from fpmace.scf.state import ScfResult

_MIXINGS = np.concatenate(
    [np.geomspace(1e-4, 0.05, 60, endpoint=False), np.linspace(0.05, 1, 400)]
)


@dataclass(frozen=True, slots=True)
class ScfDiagnostics:
    """Estimates per graph, [n_graphs] each.

    Attributes:
        spectral_radius: largest modulus of an eigenvalue of the map's Jacobian. Plain iteration
            (mixing 1) converges if it is below 1.
        largest_real, smallest_real: extreme real parts. No linear mixing converges where
            ``largest_real`` is 1 or more; a very negative ``smallest_real`` needs small mixing.
        optimal_mixing: the mixing in (0, 1] with which linear mixing converges fastest; NaN
            where none converges.
        mixing_rate: factor by which the error shrinks in a pass with that mixing.
        n_map_evaluations: evaluations of the map that the solve took, for the whole batch.
        n_matvecs: products with the Jacobian that the solve took, for the whole batch.
    """

    spectral_radius: Tensor
    largest_real: Tensor
    smallest_real: Tensor
    optimal_mixing: Tensor
    mixing_rate: Tensor
    n_map_evaluations: int
    n_matvecs: int

    def describe(self, graph: int) -> str:
        """One line on one graph."""
        mixing = float(self.optimal_mixing[graph])
        text = (
            f"eigenvalues of the map from {float(self.smallest_real[graph]):.2f} to "
            f"{float(self.largest_real[graph]):.2f} (modulus at most "
            f"{float(self.spectral_radius[graph]):.2f}); "
        )
        if np.isnan(mixing):
            return text + "no linear mixing converges"
        return text + (
            f"best linear mixing {mixing:.2g}, error x {float(self.mixing_rate[graph]):.2f} a pass"
        )

    def __str__(self) -> str:
        worst = int(torch.nan_to_num(self.spectral_radius, nan=-1.0).argmax())
        return (
            f"map: spectral radius {float(self.spectral_radius[worst]):.2f} at most "
            f"(structure {worst}: {self.describe(worst)})"
        )


@dataclass
class DiagnosticsSummary:
    """Diagnostics of many batches in a few numbers; ``add`` each result's."""

    spectral_radius: list[float] = field(default_factory=list)
    optimal_mixing: list[float] = field(default_factory=list)
    n_map_evaluations: int = 0
    n_matvecs: int = 0
    n_batches: int = 0

    def add(self, diagnostics: ScfDiagnostics | None) -> None:
        """Add those of one batch; None (not asked for) adds nothing."""
        if diagnostics is None:
            return
        self.spectral_radius += diagnostics.spectral_radius.tolist()
        self.optimal_mixing += diagnostics.optimal_mixing.tolist()
        self.n_map_evaluations += diagnostics.n_map_evaluations
        self.n_matvecs += diagnostics.n_matvecs
        self.n_batches += 1

    def to_json(self) -> dict[str, float | int] | None:
        """Plain numbers; None if nothing was added."""
        if not self.spectral_radius:
            return None
        radius = np.array(self.spectral_radius)
        mixing = np.array(self.optimal_mixing)
        result: dict[str, float | int] = {
            "n_structures": len(radius),
            "n_without_linear_mixing": int(np.isnan(mixing).sum()),
            "mean_map_evaluations": self.n_map_evaluations / self.n_batches,
            "mean_matvecs": self.n_matvecs / self.n_batches,
        }
        if np.isfinite(radius).any():
            result["median_spectral_radius"] = float(np.nanmedian(radius))
            result["max_spectral_radius"] = float(np.nanmax(radius))
        if np.isfinite(mixing).any():
            result["min_optimal_mixing"] = float(np.nanmin(mixing))
            result["median_optimal_mixing"] = float(np.nanmedian(mixing))
        return result

    def __str__(self) -> str:
        found = self.to_json()
        if found is None:
            return "no diagnostics of the map"
        text = (
            f"map of {found['n_structures']} structures: {found['mean_map_evaluations']:.1f} "
            f"evaluations and {found['mean_matvecs']:.1f} products with its Jacobian a batch"
        )
        if "max_spectral_radius" in found:
            text += (
                f", spectral radius {found['median_spectral_radius']:.2f} (median), "
                f"{found['max_spectral_radius']:.2f} (largest)"
            )
        if "min_optimal_mixing" in found:
            text += (
                f", best linear mixing {found['median_optimal_mixing']:.2g} (median), "
                f"{found['min_optimal_mixing']:.2g} (smallest)"
            )
        if found["n_without_linear_mixing"]:
            text += f", none for {found['n_without_linear_mixing']} structures"
        return text


def diagnose(
    problem: FixedPointProblem, result: ScfResult, *, n_vectors: int = 20
) -> ScfDiagnostics:
    """Estimate the extreme eigenvalues of the map's Jacobian at the answer of a solve.

    Args:
        problem: the problem that was solved.
        result: its answer; the estimate belongs to the density found, converged or not.
        n_vectors: products with the Jacobian. Extreme eigenvalues are usually right to a few
            per cent with 20; the inner ones are not.
    """
    with torch.no_grad():
        values = ritz_values(
            problem, result.density.detach(), result.fermi_level.detach(), n_vectors
        )
    columns = np.array([_summary(per_graph) for per_graph in values]).T
    like = result.density
    radius, largest, smallest, mixing, rate = (
        torch.as_tensor(column, dtype=like.dtype, device=like.device) for column in columns
    )
    return ScfDiagnostics(
        radius, largest, smallest, mixing, rate, result.n_map_evaluations, result.n_matvecs
    )


def ritz_values(
    problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, n_vectors: int
) -> list[NDArray[np.complex128]]:
    """Estimates of eigenvalues of the map's Jacobian, for each graph.

    Args:
        density: [n_atoms, n_lm] where the Jacobian is taken.
        fermi_level: [n_graphs] eV.
        n_vectors: size of the Krylov space at most.

    Returns:
        Per graph the Ritz values; empty where the Jacobian is not finite.
    """
    line = problem.linearisation(density, fermi_level)
    t = line.fermi_response
    total = problem.sum(t[:, 0])
    held = torch.zeros_like(total, dtype=torch.bool)
    if problem.target_charge is not None:
        held = total.abs() > 1e-3 * problem.sum(t[:, 0].abs())
    pivot = torch.where(held, total, torch.ones_like(total))

    def apply(flat: Tensor) -> Tensor:
        image = line.apply(flat.view(t.shape))
        gained = torch.where(held, problem.charge(image) / pivot, torch.zeros_like(pivot))
        return (image - t * problem.spread(gained).unsqueeze(-1)).reshape(-1)

    segments = Segments(problem.batch.repeat_interleave(t.shape[1]), problem.n_graphs)
    sizes = (problem.atoms_per_graph * t.shape[1]).tolist()
    _, hessenberg = arnoldi(apply, start_vector(problem, t), segments, n_vectors)
    return [_eigenvalues(hessenberg[:, :, g], sizes[g]) for g in range(problem.n_graphs)]


def start_vector(problem: FixedPointProblem, like: Tensor) -> Tensor:
    """A fixed vector without symmetry, the same for a graph wherever it stands in the batch."""
    n_atoms, n_lm = like.shape
    first = problem.atoms_per_graph.cumsum(0) - problem.atoms_per_graph
    atom = torch.arange(n_atoms, device=like.device) - first[problem.batch]
    rows = atom.unsqueeze(-1) * n_lm + torch.arange(n_lm, device=like.device)
    return (torch.sin(1.0 + 12.9898 * rows.to(like.dtype)) + 0.1).reshape(-1)


def _eigenvalues(hessenberg: NDArray[np.float64], size: int) -> NDArray[np.complex128]:
    m = min(hessenberg.shape[1], size)
    below = np.abs(np.diagonal(hessenberg, -1))[:m]
    scale = max(float(np.abs(hessenberg[:m, :m]).max(initial=0.0)), 1e-300)
    ends = np.nonzero(below <= 1e-10 * scale)[0]
    if len(ends):
        m = int(ends[0]) + 1
    square = hessenberg[:m, :m]
    if not np.isfinite(square).all():
        return np.zeros(0, dtype=np.complex128)
    return np.asarray(np.linalg.eigvals(square), dtype=np.complex128)


def _summary(values: NDArray[np.complex128]) -> tuple[float, float, float, float, float]:
    if len(values) == 0:
        return (np.nan,) * 5
    mixing, rate = best_mixing(values)
    real = values.real
    return float(np.abs(values).max()), float(real.max()), float(real.min()), mixing, rate


def best_mixing(values: NDArray[np.complex128]) -> tuple[float, float]:
    """The mixing b in (0, 1] that makes max |1 - b (1 - value)| smallest, and that maximum.

    For real eigenvalues in [a, c] this is b = 2 / (2 - a - c). NaN where a value has a real part
    of 1 or more, since then no mixing converges.
    """
    if values.real.max() >= 1.0:
        return np.nan, np.nan
    rates = np.abs(1.0 - _MIXINGS[:, None] * (1.0 - values)).max(axis=1)
    best = int(rates.argmin())
    fine = np.linspace(_MIXINGS[max(best - 1, 0)], _MIXINGS[min(best + 1, len(_MIXINGS) - 1)], 200)
    rates = np.abs(1.0 - fine[:, None] * (1.0 - values)).max(axis=1)
    return float(fine[rates.argmin()]), float(rates.min())
