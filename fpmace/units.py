"""Units: e, eV, Angstrom, V. The Coulomb constants are defined here and nowhere else."""

from math import pi

VACUUM_PERMITTIVITY = 5.526349406e-3
"""eps_0 in e/(V Angstrom)."""

COULOMB_K = 1.0 / VACUUM_PERMITTIVITY
"""1/eps_0 in eV Angstrom / e^2; the reciprocal-space potential of a charge is K / k^2."""

COULOMB_C = COULOMB_K / (4.0 * pi)
"""1/(4 pi eps_0) in eV Angstrom / e^2; the potential of a point charge is C / r."""

MADELUNG_CUBIC = 2.837297
"""Madelung constant of a point charge in a cubic box with a neutralising background."""
