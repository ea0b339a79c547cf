"""Boundary conditions: what each method does with a structure, and which cells it takes.

One rule for data, electrostatics and calculators. A cell may differ from the shape that a boundary
assumes by :data:`SHAPE_TOLERANCE`: room for the strain of a stress or of a relaxation.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Literal

OPEN, PERIODIC, SLAB, MOLECULE = "open", "periodic", "slab", "molecule"
BOUNDARIES = (OPEN, PERIODIC, SLAB, MOLECULE)
"""How one structure is summed."""

SHAPE_TOLERANCE = 0.02
"""Largest relative deviation of a cell from flat (slab) or cubic (molecule in a box)."""
_FLAT = 1e-5

FFF, TTF, TTT = (False, False, False), (True, True, False), (True, True, True)
_FIXED = {"realspace": OPEN, "pbc": PERIODIC, "slab": SLAB, "molecule_in_box": MOLECULE}
_BY_FLAGS = {
    "mixed_periodic": {FFF: MOLECULE, TTF: SLAB, TTT: PERIODIC},
    "auto": {FFF: OPEN, TTF: SLAB, TTT: PERIODIC},
}
PbcMethod = Literal["realspace", "pbc", "slab", "molecule_in_box", "mixed_periodic", "auto"]
PBC_METHODS: tuple[str, ...] = typing.get_args(PbcMethod)

PBC_CLASSES: dict[str, tuple[str, ...]] = {
    "realspace": ("FFF",),
    "pbc": ("TTT", "FFF"),
    "slab": ("TTF",),
    "molecule_in_box": ("FFF",),
    "mixed_periodic": ("FFF", "TTF", "TTT"),
    "auto": ("FFF", "TTF", "TTT"),
}
"""Periodicity classes that each method takes from data; the sums of a fixed method ignore them."""

Rows = Sequence[Sequence[float]]


def boundaries_of(method: str) -> tuple[str, ...]:
    """The boundaries that a method can lead to."""
    return (_FIXED[method],) if method in _FIXED else tuple(_BY_FLAGS[method].values())


def boundary(method: str, pbc: Sequence[bool]) -> str | None:
    """How a structure is summed; None if the method has no answer for its flags.

    ``mixed_periodic`` sums flags that it does not know as periodic.
    """
    if method in _FIXED:
        return _FIXED[method]
    default = PERIODIC if method == "mixed_periodic" else None
    return _BY_FLAGS[method].get((bool(pbc[0]), bool(pbc[1]), bool(pbc[2])), default)


def pbc_class(pbc: Sequence[bool]) -> str:
    """``FFF``, ``TTF``, ``TTT``, ..."""
    return "".join("T" if flag else "F" for flag in pbc)


def flags_problem(method: str, pbc: Sequence[bool]) -> str | None:
    """Why a method does not suit the periodicity of a structure, or None."""
    kind, allowed = pbc_class(pbc), PBC_CLASSES[method]
    if kind in allowed:
        return None
    fitting = [name for name in PBC_METHODS if kind in PBC_CLASSES[name]]
    remedy = f"use {', '.join(fitting)}" if fitting else "use pbc F F F, T T F or T T T"
    return (
        f"pbc {kind} does not suit electrostatic_pbc_method '{method}' "
        f"(it takes {', '.join(allowed)}); {remedy}"
    )


def cell_problem(method: str, kind: str, cell: Rows) -> str | None:
    """Why a cell does not suit a boundary, or None.

    Args:
        method: electrostatic_pbc_method, for the message.
        kind: one of :data:`BOUNDARIES`.
        cell: rows are lattice vectors, Angstrom.
    """
    if kind == OPEN:
        return None
    gram = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in cell] for a in cell]
    lengths = [gram[i][i] ** 0.5 for i in range(3)]
    if not abs(_determinant(cell)) > _FLAT * lengths[0] * lengths[1] * lengths[2]:
        needs, remedy = "a cell with a volume", "give three cell vectors or use 'realspace'"
    elif kind == SLAB and not _is_flat(cell):
        needs = "a slab cell with a and b in the x,y plane and c along z"
        remedy = "rotate the structure or use 'pbc'"
    elif kind == MOLECULE and not _is_cubic(gram):
        needs, remedy = "a cubic box", "use a cubic Lattice or 'realspace'"
    else:
        return None
    rows = [[round(x, 4) for x in row] for row in cell]
    return f"electrostatic_pbc_method '{method}' needs {needs}, got Lattice {rows}; {remedy}"


def _is_flat(cell: Rows) -> bool:
    size = max(abs(x) for row in cell for x in row)
    tilt = max(abs(cell[0][2]), abs(cell[1][2]), abs(cell[2][0]), abs(cell[2][1]))
    return tilt <= SHAPE_TOLERANCE * size


def _is_cubic(gram: Rows) -> bool:
    square = (gram[0][0] + gram[1][1] + gram[2][2]) / 3.0
    off = max(abs(gram[i][j] - square * (i == j)) for i in range(3) for j in range(i + 1))
    return off <= 2.0 * SHAPE_TOLERANCE * square


def _determinant(rows: Rows) -> float:
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
