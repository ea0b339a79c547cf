"""Bookkeeping of the symmetric contraction: which coefficient multiplies which monomial.

An equivariant polynomial is ``B_M(A) = sum_t c[M, t] A^t`` over multisets t of components. Its
gradient is ``J[M, a] = sum_t c[M, t] n_a(t) A^(t - a)``, with n_a(t) the number of times a occurs
in t, and by Euler's theorem ``B_M = sum_a A_a K[M, a]`` with K like J but every term divided by
its degree |t|. So one matrix product with the monomials ``P = A^(t - a)`` of lower degree gives B
and its gradient.

The real harmonics have definite parity under x -> -x, y -> -y and z -> -z. A term survives only if
the parities of M, a and the monomial agree, which cuts the matrix into eight blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray

from fpmace.blocks.coupling import Coupling, symmetric_coupling
from fpmace.blocks.harmonics import SphericalHarmonics

Term = tuple[int, ...]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Size of the block of one parity: pairs (M, a) by monomials, for J and again for K."""

    n_rows: int
    n_monomials: int


@dataclass(frozen=True, slots=True)
class ContractionPlan:
    """Structure of all polynomials L = 0 .. max_L of all degrees 1 .. correlation.

    Attributes:
        n_components: (max_ell + 1)^2.
        n_outputs: (max_L + 1)^2.
        terms: by (L, degree): flat indices of the non-zero (M, t) in the coupling's values.
        polynomials: all (M, t) in this order.
        factors: [correlation - 1, n_monomials] components, 0 = the constant 1, a + 1 = A_a.
        blocks: the parity blocks.
        source: [n_entries] for each block in turn, entries of J then of K, row by row: which
            term the entry takes (one past the last: zero).
        multiplier: [n_entries] what it is multiplied with.
        row_order: [n_outputs * n_components] where row (M, a) of J stands among the blocks' rows.
    """

    n_components: int
    n_outputs: int
    terms: dict[tuple[int, int], IntArray]
    polynomials: tuple[tuple[int, Term], ...]
    factors: IntArray
    blocks: tuple[Block, ...]
    source: IntArray
    multiplier: NDArray[np.float64]
    row_order: IntArray

    def __deepcopy__(self, memo: object) -> ContractionPlan:
        """Nothing in it changes: copies of a model share it."""
        return self


@cache
def contraction_plan(max_ell: int, max_L: int, correlation: int) -> ContractionPlan:
    """Work the structure out; see the module's docstring."""
    n_components, n_outputs = (max_ell + 1) ** 2, (max_L + 1) ** 2
    parity = _parities(max(max_ell, max_L))
    terms: dict[tuple[int, int], IntArray] = {}
    position: dict[tuple[int, Term], int] = {}
    for out_l in range(max_L + 1):
        for degree in range(1, correlation + 1):
            coupling = symmetric_coupling(max_ell, out_l, degree)
            terms[out_l, degree] = _number_terms(coupling, out_l, position)
    monomials = _monomials_by_parity(n_components, correlation, parity, position)
    blocks: list[Block] = []
    source: list[int] = []
    multiplier: list[float] = []
    row_order = np.zeros(n_outputs * n_components, dtype=np.int64)
    row = 0
    for cls in range(8):
        rows = [
            (m, a)
            for m in range(n_outputs)
            for a in range(n_components)
            if parity[m] ^ parity[a] == cls
        ]
        members = monomials[cls]
        for divide in (False, True):
            for m, a in rows:
                for monomial in members:
                    term = tuple(sorted((*monomial, a)))
                    source.append(position.get((m, term), len(position)))
                    multiplier.append(term.count(a) / (len(term) if divide else 1))
        for offset, (m, a) in enumerate(rows):
            row_order[m * n_components + a] = row + offset
        blocks.append(Block(len(rows), len(members)))
        row += len(rows)
    return ContractionPlan(
        n_components=n_components,
        n_outputs=n_outputs,
        terms=terms,
        polynomials=tuple(position),
        factors=_factor_table([item for group in monomials for item in group], correlation),
        blocks=tuple(blocks),
        source=np.array(source, dtype=np.int64),
        multiplier=np.array(multiplier, dtype=np.float64),
        row_order=row_order,
    )


def _parities(max_l: int) -> list[int]:
    """Bits for the sign change of each component under x -> -x, y -> -y, z -> -z."""
    harmonics = SphericalHarmonics(max_l)
    direction = torch.tensor([0.36, 0.48, 0.8], dtype=torch.float64)
    reference = harmonics(direction)
    bits = torch.zeros(reference.shape[-1], dtype=torch.int64)
    for axis in range(3):
        flipped = direction.clone()
        flipped[axis] = -flipped[axis]
        bits += (harmonics(flipped) * reference < 0).to(torch.int64) << axis
    return [int(value) for value in bits]


def _number_terms(
    coupling: Coupling, out_l: int, position: dict[tuple[int, Term], int]
) -> IntArray:
    """Give a number to each non-zero (M, t); return their flat indices in ``coupling.values``."""
    found: list[int] = []
    n_terms = len(coupling.monomials)
    for m in range(2 * out_l + 1):
        for t in range(n_terms):
            if np.abs(coupling.values[m, t]).max(initial=0.0) > 1e-12:
                term = tuple(int(value) for value in coupling.monomials[t])
                position[out_l * out_l + m, term] = len(position)
                found.append(m * n_terms + t)
    return np.array(found, dtype=np.int64)


def _monomials_by_parity(
    n_components: int, correlation: int, parity: list[int], position: dict[tuple[int, Term], int]
) -> list[list[Term]]:
    """Monomials t - a that occur, of degree below ``correlation``, sorted into eight classes."""
    needed = {term[:skip] + term[skip + 1 :] for _, term in position for skip in range(len(term))}
    classes: list[list[Term]] = [[] for _ in range(8)]
    for degree in range(correlation):
        for monomial in combinations_with_replacement(range(n_components), degree):
            if monomial in needed:
                bits = 0
                for component in monomial:
                    bits ^= parity[component]
                classes[bits].append(monomial)
    return classes


def _factor_table(monomials: list[Term], correlation: int) -> IntArray:
    width = max(correlation - 1, 1)
    table = np.zeros((width, len(monomials)), dtype=np.int64)
    for index, monomial in enumerate(monomials):
        for place, component in enumerate(monomial):
            table[place, index] = component + 1
    return table
