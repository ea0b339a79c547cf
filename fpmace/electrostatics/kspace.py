"""Periodic boundaries: sums over reciprocal lattice vectors.

With phases e_i(k) = exp(i k.R_i), S*(k) = sum_i,lm q_lm,i conj(phi_lm(k)) e_i(k) is the conjugate
structure factor; the energy is (K/V) sum |S|^2/k^2 and a feature is
(1/V) sum 2 Re[(K/k^2) S* chi_lm e_i*], both over half of reciprocal space without k = 0 (a charged
cell has a uniform neutralising background). Phases are stored as real numbers (cos, sin, cos, ...)
so that both sums over atoms or vectors are one real matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import pi

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fpmace.electrostatics.gaussian import degree_of_components, double_factorial
from fpmace.electrostatics.harmonics import solid_harmonics
from fpmace.electrostatics.tables import columns, numbers, upload
from fpmace.units import COULOMB_K

PHASE_MEMORY = 1 << 28
"""Bytes up to which the phases of the graphs of a plan are kept."""


@dataclass(frozen=True)
class KVectors:
    """The half set of reciprocal lattice vectors of each graph, without k = 0.

    Attributes:
        vectors: [n_graphs, n_k, 3] 1/Angstrom, functions of the cell; zero where padded.
        square: [n_graphs, n_k] |k|^2, 1 where padded.
        weight: [n_graphs, n_k] 2 K window(|k|) / (V |k|^2), 0 where padded.
        valid: [n_graphs, n_k] bool.
        volume: [n_graphs] Angstrom^3, positive for left-handed cells too.
    """

    vectors: Tensor
    square: Tensor
    weight: Tensor
    valid: Tensor
    volume: Tensor


def make_kvectors(
    cell: Tensor, cutoff: float, window: float, host_cell: Tensor | None = None
) -> KVectors:
    """Choose the set (without gradient) and build the vectors from the cell (with gradient).

    Args:
        cell: [n_graphs, 3, 3] Angstrom, rows are lattice vectors.
        cutoff: k_c in 1/Angstrom.
        window: 0, or the relative width of the smooth taper beyond k_c.
        host_cell: ``cell`` in float64 on the host, if it is there: the set is chosen on the host,
            because its size decides the shape of all that follows.
    """
    host = cell.detach().double().cpu() if host_cell is None else host_cell
    triples, valid = (
        upload(found, cell.device) for found in select_triples(host, cutoff * (1.0 + window))
    )
    reciprocal, volume = reciprocal_cell(cell)
    vectors = torch.bmm(triples.to(cell.dtype), reciprocal)
    present = valid.to(cell.dtype)
    square = vectors.square().sum(-1) + (1.0 - present)
    weight = present * (2.0 * COULOMB_K) / (volume[:, None] * square)
    if window > 0.0:
        weight = weight * taper(square, cutoff, window)
    return KVectors(vectors, square, weight, valid, volume)


def reciprocal_cell(cell: Tensor) -> tuple[Tensor, Tensor]:
    """B = 2 pi (A^-1)^T (rows) and |det A|, by cross products: [n_graphs, 3, 3], [n_graphs]."""
    a, b, c = cell.unbind(1)
    normals = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], dim=1)
    determinant = (a * normals[:, 0]).sum(-1)
    return 2.0 * pi * normals / determinant[:, None, None], determinant.abs()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.cross(a, b, dim=-1)
    return product


def taper(square: Tensor, cutoff: float, window: float) -> Tensor:
    """1 for |k|^2 up to the cutoff, then a quintic (twice differentiable) step down to 0."""
    x = ((square.sqrt() / cutoff - 1.0) / window).clamp(0.0, 1.0)
    return 1.0 - x * x * x * (10.0 + x * (6.0 * x - 15.0))


@torch.no_grad()
def select_triples(cell: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Integer triples with 0 < |k| <= cutoff, one of each pair +-k.

    Args:
        cell: [n_graphs, 3, 3] float64 on the host.

    Returns:
        triples [n_graphs, n_k, 3] float64 (0 where padded), valid [n_graphs, n_k] bool.
    """
    reciprocal, _ = reciprocal_cell(cell)
    # An integer n_j with n_j >= ceil(k_c |a_j| / 2 pi) is left out, equality included.
    bounds = torch.ceil(cell.norm(dim=-1) * (cutoff / (2.0 * pi))).long() - 1
    limits = bounds.amax(0).clamp(min=0).tolist()
    grid = _half_grid(limits[0], limits[1], limits[2])
    inside = (grid @ reciprocal).square().sum(-1) <= cutoff * cutoff
    if cell.shape[0] == 1:
        triples = grid[inside[0]]
        return triples[None], torch.ones_like(triples[None, :, 0], dtype=torch.bool)
    inside &= (grid.abs() <= bounds[:, None, :]).all(-1)
    counts = inside.sum(1)
    n_k = int(counts.max())
    order = inside.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :n_k]
    valid = torch.arange(n_k) < counts[:, None]
    return grid[order] * valid[..., None], valid


@lru_cache(maxsize=64)
def _half_grid(n1: int, n2: int, n3: int) -> Tensor:
    """Triples (i, j, k) up to the limits whose first non-zero entry is positive, [n, 3]."""
    with torch.inference_mode(False):
        ranges = [torch.arange(-n if axis else 0, n + 1) for axis, n in enumerate((n1, n2, n3))]
        grid = torch.cartesian_prod(*ranges)
        i, j, k = grid.unbind(1)
        half = (i > 0) | ((i == 0) & ((j > 0) | ((j == 0) & (k > 0))))
        return grid[half].double()


