"""Solid harmonics of the gradient as derivatives along the axes of a mesh."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from fpmace.electrostatics.harmonics import SOLID_HARMONICS
from fpmace.electrostatics.mesh.transfer import exponents
from fpmace.electrostatics.tables import numbers

Table = tuple[tuple[float, ...], ...]


def derivative_basis(transform: Tensor, scales: tuple[float, ...]) -> Tensor:
    """scale_lm C_lm(grad), with grad = transform . (derivatives along the mesh).

    Args:
        transform: [g, 3, 3] mesh spacings per Angstrom, rows x, y, z.
        scales: of each of the (max_l + 1)^2 components.

    Returns:
        [g, (max_l + 1)^2, n_derivatives], derivatives in the order of
        :func:`~fpmace.electrostatics.mesh.transfer.exponents`.
    """
    blocks, power = [], transform.new_ones(len(transform), 1, 1)
    max_l = round(len(scales) ** 0.5) - 1
    total = len(exponents(max_l))
    start = 0
    for ell in range(max_l + 1):
        polynomials, place = _tables(ell)
        block = numbers(polynomials, transform) @ power @ numbers(place, transform)
        end = start + block.shape[2]
        blocks.append(torch.nn.functional.pad(block, (start, total - end)))
        power = torch.einsum("gab,gcd->gacbd", power, transform).flatten(3, 4).flatten(1, 2)
        start = end
    return torch.cat(blocks, dim=1) * numbers(scales, transform)[:, None]


@lru_cache(maxsize=8)
def _tables(ell: int) -> tuple[Table, Table]:
    """Coefficients on products of l Cartesian axes, and products of l mesh axes as derivatives."""
    axes = list(product(range(3), repeat=ell))
    keys = [(item.count(0), item.count(1), item.count(2)) for item in axes]
    found = [key for key in exponents(ell) if sum(key) == ell]
    polynomials = tuple(
        tuple(p.get(key, 0.0) / keys.count(key) for key in keys) for p in SOLID_HARMONICS[ell]
    )
    return polynomials, tuple(tuple(float(key == other) for other in found) for key in keys)
