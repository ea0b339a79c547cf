"""Open boundaries: closed-form interactions of Gaussian multipoles, all pairs of a graph."""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor

from fpmace.electrostatics.boys import boys
from fpmace.electrostatics.harmonics import monomials, pair_table
from fpmace.units import COULOMB_C


def pair_kernel(vectors: Tensor, variances: list[float], max_l: int, source_max_l: int) -> Tensor:
    """C_a(grad) C_b(-grad)/(2 l_b - 1)!! on C erf(r / sqrt(2 s)) / r for each variance s.

    This is the potential (smoothed, differentiated) at the receiver of a unit multipole b at the
    sender. It is smooth at r = 0, where it is the interaction of concentric functions.

    Args:
        vectors: [..., 3] receiver minus sender, Angstrom.
        variances: sums of the two squared widths, Angstrom^2.
        max_l, source_max_l: highest l of receivers a and sources b.

    Returns:
        [..., n_variances, n_a, n_b] in V per e Angstrom^l_b and Angstrom^l_a.
    """
    table = pair_table(max_l, source_max_l)
    inverse = vectors.new_tensor([1.0 / s for s in variances])
    t = 0.5 * vectors.square().sum(-1, keepdim=True) * inverse
    radial = boys(t, table.max_order)
    prefactors = [
        vectors.new_tensor([COULOMB_C * sqrt(2.0 / (pi * s)) * s**-order for s in variances])
        for order in range(table.max_order + 1)
    ]
    scaled = torch.stack([f * p for f, p in zip(radial, prefactors, strict=True)], dim=-1)
    terms = monomials(vectors, table.exponents)[..., None, table.monomial]
    kernel = (terms * scaled[..., table.order]) @ vectors.new_tensor(table.coefficients)
    return kernel.unflatten(-1, ((max_l + 1) ** 2, (source_max_l + 1) ** 2))


def pair_vectors(positions: Tensor) -> Tensor:
    """R_i - R_j for all pairs: [g, n, 3] -> [g, n, n, 3]."""
    return positions[:, :, None] - positions[:, None, :]


def as_operator(kernel: Tensor) -> Tensor:
    """[g, n, n', n_a, n_b] -> [g, n n_a, n' n_b], rows atom-major."""
    return kernel.transpose(2, 3).flatten(3, 4).flatten(1, 2)
