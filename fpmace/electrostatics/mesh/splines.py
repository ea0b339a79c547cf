"""Cardinal B-splines: values and derivatives around a point, and their Fourier transform.

M_p is the B-spline of order p (degree p - 1) centred at 0: p mesh points lie within its support,
and its derivatives are differences of splines of lower order,
M_p^(a)(x) = sum_k (-1)^k binom(a, k) M_(p-a)(x + a/2 - k).
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor


def spline_values(fraction: Tensor, order: int, degree: int) -> Tensor:
    """M_p and its derivatives at the p mesh points around points.

    Args:
        fraction: [...] coordinates in mesh spacings less their floor.
        order: p, even.
        degree: highest derivative.

    Returns:
        [..., degree + 1, p]: entry (a, j) is the a-th derivative by the coordinate, at the mesh
        point floor - p/2 + 1 + j.
    """
    rows = _by_order(fraction, order)
    found = []
    for a in range(degree + 1):
        if a >= order:
            found.append(torch.zeros_like(rows[-1]))
            continue
        lower = rows[order - a - 1]
        total = torch.zeros_like(rows[-1])
        for k in range(a + 1):
            total[..., k : k + lower.shape[-1]] += (-1) ** k * comb(a, k) * lower
        found.append(total)
    return torch.stack(found, dim=-2).flip(-1)


def _by_order(fraction: Tensor, order: int) -> list[Tensor]:
    """Splines of orders 1..p on [0, n) at fraction + i, i = 0..n-1 (de Boor's recursion)."""
    rows = [torch.ones_like(fraction)[..., None]]
    for n in range(2, order + 1):
        x = fraction[..., None] + torch.arange(n, dtype=fraction.dtype, device=fraction.device)
        zero = torch.zeros_like(fraction)[..., None]
        same, left = torch.cat([rows[-1], zero], -1), torch.cat([zero, rows[-1]], -1)
        rows.append((x * same + (n - x) * left) / (n - 1))
    return rows


def spline_transform(theta: Tensor, order: int) -> Tensor:
    """Fourier transform of M_p at theta radians per mesh spacing: (sin(theta/2)/(theta/2))^p."""
    return torch.sinc(theta / (2.0 * torch.pi)) ** order
