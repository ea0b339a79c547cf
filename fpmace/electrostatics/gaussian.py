"""Gaussian multipoles: normalisation, overlap, feature layout, cutoff.

With the solid harmonics C_lm of :mod:`~fpmace.electrostatics.harmonics`, a density multipole of
width sigma has the Fourier transform (-i)^l C_lm(k) / (2l-1)!! exp(-k^2 sigma^2 / 2), and a
receiver of width w has (-i)^l m_l(w) C_lm(k) exp(-k^2 w^2 / 2). So the potential of a multipole
is C_lm(-grad) / (2l-1)!! on the potential of a Gaussian charge, and a feature is m_l(w) C_lm(grad)
on the potential smoothed by a Gaussian of width w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import gamma, pi, sqrt

from fpmace.units import COULOMB_K

MAX_L = 2


def double_factorial(n: int) -> int:
    """n!! with (-1)!! = 1."""
    return 1 if n <= 0 else n * double_factorial(n - 2)


def multipole_norm(ell: int, width: float) -> float:
    """N_l, which makes q_lm the multipole moment of q_lm N_l r^l exp(-r^2/2 width^2) Y_lm."""
    radial = math.pow(2.0, ell + 0.5) * gamma(ell + 1.5) * width ** (2 * ell + 3)
    return 1.0 / (sqrt(4.0 * pi / (2 * ell + 1)) * radial)


def receiver_norm(ell: int, width: float) -> float:
    """M_l, the normalisation of the receivers M_l r^l exp(-r^2/2 width^2) Y_lm."""
    return 1.0 / (math.pow(2.0, (ell + 1) / 2) * gamma((ell + 3) / 2) * width ** (ell + 3))


def receiver_scale(ell: int, width: float) -> float:
    """m_l(w): a feature is m_l(w) C_lm(grad) on the smoothed potential, in V.

    m_0 = sqrt(4 pi), m_1 = pi sqrt(3/2) w.
    """
    fourier = 4.0 * pi * sqrt(pi / 2.0) * sqrt((2 * ell + 1) / (4.0 * pi)) * width ** (2 * ell + 3)
    return receiver_norm(ell, width) * fourier


def conjugate_norms(max_l: int, width: float) -> list[float]:
    """Features of the density's own width over the potentials conjugate to its multipoles.

    sqrt(4 pi) for l = 0, pi sqrt(3/2) w for l = 1: m_l (2l-1)!!.
    """
    return [receiver_scale(ell, width) * double_factorial(2 * ell - 1) for ell in range(max_l + 1)]


def self_overlap(ell: int, sigma: float, width: float, *, receiver: bool) -> float:
    """Interaction s_l of a multipole of width sigma with a function of width ``width`` on it.

    With ``receiver`` the function is a receiver (own contribution to a feature, V per e A^l),
    without it is a multipole (the self-energy is s_l q_lm^2 / 2, eV).
    """
    other = receiver_norm(ell, width) if receiver else multipole_norm(ell, width)
    radial = 0.5 * gamma(ell + 0.5) * math.pow(2.0 / (sigma**2 + width**2), ell + 0.5)
    both = multipole_norm(ell, sigma) * other * (sigma * width) ** (2 * ell + 3)
    return COULOMB_K * both * radial


def kspace_cutoff(factor: float, max_l: int, widths: tuple[float, ...]) -> float:
    """Cutoff in 1/Angstrom: factor * 0.75 * 3 * (max_l + 1)^0.3 / smallest width."""
    return factor * 0.75 * 3.0 * math.pow(max_l + 1, 0.3) / min(widths)


@dataclass(frozen=True)
class FeatureColumn:
    """What one entry of the flat feature vector is."""

    ell: int
    component: int
    """Position of (l, m) in the list of all components, l^2 + m index."""
    width_index: int
    scale: float
    """m_l of the width."""


def feature_columns(max_l: int, widths: tuple[float, ...]) -> list[FeatureColumn]:
    """Flat layout of the features: l slowest, then width, then m."""
    return [
        FeatureColumn(ell, ell * ell + m, index, receiver_scale(ell, width))
        for ell in range(max_l + 1)
        for index, width in enumerate(widths)
        for m in range(2 * ell + 1)
    ]


def degree_of_components(max_l: int) -> list[int]:
    """l of each of the (max_l + 1)^2 components."""
    return [ell for ell in range(max_l + 1) for _ in range(2 * ell + 1)]