def phases(vectors: Tensor, points: Tensor) -> Tensor:
    """exp(i k.r) as (cos, sin) pairs: [g, n_k, 3], [g, n, 3] -> [g, n, 2 n_k]."""
    angle = torch.bmm(points, vectors.transpose(1, 2))
    unit = torch.polar(torch.ones((), dtype=angle.dtype, device=angle.device), angle)
    return torch.view_as_real(unit).flatten(-2)


@dataclass(frozen=True)
class Phases:
    """The phases of atoms, kept or, beyond a limit of memory, computed again for every sum.

    Attributes:
        vectors: [g, n_k, 3] 1/Angstrom.
        points: [g, n, 3] Angstrom.
        kept: [g, n, 2 n_k], None beyond the limit.
        chunk: vectors at once where nothing is kept.
    """

    vectors: Tensor
    points: Tensor
    kept: Tensor | None
    chunk: int

    def all(self) -> Tensor:
        """[g, n, 2 n_k]."""
        return phases(self.vectors, self.points) if self.kept is None else self.kept

    def of_graph(self, row: int) -> Phases:
        """Those of one graph."""
        chosen = slice(row, row + 1)
        kept = None if self.kept is None else self.kept[chosen]
        return Phases(self.vectors[chosen], self.points[chosen], kept, self.chunk)

    def sum_over_atoms(self, values: Tensor) -> Tensor:
        """sum_i values_i,n exp(i k.R_i): [g, n_atoms, n] -> complex [g, n, n_k]."""
        if self.kept is not None:
            return sum_over_atoms(values, self.kept)
        vectors = self.vectors.split(self.chunk, dim=1)
        return torch.cat([_again(_chunk_over_atoms, values, k, self.points) for k in vectors], -1)

    def sum_over_vectors(self, amplitudes: Tensor) -> Tensor:
        """Re sum_k amplitudes_n(k) exp(-i k.R_i): complex [g, n, n_k] -> [g, n_atoms, n]."""
        if self.kept is not None:
            return sum_over_vectors(amplitudes, self.kept)
        vectors = self.vectors.split(self.chunk, dim=1)
        found = None
        for part, k in zip(amplitudes.split(self.chunk, dim=2), vectors, strict=True):
            term = _again(_chunk_over_vectors, part, k, self.points)
            found = term if found is None else found + term
        assert found is not None
        return found


def make_phases(vectors: Tensor, points: Tensor, limit: int | None = None) -> Phases:
    """Phases of points [g, n, 3], kept if they fit a limit in bytes."""
    limit = PHASE_MEMORY if limit is None else limit
    per_vector = 2 * points.shape[0] * points.shape[1] * points.element_size()
    kept = phases(vectors, points) if per_vector * vectors.shape[1] <= limit else None
    return Phases(vectors, points, kept, max(1, limit // (8 * max(1, per_vector))))


def _again(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """Call it, and call it again in the backward pass instead of keeping what it computes."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    found: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return found


def _chunk_over_atoms(values: Tensor, vectors: Tensor, points: Tensor) -> Tensor:
    return sum_over_atoms(values, phases(vectors, points))


def _chunk_over_vectors(amplitudes: Tensor, vectors: Tensor, points: Tensor) -> Tensor:
    return sum_over_vectors(amplitudes, phases(vectors, points))


def form_factors(
    k: KVectors,
    max_l: int,
    widths: Sequence[float],
    component: tuple[int, ...],
    scale: tuple[float, ...],
) -> Tensor:
    """scale C_lm(k) exp(-k^2 w^2/2) for one (component, width) per column, real [g, n_k, n]."""
    harmonics = solid_harmonics(k.vectors, max_l)
    distinct = sorted(set(widths))
    squares = numbers(tuple(w * w for w in distinct), k.square)
    decay = torch.exp(-0.5 * k.square[..., None] * squares)
    which = tuple(distinct.index(w) for w in widths)
    return columns(harmonics, component) * columns(decay, which) * numbers(scale, decay)


def source_scales(max_l: int) -> tuple[float, ...]:
    """1 / (2l-1)!! for each component."""
    return tuple(1.0 / double_factorial(2 * ell - 1) for ell in degree_of_components(max_l))


def rotate(factors: Tensor, degrees: list[int], sign: int) -> Tensor:
    """(sign i)^l times real factors: [g, n_k, n] -> complex [g, n, n_k]."""
    turns = [(1j * sign) ** (ell % 4) for ell in degrees]
    real = numbers(tuple(float(round(t.real)) for t in turns), factors)
    imaginary = numbers(tuple(float(round(t.imag)) for t in turns), factors)
    moved = factors.transpose(1, 2)
    return torch.complex(moved * real[:, None], moved * imaginary[:, None])


def as_complex(pairs: Tensor) -> Tensor:
    """Real and imaginary parts in turn, [..., 2 n] -> complex [..., n]."""
    return torch.view_as_complex(pairs.view(*pairs.shape[:-1], -1, 2))


def sum_over_atoms(values: Tensor, phase: Tensor) -> Tensor:
    """sum_i values_i,n exp(i k.R_i): [g, n_atoms, n] -> complex [g, n, n_k]."""
    summed = torch.bmm(values.transpose(1, 2), phase)
    return as_complex(summed)


def sum_over_vectors(amplitudes: Tensor, phase: Tensor) -> Tensor:
    """Re sum_k amplitudes_n(k) exp(-i k.R_i): complex [g, n, n_k] -> [g, n_atoms, n]."""
    flat = torch.view_as_real(amplitudes).flatten(-2)
    return torch.bmm(phase, flat.transpose(1, 2))
