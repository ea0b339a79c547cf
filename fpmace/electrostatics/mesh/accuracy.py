"""How fine a mesh has to be: an estimate of the error of the forces, and sizes of meshes.

A wave k enters a sum over splines together with its aliases k + 2 pi j / h, the nearest of which
has the relative amplitude r = (x / (1 - x))^(p - d) along each axis, x = k h / (2 pi), if the
spline is differentiated d times (R. W. Hockney and J. W. Eastwood, Computer Simulation Using
Particles, 1988, chapter 8). Atoms at random places see all waves with random phases, so squares
add: the relative error of the forces is the root of the sums, over k and all pairs of degrees of
multipoles, of (force amplitude * r)^2 over those of the amplitudes. Of these only waves shorter
than the Gaussians count: dense matter screens the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import ceil, pi, prod, sqrt

import torch

from fpmace.electrostatics.gaussian import double_factorial

_FINEST, _COARSEST = 1.0 / 64.0, 4.0
_FACTORS = (2, 3, 5)


@lru_cache(maxsize=256)
def force_error(spacing: float, order: int, variance: float, max_l: int, cutoff: float) -> float:
    """Relative error of the forces between random unit multipoles (1 e Angstrom^l).

    Args:
        spacing: of the mesh, Angstrom.
        order: of the splines.
        variance: sum of the squared widths of the two Gaussians, Angstrom^2.
        max_l: highest multipole.
        cutoff: largest |k| in 1/Angstrom.
    """
    k = torch.linspace(0.0, cutoff, 257, dtype=torch.float64)[1:, None]
    cosine = (torch.arange(16, dtype=torch.float64) + 0.5) / 16.0
    x = (k * cosine * spacing / (2.0 * pi)).clamp(max=0.5)
    alias = x / (1.0 - x)
    unscreened = (k * sqrt(0.5 * variance) >= 0.7).flatten()
    exact = torch.zeros((), dtype=torch.float64)
    error = exact.clone()
    for here, there in product(range(max_l + 1), repeat=2):
        scale = double_factorial(2 * here - 1) * double_factorial(2 * there - 1)
        force = k ** (here + there - 1) * torch.exp(-0.5 * k * k * variance) / scale
        amplitude = (k * force).square().expand_as(alias)
        exact = exact + amplitude[unscreened].sum()
        missed = alias ** (2 * (order - here - 1)) + alias ** (2 * (order - there))
        error = error + 6.0 * (amplitude * missed).sum()
    return sqrt(float(error / exact))


@lru_cache(maxsize=64)
def spacing_for(accuracy: float, order: int, variance: float, max_l: int, cutoff: float) -> float:
    """The widest spacing whose :func:`force_error` is at most the accuracy, Angstrom."""
    fine, coarse = _FINEST, _COARSEST
    for _ in range(20):
        middle = sqrt(fine * coarse)
        if force_error(middle, order, variance, max_l, cutoff) <= accuracy:
            fine = middle
        else:
            coarse = middle
    return fine


def fast_size(least: float) -> int:
    """The smallest even number with the factors 2, 3 and 5 alone that is not below ``least``."""
    return next(n for n in _fast_sizes(2 * ceil(max(least, 2.0))) if n >= least)


@lru_cache(maxsize=8)
def _products(limit: int) -> tuple[int, ...]:
    def grow(value: int, factors: tuple[int, ...]) -> Iterator[int]:
        yield value
        for index, factor in enumerate(factors):
            if value * factor <= limit:
                yield from grow(value * factor, factors[index:])

    return tuple(sorted(n for n in grow(2, _FACTORS)))


def _fast_sizes(limit: int) -> tuple[int, ...]:
    return _products(1 << max(4, limit - 1).bit_length())


def n_points(shape: tuple[int, ...]) -> int:
    """Points of a mesh."""
    return prod(shape)
