"""Checks of a configuration against the physics and the model; one line per failure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from ase.data import chemical_symbols

from fpmace.boundaries import boundary, cell_problem, flags_problem, pbc_class
from fpmace.data.configuration import Configuration
from fpmace.data.neighborhood import Array, edge_vectors
from fpmace.data.options import DataOptions
from fpmace.errors import DataError

_DEPENDENT = 1e-6
"""Smallest singular value of the unit cell vectors that counts as independent."""


def check_cell(config: Configuration) -> None:
    """Refuse a periodic direction without a cell vector, or linearly dependent ones.

    Raises:
        DataError: naming the direction.
    """
    lengths = np.linalg.norm(config.cell, axis=1)
    for axis, name in enumerate("abc"):
        if config.pbc[axis] and lengths[axis] == 0.0:
            raise DataError(
                f"{config.where}: pbc {pbc_class(config.pbc.tolist())} is periodic along {name},"
                f" but Lattice has no vector {name}; add it or set pbc to F there"
            )
    vectors = config.cell[config.pbc]
    if len(vectors) > 1:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        if np.linalg.svd(unit, compute_uv=False)[-1] < _DEPENDENT:
            raise DataError(
                f"{config.where}: Lattice: the periodic cell vectors are linearly dependent"
            )


def check_elements(config: Configuration, options: DataOptions) -> None:
    """Refuse an element that the model does not know."""
    numbers = set(config.atomic_numbers.tolist())
    if 0 in numbers:
        raise DataError(f"{config.where}: species: element X (atomic number 0) is not an element")
    if options.elements is None:
        return
    unknown = sorted(numbers - set(options.elements))
    if unknown:
        raise DataError(
            f"{config.where}: species: element {_symbols(unknown)} is not in the model"
            f" (it has {_symbols(options.elements)})"
        )


def check_density(config: Configuration, options: DataOptions) -> None:
    """Refuse a fully periodic box with suspiciously much volume per atom."""
    if not config.pbc.all() or options.allow_low_density_pbc:
        return
    volume = abs(float(np.linalg.det(config.cell))) / config.n_atoms
    limit = options.low_density_pbc_max_volume_per_atom
    if volume > limit:
        raise DataError(
            f"{config.where}: pbc TTT with {volume:.1f} A^3 per atom (limit {limit:g}) looks like"
            ' a molecule in a box: set pbc="F F F", raise low_density_pbc_max_volume_per_atom,'
            " or give allow_low_density_pbc"
        )


def check_overlap(
    config: Configuration, edge_index: Array, unit_shifts: Array, options: DataOptions
) -> None:
    """Refuse atoms, or an atom and an image, closer than ``min_distance``."""
    if edge_index.shape[1] == 0:
        return
    vectors = edge_vectors(config.positions, config.cell, edge_index, unit_shifts)
    lengths = np.linalg.norm(vectors, axis=1)
    worst = int(np.argmin(lengths))
    if lengths[worst] < options.min_distance:
        first, second = sorted(edge_index[:, worst].tolist())
        image = " (periodic image)" if unit_shifts[worst].any() else ""
        raise DataError(
            f"{config.where}: positions: atoms {first} and {second}{image} are"
            f" {lengths[worst]:.3f} A apart, closer than {options.min_distance:g} A"
        )


def pbc_problem(config: Configuration, method: str) -> str | None:
    """Why the electrostatic boundary ``method`` cannot take the configuration, or None.

    Flags and cell by the rules of :mod:`fpmace.boundaries`.
    """
    kind = boundary(method, config.pbc.tolist())
    problem = flags_problem(method, config.pbc.tolist())
    if problem is not None or kind is None:
        return problem
    return cell_problem(method, kind, config.cell.tolist())


def check_pbc_handling(config: Configuration, options: DataOptions) -> None:
    """Refuse a configuration that ``options.pbc_handling`` cannot take."""
    if options.pbc_handling is None:
        return
    problem = pbc_problem(config, options.pbc_handling)
    if problem is not None:
        raise DataError(f"{config.where}: {problem}")


def check_geometry(config: Configuration, options: DataOptions) -> None:
    """Run the checks that need no neighbour list; atoms read only for their energy pass."""
    check_elements(config, options)
    check_cell(config)
    if config.is_isolated_atom and not options.keep_isolated_atoms:
        return
    check_density(config, options)
    check_pbc_handling(config, options)


def _symbols(numbers: Iterable[int]) -> str:
    return ", ".join(chemical_symbols[int(number)] for number in numbers)
