"""Options of the smallest models that still have every part."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "hidden_irreps": "4x0e+4x1o",
    "MLP_irreps": "4x0e",
    "max_ell": 1,
    "num_bessel": 4,
    "radial_MLP": [8],
    "correlation": 2,
    "r_max": 3.0,
}
"""Of the backbone."""

SMALL_FIXED_POINT: dict[str, Any] = {**SMALL, "kspace_cutoff_factor": 1.0}

ELEMENTS: dict[str, Any] = {"atomic_numbers": [1, 8], "atomic_energies": [-13.6, -430.0]}
"""Hydrogen and oxygen, eV."""
