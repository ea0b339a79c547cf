"""Product-basis weights of a foreign model, expressed in the coupling basis of fpmace.

The weights of a symmetric contraction multiply polynomials of the atomic basis that the array U
defines, and the file contains U. Codes differ in these polynomials: fpmace takes all left-to-right
couplings (an over-complete set); "reduced" bases keep a linearly independent set, and the signs
of 3j tensors differ between versions. Since the factors commute, only the part of U that is
symmetric in them counts; if that of the file is a linear combination of fpmace's, weights carry
over exactly: ``U_file = U X`` gives ``W = X W_file``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fpmace.blocks.coupling import Coupling, all_monomials, symmetric_coupling
from fpmace.errors import ModelFileError

FloatArray = NDArray[np.float64]
TOLERANCE = 1e-5
"""On coefficients of order one; those of a float32 file are off by 1e-7."""


def to_own_basis(
    state: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Re-express the weights of all symmetric contractions that use another basis.

    Args:
        state: of the foreign model, with its arrays U.
        where: the file, for messages.

    Returns:
        The state with the weights replaced, and a note for each replaced entry.

    Raises:
        ModelFileError: if an array U is missing or spans polynomials that fpmace does not have.
    """
    result, notes = dict(state), {}
    for prefix, out_l, correlation in _contractions(state):
        for degree in range(1, correlation + 1):
            name, key = _weight_name(prefix, degree, correlation), f"{prefix}U_matrix_{degree}"
            weight = state.get(name)
            if weight is None or weight.numel() == 0:
                continue
            if key not in state:
                raise ModelFileError(
                    f"{where}: '{key}' is missing, so the meaning of '{name}' is not known"
                )
            change = _change_of_basis(state[key], out_l, degree, f"{where}: '{key}'")
            if change is not None:
                result[name] = _transform(change, weight, where, name)
                notes[name] = f"{change.shape[1]} polynomials as {change.shape[0]} of fpmace"
                if change.shape[0] == 0:
                    notes[name] = "multiplies no polynomial"
    return result, notes


def _contractions(state: Mapping[str, Tensor]) -> list[tuple[str, int, int]]:
    """Prefix, output degree and correlation of each symmetric contraction."""
    found = []
    for name in state:
        match = re.fullmatch(r"(.*\bcontractions\.(\d+)\.)weights_max", name)
        if match:
            lower = re.compile(re.escape(match[1]) + r"weights\.\d+")
            n_lower = sum(lower.fullmatch(other) is not None for other in state)
            found.append((match[1], int(match[2]), n_lower + 1))
    return found


def _weight_name(prefix: str, degree: int, correlation: int) -> str:
    if degree == correlation:
        return f"{prefix}weights_max"
    return f"{prefix}weights.{correlation - 1 - degree}"


def _own_coupling(u_array: Tensor, out_l: int, degree: int, where: str) -> Coupling:
    """The coupling of fpmace for the number of variables that U has.

    U is [n_variables, ..., n_paths] for scalars, [2L+1, n_variables, ..., n_paths] else.
    """
    shape = tuple(u_array.shape)
    n_variables = shape[-2] if len(shape) > 1 else 0
    max_ell = isqrt(max(n_variables, 1)) - 1
    expected = ((2 * out_l + 1,) if out_l > 0 else ()) + (n_variables,) * degree
    if shape[:-1] != expected or (max_ell + 1) ** 2 != n_variables:
        raise ModelFileError(f"{where} has the unexpected shape {list(shape)}")
    return symmetric_coupling(max_ell, out_l, degree)


def _change_of_basis(u_array: Tensor, out_l: int, degree: int, where: str) -> Tensor | None:
    """X with ``U_file = U X`` on symmetric tensors; None if the two are the same."""
    coupling = _own_coupling(u_array, out_l, degree, where)
    given = _folded(u_array, coupling, where)
    if coupling.n_paths == 0:
        return torch.zeros(0, given.shape[1], dtype=torch.float64)
    own = coupling.values.reshape(-1, coupling.n_paths)
    if given.shape == own.shape and np.abs(given - own).max(initial=0.0) < TOLERANCE:
        return None
    solution = np.linalg.lstsq(own, given, rcond=1e-9)[0]
    error = np.abs(own @ solution - given).max(initial=0.0)
    if error > TOLERANCE:
        raise ModelFileError(
            f"{where} spans other polynomials than those of fpmace (off by {error:.1e}); not "
            "supported"
        )
    return torch.from_numpy(solution)


def _folded(u_array: Tensor, coupling: Coupling, where: str) -> FloatArray:
    """Symmetric part of U as [(2L+1) n_terms, n_paths], gathered over distinct monomials."""
    dim, degree = coupling.values.shape[0], coupling.degree
    n_variables, n_paths = u_array.shape[-2:]
    values = u_array.detach().to(torch.float64).numpy()
    folded = np.zeros((len(all_monomials(n_variables, degree)), dim * n_paths))
    rows = values.reshape(dim, n_variables**degree, n_paths).transpose(1, 0, 2)
    np.add.at(
        folded, _monomial_of_entry(n_variables, degree), rows.reshape(len(rows), dim * n_paths)
    )
    index = {term: i for i, term in enumerate(all_monomials(n_variables, degree))}
    terms = [index.get(tuple(term), -1) for term in coupling.monomials.tolist()]
    used = np.array(terms, dtype=np.int64)
    if -1 in used or np.abs(np.delete(folded, used, axis=0)).max(initial=0.0) > TOLERANCE:
        raise ModelFileError(f"{where} has polynomials that fpmace does not have")
    return (
        folded[used]
        .reshape(len(used), dim, n_paths)
        .transpose(1, 0, 2)
        .reshape(dim * len(used), n_paths)
    )


@cache
def _monomial_of_entry(n_variables: int, degree: int) -> NDArray[np.int64]:
    """For each entry of a dense tensor (flat), the monomial that it belongs to."""
    index = {term: i for i, term in enumerate(all_monomials(n_variables, degree))}
    grid = np.indices((n_variables,) * degree).reshape(degree, -1).T
    return np.array([index[tuple(sorted(term))] for term in grid.tolist()], dtype=np.int64)


def _transform(change: Tensor, weight: Tensor, where: str, name: str) -> Tensor:
    if weight.dim() != 3 or weight.shape[1] != change.shape[1]:
        raise ModelFileError(
            f"{where}: '{name}' has shape {list(weight.shape)}, its polynomials are "
            f"{change.shape[1]}"
        )
    return torch.einsum("kp,zpu->zku", change, weight.to(change.dtype))
