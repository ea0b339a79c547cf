"""Coupling of angular momenta: real 3j tensors in one fixed sign convention.

The sign of a 3j tensor is a convention, and libraries differ in it: e3nn 0.6 and e3nn 0.4.4 differ
for some with odd l1+l2+l3: (1,2,2), (1,3,3), (1,4,4), (3,4,6), ... and their permutations. A
product basis of correlation 3 multiplies 3j tensors with odd sums, so a trained MACE model means
something only together with the signs it was trained with. fpmace fixes the convention here
(:func:`wigner_3j`), whatever version of e3nn is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from math import comb, sqrt

import numpy as np
import torch
from e3nn import o3
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@cache
def wigner_3j(l1: int, l2: int, l3: int) -> FloatArray:
    """Real 3j tensor [2 l1+1, 2 l2+1, 2 l3+1] with unit Frobenius norm, signs as in e3nn 0.4.4.

    The sign rule, checked against e3nn 0.4.4 for all l up to 11: if l1+l2+l3 is even, the entry
    m1 = m2 = m3 = 0 is positive (so products of harmonics couple with a plus sign). If it is odd,
    the first non-zero entry of the tensor with ascending l is positive, and exchanging two of
    the l changes the sign. Axes follow the real harmonics m = -l .. l. The array is read-only.
    """
    degrees = (l1, l2, l3)
    order = sorted(range(3), key=lambda axis: degrees[axis])
    tensor = _ascending_3j(*(degrees[axis] for axis in order))
    tensor = tensor.transpose([order.index(axis) for axis in range(3)])
    is_odd_permutation = order in ([1, 0, 2], [0, 2, 1], [2, 1, 0])
    if sum(degrees) % 2 == 1 and is_odd_permutation:
        tensor = -tensor
    tensor.setflags(write=False)
    return tensor


@cache
def _ascending_3j(l1: int, l2: int, l3: int) -> FloatArray:
    """3j tensor for l1 <= l2 <= l3: magnitudes from e3nn, sign from the rule."""
    tensor = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()
    if (l1 + l2 + l3) % 2 == 0:
        reference = tensor[l1, l2, l3]
    else:
        reference = tensor.reshape(-1)[np.flatnonzero(np.abs(tensor) > 1e-9)[0]]
    return np.array(tensor if reference > 0 else -tensor)


@dataclass(frozen=True)
class Coupling:
    """Equivariant polynomials of one degree.

    ``B[M, k] = sum_t values[M, t, k] prod_{eta in monomials[t]} A[eta]``.

    Attributes:
        degree: number of factors.
        monomials: [n_terms, degree] component indices, ascending in each row; all distinct.
        values: [2L+1, n_terms, n_paths]; a term that vanishes for every M and k is left out.
    """

    degree: int
    monomials: NDArray[np.int64]
    values: FloatArray

    @property
    def n_paths(self) -> int:
        return self.values.shape[2]


def all_monomials(n_variables: int, degree: int) -> list[tuple[int, ...]]:
    """Every product of ``degree`` variables, as ascending index tuples."""
    return list(combinations_with_replacement(range(n_variables), degree))


@cache
def symmetric_coupling(max_ell: int, out_l: int, degree: int, reduced: bool = False) -> Coupling:
    """Couple ``degree`` copies of A (l = 0 .. max_ell, parity (-1)^l) to the irrep ``out_l``.

    Left-to-right coupling ((l1 l2)L12 l3)... with 3j tensors times sqrt(2L+1) at each step, all
    intermediate irreps kept; the paths k are listed in order of enumeration, stably sorted by
    irrep at each step. This is the (over-complete) basis of MACE, I. Batatia et al.,
    NeurIPS 2022, eq. 10, gathered over distinct monomials since the factors commute.

    Args:
        reduced: leave out each path that is a linear combination of those before it.
    """
    if reduced:
        whole = symmetric_coupling(max_ell, out_l, degree)
        kept = _independent(whole.values.reshape(-1, whole.n_paths))
        return Coupling(degree, whole.monomials, whole.values[:, :, kept])
    n_variables = (max_ell + 1) ** 2
    states = [
        _State(l, (-1) ** l, np.eye(n_variables)[l * l : (l + 1) ** 2])
        for l in range(max_ell + 1)  # noqa: E741
    ]
    for step in range(2, degree + 1):
        wanted = (out_l, (-1) ** out_l) if step == degree else None
        states = _couple_one_more(states, step, max_ell, wanted)
    chosen = [s.polynomial for s in states if (s.l, s.parity) == (out_l, (-1) ** out_l)]
    monomials = np.array(all_monomials(n_variables, degree), dtype=np.int64)
    if not chosen:
        empty = np.zeros((2 * out_l + 1, 0, 0))
        return Coupling(degree, monomials[:0], empty)
    values = np.stack(chosen, axis=-1)
    used = np.flatnonzero(np.abs(values).max(axis=(0, 2)) > 1e-12)
    return Coupling(degree, monomials[used], values[:, used])


def _independent(columns: FloatArray) -> list[int]:
    """The columns that are no linear combination of those before them, by Gram-Schmidt."""
    kept: list[int] = []
    directions = np.zeros((columns.shape[0], 0))
    for index, column in enumerate(columns.T):
        rest = column
        for _ in range(2):  # once more, against rounding
            rest = rest - directions @ (directions.T @ rest)
        size = np.linalg.norm(rest)
        if size > 1e-8:  # coefficients are of order one
            kept.append(index)
            directions = np.column_stack([directions, rest / size])
    return kept


@dataclass(frozen=True)
class _State:
    """A coupled irrep as homogeneous polynomials: ``polynomial`` [2l+1, n_monomials]."""

    l: int  # noqa: E741
    parity: int
    polynomial: FloatArray


def _couple_one_more(
    states: list[_State], degree: int, max_ell: int, wanted: tuple[int, int] | None
) -> list[_State]:
    n_variables = (max_ell + 1) ** 2
    raise_index = _raise_index(n_variables, degree - 1)
    n_monomials = comb(n_variables + degree - 1, degree)
    coupled: list[_State] = []
    for left in states:
        for l2 in range(max_ell + 1):
            parity = left.parity * (-1) ** l2
            for l3 in range(abs(left.l - l2), left.l + l2 + 1):
                if wanted is not None and (l3, parity) != wanted:
                    continue
                tensor = wigner_3j(left.l, l2, l3) * sqrt(2 * l3 + 1)
                terms = np.einsum("ijk,it->kjt", tensor, left.polynomial)
                polynomial = np.zeros((2 * l3 + 1, n_monomials))
                columns = raise_index[l2 * l2 : (l2 + 1) ** 2]
                for part, where in zip(terms.transpose(1, 0, 2), columns, strict=True):
                    polynomial[:, where] += part
                coupled.append(_State(l3, parity, polynomial))
    return sorted(coupled, key=lambda state: (state.l, state.parity))


@cache
def _raise_index(n_variables: int, degree: int) -> NDArray[np.int64]:
    """[n_variables, n_monomials(degree)]: the monomial of degree+1 got by one more factor."""
    index = {term: i for i, term in enumerate(all_monomials(n_variables, degree + 1))}
    return np.array(
        [
            [
                index[tuple(sorted((*term, variable)))]
                for term in all_monomials(n_variables, degree)
            ]
            for variable in range(n_variables)
        ],
        dtype=np.int64,
    )
