"""How far a recomputed reference number may be off."""

BACKBONE = {"energy": 1e-8, "interaction_energy": 1e-8, "contributions": 1e-8}
"""By quantity, absolute, eV."""

BACKBONE_OTHERS = 1e-7
"""Absolute: forces (eV/Angstrom), stress (eV/Angstrom^3) and all else."""

ELECTROSTATICS = 1e-8
"""Relative to the largest value of the quantity (at least 1e-3 in its unit)."""

ELECTROSTATICS_OPEN = 5e-2
ELECTROSTATICS_OPEN_PROBES = 0.15
"""The same for open boundaries: closed form here, a finite-difference scheme in the reference."""

FIXED_POINT_FORCES = 1e-6
FIXED_POINT = 1e-7
"""Relative to max(1, largest value)."""
