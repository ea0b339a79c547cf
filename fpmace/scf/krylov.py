"""GMRES and Arnoldi's process for many independent systems at once, one per segment of a vector.

Sources: Y. Saad and M. H. Schultz, SIAM J. Sci. Stat. Comput. 7, 856 (1986); W. E. Arnoldi,
Q. Appl. Math. 9, 17 (1951).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """Which entries of a vector belong to which system."""

    index: Tensor
    count: int

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products per segment: [..., n] and [n] to [..., count]."""
        if self.count == 1:
            return (a @ b).unsqueeze(-1)
        product = a * b
        out = product.new_zeros((*product.shape[:-1], self.count))
        return out.index_add(-1, self.index, product)

    def scale(self, vector: Tensor, factor: Tensor) -> Tensor:
        """Multiply each segment by its factor [count]."""
        return vector * (factor if self.count == 1 else factor[self.index])

    def combine(self, basis: Tensor, coefficients: Tensor) -> Tensor:
        """Per segment sum_k coefficients[k] basis[k]: [m, n] and [m, count] to [n]."""
        if self.count == 1:
            return coefficients[:, 0] @ basis
        return (coefficients[:, self.index] * basis).sum(0)


@dataclass(frozen=True, slots=True)
class KrylovResult:
    """Solution [n], residual norm [count], products made.

    ``weights`` [m, count]: the solution is the combination of the first m vectors that the
    operator was applied to, in order.
    """

    solution: Tensor
    residual: np.ndarray
    n_matvecs: int
    weights: Tensor


def gmres(
    apply: Callable[[Tensor], Tensor],
    rhs: Tensor,
    segments: Segments,
    *,
    rtol: float,
    floor: np.ndarray | None = None,
    max_iterations: int = 100,
) -> KrylovResult:
    """Solve ``apply(x) = rhs`` in every segment, starting from zero.

    A segment stops when its residual norm is below ``max(rtol * |rhs|, floor)``; its solution no
    longer changes while the others go on.

    Args:
        apply: the linear operator, which must not mix segments.
        rhs: [n].
        segments: the systems.
        rtol: relative tolerance.
        floor: [count] absolute tolerance, default 0.
        max_iterations: size of the Krylov space at most; there are no restarts.
    """
    if segments.count == 1:
        return _gmres_one(apply, rhs, rtol, 0.0 if floor is None else floor[0], max_iterations)
    norm = segments.dot(rhs, rhs).sqrt()
    hessenberg = _Hessenberg(_host(norm), rtol, floor)
    if not hessenberg.active.any():
        nothing = rhs.new_zeros((0, segments.count))
        return KrylovResult(torch.zeros_like(rhs), hessenberg.residual, 0, nothing)
    basis = rhs.new_zeros((min(max_iterations, rhs.shape[0]) + 1, rhs.shape[0]))
    basis[0] = segments.scale(rhs, _reciprocal(norm))
    n_matvecs = 0
    for k in range(basis.shape[0] - 1):
        vector = apply(basis[k])
        n_matvecs += 1
        known = basis[: k + 1]
        column = segments.dot(known, vector)
        vector = vector - segments.combine(known, column)
        again = segments.dot(known, vector)
        vector = vector - segments.combine(known, again)
        length = segments.dot(vector, vector).sqrt()
        entries = torch.cat([column + again, length.unsqueeze(0)])
        hessenberg.append(_host(entries))
        if not hessenberg.active.any():
            break
        keep = torch.as_tensor(hessenberg.active, device=rhs.device)
        basis[k + 1] = segments.scale(vector, torch.where(keep, _reciprocal(length), 0.0))
    weights = torch.as_tensor(hessenberg.solve(), dtype=rhs.dtype, device=rhs.device)
    solution = segments.combine(basis[: weights.shape[0]], weights)
    return KrylovResult(solution, hessenberg.residual, n_matvecs, weights)


def _gmres_one(
    apply: Callable[[Tensor], Tensor], rhs: Tensor, rtol: float, floor: float, limit: int
) -> KrylovResult:
    """:func:`gmres` for one system, its small matrices as Python numbers: a third of the cost."""
    residual = float(rhs.norm())
    tolerance = max(rtol * residual, floor) if math.isfinite(residual) else math.inf
    if not residual > tolerance:
        size = residual if math.isfinite(residual) else 0.0
        nothing = rhs.new_zeros((0, 1))
        return KrylovResult(torch.zeros_like(rhs), np.array([size]), 0, nothing)
    basis = rhs.new_zeros((min(limit, rhs.shape[0]) + 1, rhs.shape[0]))
    basis[0] = rhs / residual
    triangle: list[list[float]] = []
    rotations: list[tuple[float, float]] = []
    right = [residual]
    n_matvecs = 0
    for k in range(basis.shape[0] - 1):
        vector = apply(basis[k])
        n_matvecs += 1
        known = basis[: k + 1]
        column = known @ vector
        vector = vector - column @ known
        again = known @ vector
        vector = vector - again @ known
        entries = torch.cat([column + again, vector.norm().unsqueeze(0)]).tolist()
        size = math.hypot(*entries)
        for j, (c, s) in enumerate(rotations):
            upper, lower = entries[j], entries[j + 1]
            entries[j], entries[j + 1] = c * upper + s * lower, c * lower - s * upper
        length = entries.pop()
        radius = math.hypot(entries[k], length)
        if not radius > 1e-14 * size:
            break
        c, s = entries[k] / radius, length / radius
        entries[k] = radius
        triangle.append(entries)
        rotations.append((c, s))
        right[k:] = [c * right[k], -s * right[k]]
        residual = abs(right[k + 1])
        if residual <= tolerance or length <= 1e-14 * radius:
            break
        basis[k + 1] = vector / length
    weights = rhs.new_tensor(_back_substitute(triangle, right))
    solution = weights @ basis[: len(triangle)]
    return KrylovResult(solution, np.array([residual]), n_matvecs, weights.unsqueeze(-1))


