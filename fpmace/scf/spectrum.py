"""Extreme eigenvalues of the map's Jacobian, and the linear mixing that suits them.

They are estimated by Arnoldi's process (W. E. Arnoldi, Q. Appl. Math. 9, 17 (1951)), graph by
graph: a few products with the Jacobian give its extreme eigenvalues. At constant charge the
Jacobian is that of the map with the Fermi level following, so that no charge is gained.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fpmace.scf.charge_control import ChargeKeeping
from fpmace.scf.diagnostics import ScfDiagnostics
from fpmace.scf.krylov import arnoldi
from fpmace.scf.linear_systems import atom_segments
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult

_MIXINGS = np.concatenate(
    [np.geomspace(1e-4, 0.05, 60, endpoint=False), np.linspace(0.05, 1, 400)]
)


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
    keeping = ChargeKeeping(problem, line)

    def apply(flat: Tensor) -> Tensor:
        return keeping.apply(flat.view(t.shape)).reshape(-1)

    segments = atom_segments(problem, t.shape[1])
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
