"""GMRES and Arnoldi's process for many independent systems at once, one per segment of a vector.

Sources: Y. Saad and M. H. Schultz, SIAM J. Sci. Stat. Comput. 7, 856 (1986); W. E. Arnoldi,
Q. Appl. Math. 9, 17 (1951).
"""

from __future__ import annotations

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
    """Solution, residual norm and right-hand-side norm per segment, products made."""

    solution: Tensor
    residual: np.ndarray
    n_matvecs: int


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
    norm = segments.dot(rhs, rhs).sqrt()
    hessenberg = _Hessenberg(_host(norm), rtol, floor)
    if not hessenberg.active.any():
        return KrylovResult(torch.zeros_like(rhs), hessenberg.residual, 0)
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
    return KrylovResult(solution, hessenberg.residual, n_matvecs)


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
    """Least squares of the Arnoldi relation by Givens rotations, for all segments at once."""

    def __init__(self, norm: np.ndarray, rtol: float, floor: np.ndarray | None) -> None:
        norm = np.where(np.isfinite(norm), norm, 0.0)
        self.tolerance = np.maximum(rtol * norm, 0.0 if floor is None else floor)
        self.residual = norm.copy()
        self.active = norm > self.tolerance
        self.last = norm.copy()
        self.columns: list[np.ndarray] = []
        self.cosines: list[np.ndarray] = []
        self.sines: list[np.ndarray] = []
        self.right: list[np.ndarray] = []

    def append(self, entries: np.ndarray) -> None:
        column = np.where(self.active, entries, 0.0)
        column[~np.isfinite(column)] = 0.0
        size = np.linalg.norm(column, axis=0)
        for j, (c, s) in enumerate(zip(self.cosines, self.sines, strict=True)):
            upper = c * column[j] + s * column[j + 1]
            column[j + 1] = c * column[j + 1] - s * column[j]
            column[j] = upper
        radius = np.hypot(column[-2], column[-1])
        # A column that the earlier ones nearly span: the operator is singular on this space.
        usable = self.active & (radius > 1e-14 * size) & (size > 0.0)
        safe = np.where(usable, radius, 1.0)
        c = np.where(usable, column[-2] / safe, 1.0)
        s = np.where(usable, column[-1] / safe, 0.0)
        column[-2] = np.where(usable, radius, 1.0)
        self.columns.append(column[:-1])
        self.cosines.append(c)
        self.sines.append(s)
        self.right.append(np.where(usable, c * self.last, 0.0))
        self.last = np.where(usable, -s * self.last, self.last)
        self.residual = np.where(usable, np.abs(self.last), self.residual)
        exhausted = entries[-1] <= 1e-14 * radius
        self.active = usable & (self.residual > self.tolerance) & ~exhausted

    def solve(self) -> np.ndarray:
        """Coefficients of the basis vectors, [m, count]."""
        m = len(self.columns)
        result = np.zeros((m, self.residual.shape[0]))
        for i in reversed(range(m)):
            value = self.right[i].copy()
            for j in range(i + 1, m):
                value -= self.columns[j][i] * result[j]
            result[i] = value / self.columns[i][i]
        return result


def _reciprocal(value: Tensor) -> Tensor:
    return torch.where(value > 0, 1.0 / torch.where(value > 0, value, 1.0), 0.0)


def _host(value: Tensor) -> np.ndarray:
    """Small control data (a few numbers per graph) that the loop must branch on."""
    return value.detach().to("cpu", torch.float64).numpy()
