"""Solid harmonics as polynomials, and how two of them differentiate a radial function.

C_lm(r) = sqrt(4 pi / (2l+1)) r^l Y_lm(r), real, in the order (y, z, x) for l = 1 and
(xy, yz, z^2, zx, x^2-y^2) for l = 2. Adding l = 3 means adding a row to the table below.
"""

from __future__ import annotations

from functools import lru_cache
from math import factorial, sqrt

import torch
from torch import Tensor

from fpmace.electrostatics.gaussian import double_factorial
from fpmace.electrostatics.tables import numbers

Exponents = tuple[int, int, int]
Polynomial = dict[Exponents, float]

_SQRT3 = sqrt(3.0)

SOLID_HARMONICS: list[list[Polynomial]] = [
    [{(0, 0, 0): 1.0}],
    [{(0, 1, 0): 1.0}, {(0, 0, 1): 1.0}, {(1, 0, 0): 1.0}],
    [
        {(1, 1, 0): _SQRT3},
        {(0, 1, 1): _SQRT3},
        {(0, 0, 2): 1.0, (2, 0, 0): -0.5, (0, 2, 0): -0.5},
        {(1, 0, 1): _SQRT3},
        {(2, 0, 0): 0.5 * _SQRT3, (0, 2, 0): -0.5 * _SQRT3},
    ],
]


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """Product of two polynomials in x, y, z."""
    result: Polynomial = {}
    for ea, ca in a.items():
        for eb, cb in b.items():
            key = (ea[0] + eb[0], ea[1] + eb[1], ea[2] + eb[2])
            result[key] = result.get(key, 0.0) + ca * cb
    return {key: value for key, value in result.items() if value != 0.0}


def laplacian(a: Polynomial) -> Polynomial:
    """Laplacian of a polynomial in x, y, z."""
    result: Polynomial = {}
    for exponents, coefficient in a.items():
        for axis in range(3):
            power = exponents[axis]
            if power >= 2:
                key = tuple(e - 2 * (i == axis) for i, e in enumerate(exponents))
                result[key] = result.get(key, 0.0) + coefficient * power * (power - 1)  # type: ignore[index,arg-type]
    return {key: value for key, value in result.items() if abs(value) > 1e-12}


def monomials(vectors: Tensor, exponents: list[Exponents]) -> Tensor:
    """Evaluate x^a y^b z^c for each (a, b, c): [..., 3] -> [..., n_exponents]."""
    coordinates = vectors.unbind(-1)
    known: dict[Exponents, Tensor] = {(0, 0, 0): torch.ones_like(coordinates[0])}

    def value(key: Exponents) -> Tensor:
        if key not in known:
            axis = next(i for i in range(3) if key[i] > 0)
            lower = value(tuple(e - (i == axis) for i, e in enumerate(key)))  # type: ignore[arg-type]
            known[key] = lower * coordinates[axis] if sum(key) > 1 else coordinates[axis]
        return known[key]

    return torch.stack([value(key) for key in exponents], dim=-1)


@lru_cache(maxsize=16)
def _solid_table(max_l: int) -> tuple[list[Exponents], tuple[tuple[float, ...], ...]]:
    harmonics = [p for ell in range(max_l + 1) for p in SOLID_HARMONICS[ell]]
    exponents = sorted({key for p in harmonics for key in p})
    return exponents, tuple(tuple(p.get(key, 0.0) for p in harmonics) for key in exponents)


def solid_harmonics(vectors: Tensor, max_l: int) -> Tensor:
    """C_lm of vectors: [..., 3] -> [..., (max_l + 1)^2], polynomial and so smooth everywhere."""
    exponents, table = _solid_table(max_l)
    return monomials(vectors, exponents) @ numbers(table, vectors)


class PairTable:
    """C_a(grad) C_b(-grad) / (2 l_b - 1)!! on a radial function, for all components a and b.

    For a homogeneous polynomial P of degree n and a radial function f (E. W. Hobson, The Theory
    of Spherical and Ellipsoidal Harmonics, 1931, section 80),

        P(grad) f = sum_j 1/(2^j j!) (Laplacian^j P)(r) ((1/r) d/dr)^(n-j) f.

    A column is a monomial of r times f_order = (-(1/r) d/dr)^order f.

    Attributes:
        exponents: the distinct monomials.
        monomial, order: for each column its monomial and the order of its radial derivative.
        coefficients: [n_columns, n_a * n_b].
        max_order: highest order that occurs.
    """

    def __init__(self, max_l_a: int, max_l_b: int) -> None:
        n_a, n_b = (max_l_a + 1) ** 2, (max_l_b + 1) ** 2
        columns: dict[tuple[Exponents, int], list[float]] = {}
        for a, (l_a, p_a) in enumerate(_components(max_l_a)):
            for b, (l_b, p_b) in enumerate(_components(max_l_b)):
                polynomial = multiply(p_a, p_b)
                degree = l_a + l_b
                for j in range(min(l_a, l_b) + 1):
                    order = degree - j
                    sign = (-1) ** (order + l_b)
                    factor = sign / (2**j * factorial(j) * double_factorial(2 * l_b - 1))
                    for key, value in polynomial.items():
                        column = columns.setdefault((key, order), [0.0] * (n_a * n_b))
                        column[a * n_b + b] += factor * value
                    polynomial = laplacian(polynomial)
        keys = sorted(columns)
        self.exponents = sorted({key for key, _ in keys})
        self.monomial = tuple(self.exponents.index(key) for key, _ in keys)
        self.order = tuple(order for _, order in keys)
        self.coefficients = tuple(tuple(columns[key]) for key in keys)
        self.max_order = max(self.order)

    def matrix(self, like: Tensor) -> Tensor:
        """``coefficients`` in the precision and on the device of ``like``."""
        return numbers(self.coefficients, like)


@lru_cache(maxsize=16)
def pair_table(max_l_a: int, max_l_b: int) -> PairTable:
    """The (cached) :class:`PairTable` for components up to the given l."""
    return PairTable(max_l_a, max_l_b)


def _components(max_l: int) -> list[tuple[int, Polynomial]]:
    return [(ell, p) for ell in range(max_l + 1) for p in SOLID_HARMONICS[ell]]