def _back_substitute(columns: list[list[float]], right: list[float]) -> list[float]:
    """Solve the triangular system whose j-th column has entries 0 to j."""
    result = [0.0] * len(columns)
    for i in reversed(range(len(columns))):
        later = sum(columns[j][i] * result[j] for j in range(i + 1, len(columns)))
        result[i] = (right[i] - later) / columns[i][i]
    return result


def arnoldi(
    apply: Callable[[Tensor], Tensor], start: Tensor, segments: Segments, n_vectors: int
) -> tuple[Tensor, np.ndarray]:
    """Orthonormal Krylov basis of each segment, and the operator in it.

    Args:
        apply: the linear operator, which must not mix segments.
        start: [n], not zero in any segment.
        n_vectors: size m of the basis, at most n.

    Returns:
        Basis [m + 1, n] and Hessenberg matrices [m + 1, m, count]; zero beyond the end of a
        segment's Krylov space.
    """
    size = min(n_vectors, start.shape[0])
    basis = start.new_zeros((size + 1, start.shape[0]))
    basis[0] = segments.scale(start, segments.dot(start, start).rsqrt())
    hessenberg = start.new_zeros((size + 1, size, segments.count))
    for k in range(size):
        vector = apply(basis[k])
        known = basis[: k + 1]
        for _ in range(2):
            part = segments.dot(known, vector)
            vector = vector - segments.combine(known, part)
            hessenberg[: k + 1, k] += part
        length = segments.dot(vector, vector).sqrt()
        hessenberg[k + 1, k] = length
        scale = torch.where(length > 1e-12 * hessenberg[: k + 1, k].norm(dim=0), length, torch.inf)
        basis[k + 1] = segments.scale(vector, 1.0 / scale)
    return basis, _host(hessenberg)


class _Hessenberg:
    """Least squares of the Arnoldi relation by Givens rotations, for all segments at once.

    ``rotations`` [count, m, m] is the product of all rotations so far, ``triangle`` [count, m, m]
    what they make of the Hessenberg matrix, ``right`` [count, m] of the right-hand side.
    """

    def __init__(self, norm: np.ndarray, rtol: float, floor: np.ndarray | None) -> None:
        norm = np.where(np.isfinite(norm), norm, 0.0)
        self.tolerance = np.maximum(rtol * norm, 0.0 if floor is None else floor)
        self.residual = norm.copy()
        self.active = norm > self.tolerance
        self.size = 0
        self._allocate(16, len(norm))
        self.right[:, 0] = norm

    def _allocate(self, m: int, count: int) -> None:
        self.rotations = np.tile(np.eye(m), (count, 1, 1))
        self.triangle = np.tile(np.eye(m), (count, 1, 1))
        self.right = np.zeros((count, m))

    def _grow(self) -> None:
        old = self.rotations, self.triangle, self.right
        m, count = old[2].shape[1], old[2].shape[0]
        self._allocate(2 * m, count)
        self.rotations[:, :m, :m], self.triangle[:, :m, :m], self.right[:, :m] = old

    def append(self, entries: np.ndarray) -> None:
        """Take a column [k + 2, count] of the Hessenberg matrix."""
        k = self.size
        if k + 2 > self.right.shape[1]:
            self._grow()
        self.size = k + 1
        column = np.where(self.active & np.isfinite(entries), entries, 0.0).T
        size = np.sqrt((column * column).sum(1))
        turned = np.matmul(self.rotations[:, : k + 2, : k + 2], column[:, :, None])[:, :, 0]
        upper, lower = turned[:, k], turned[:, k + 1]
        radius = np.hypot(upper, lower)
        # A column that the earlier ones nearly span: the operator is singular on this space.
        usable = self.active & (radius > 1e-14 * size) & (size > 0.0)
        safe = np.where(usable, radius, 1.0)
        c, s = np.where(usable, upper / safe, 1.0), np.where(usable, lower / safe, 0.0)
        self._rotate(k, c, s)
        self.triangle[:, :k, k] = np.where(usable[:, None], turned[:, :k], 0.0)
        self.triangle[:, k, k] = safe
        last = self.right[:, k].copy()
        self.right[:, k] = np.where(usable, c * last, 0.0)
        self.right[:, k + 1] = np.where(usable, -s * last, last)
        self.residual = np.where(usable, np.abs(self.right[:, k + 1]), self.residual)
        exhausted = column[:, k + 1] <= 1e-14 * radius
        self.active = usable & (self.residual > self.tolerance) & ~exhausted

    def _rotate(self, k: int, c: np.ndarray, s: np.ndarray) -> None:
        rows = self.rotations[:, k : k + 2, : k + 2].copy()
        self.rotations[:, k, : k + 2] = c[:, None] * rows[:, 0] + s[:, None] * rows[:, 1]
        self.rotations[:, k + 1, : k + 2] = c[:, None] * rows[:, 1] - s[:, None] * rows[:, 0]

    def solve(self) -> np.ndarray:
        """Coefficients of the basis vectors, [m, count]."""
        m = self.size
        return np.linalg.solve(self.triangle[:, :m, :m], self.right[:, :m, None])[:, :, 0].T


def _reciprocal(value: Tensor) -> Tensor:
    return torch.where(value > 0, 1.0 / torch.where(value > 0, value, 1.0), 0.0)


def _host(value: Tensor) -> np.ndarray:
    """Small control data (a few numbers per graph) that the loop must branch on."""
    return value.detach().to("cpu", torch.float64).numpy()
