"""The error tables that ``--error_table`` can name."""

from __future__ import annotations

from fpmace.metrics.errors import Column, ErrorTable
from fpmace.registry import register_error_table

_MILLI = 1000.0

_ENERGY = {
    ("atom", "rmse"): Column("RMSE E / meV/atom", "energy_per_atom", "rmse", _MILLI),
    ("atom", "mae"): Column("MAE E / meV/atom", "energy_per_atom", "mae", _MILLI),
    ("total", "rmse"): Column("RMSE E / meV", "energy", "rmse", _MILLI),
    ("total", "mae"): Column("MAE E / meV", "energy", "mae", _MILLI),
}
_FORCES = {
    "rmse": Column("RMSE F / meV/A", "forces", "rmse", _MILLI),
    "mae": Column("MAE F / meV/A", "forces", "mae", _MILLI),
}
_RELATIVE_FORCES = Column("relative F RMSE / %", "forces", "relative_rmse")
_STRESS = {
    "rmse": Column("RMSE stress / meV/A^3", "stress", "rmse", _MILLI),
    "mae": Column("MAE stress / meV/A^3", "stress", "mae", _MILLI),
}
_VIRIALS = {
    "rmse": Column("RMSE virials / meV/atom", "virials_per_atom", "rmse", _MILLI),
    "mae": Column("MAE virials / meV/atom", "virials_per_atom", "mae", _MILLI),
}
_CHARGES = {
    "rmse": Column("RMSE charge / me", "charges", "rmse", _MILLI),
    "mae": Column("MAE charge / me", "charges", "mae", _MILLI),
}
_ATOMIC_DIPOLES = {
    "rmse": Column("RMSE atomic dipole / me A", "atomic_dipoles", "rmse", _MILLI),
    "mae": Column("MAE atomic dipole / me A", "atomic_dipoles", "mae", _MILLI),
}
_DIPOLE = {
    "rmse": Column("RMSE dipole / me A/atom", "dipole_per_atom", "rmse", _MILLI),
    "mae": Column("MAE dipole / me A/atom", "dipole_per_atom", "mae", _MILLI),
}
_TOTAL_CHARGE = Column("RMSE total charge / me", "total_charge", "rmse", _MILLI)
_FERMI = Column("RMSE Fermi level / meV", "fermi_level", "rmse", _MILLI)
_POLARIZABILITY = Column(
    "RMSE polarizability / me A^2/V/atom", "polarizability_per_atom", "rmse", _MILLI
)

RESPONSE_COLUMNS = (
    Column("RMSE alpha / e A^2/V", "polarizability"),
    Column("relative alpha / %", "polarizability", "relative_rmse"),
    Column("RMSE alpha, pairs / e A^2/V", "pair_polarizability"),
    Column("relative alpha, pairs / %", "pair_polarizability", "relative_rmse"),
    Column("RMSE Born charge / me", "born_charges", "rmse", _MILLI),
    _FERMI,
    Column("RMSE spin / 1e-3", "spins", "rmse", _MILLI),
)
"""Shown below any table where the data has the labels.

``alpha`` is all nine components of the polarizability, ``alpha, pairs`` its component along the
field from the dipoles of the same geometry without and with a field. Percentages are of the root
mean square of the labels.
"""


@register_error_table("PerAtomRMSE")
class PerAtomRMSE(ErrorTable):
    """Energy per atom and forces, root mean square."""

    def columns(self) -> tuple[Column, ...]:
        return (_ENERGY["atom", "rmse"], _FORCES["rmse"], _RELATIVE_FORCES)


@register_error_table("TotalRMSE")
class TotalRMSE(ErrorTable):
    """Total energy and forces, root mean square."""

    def columns(self) -> tuple[Column, ...]:
        return (_ENERGY["total", "rmse"], _FORCES["rmse"], _RELATIVE_FORCES)


@register_error_table("PerAtomMAE")
class PerAtomMAE(ErrorTable):
    """Energy per atom and forces, mean absolute."""

    def columns(self) -> tuple[Column, ...]:
        return (_ENERGY["atom", "mae"], _FORCES["mae"], _RELATIVE_FORCES)


@register_error_table("TotalMAE")
class TotalMAE(ErrorTable):
    """Total energy and forces, mean absolute."""

    def columns(self) -> tuple[Column, ...]:
        return (_ENERGY["total", "mae"], _FORCES["mae"], _RELATIVE_FORCES)


@register_error_table("PerAtomRMSEstressvirials")
class PerAtomRMSEStressVirials(ErrorTable):
    """Energy per atom, forces, stress and virials, root mean square."""

    def columns(self) -> tuple[Column, ...]:
        return (
            _ENERGY["atom", "rmse"],
            _FORCES["rmse"],
            _RELATIVE_FORCES,
            _STRESS["rmse"],
            _VIRIALS["rmse"],
        )


@register_error_table("PerAtomMAEstressvirials")
class PerAtomMAEStressVirials(ErrorTable):
    """Energy per atom, forces, stress and virials, mean absolute."""

    def columns(self) -> tuple[Column, ...]:
        return (
            _ENERGY["atom", "mae"],
            _FORCES["mae"],
            _RELATIVE_FORCES,
            _STRESS["mae"],
            _VIRIALS["mae"],
        )


@register_error_table("EnergyDensityDipoleRMSE")
class EnergyDensityDipoleRMSE(ErrorTable):
    """Energy, forces, atomic multipoles and dipole, root mean square."""

    def columns(self) -> tuple[Column, ...]:
        return (
            _ENERGY["atom", "rmse"],
            _FORCES["rmse"],
            _RELATIVE_FORCES,
            _CHARGES["rmse"],
            _ATOMIC_DIPOLES["rmse"],
            _DIPOLE["rmse"],
        )


@register_error_table("EnergyDensityDipoleMAE")
class EnergyDensityDipoleMAE(ErrorTable):
    """Energy, forces, atomic multipoles and dipole, mean absolute."""

    def columns(self) -> tuple[Column, ...]:
        return (
            _ENERGY["atom", "mae"],
            _FORCES["mae"],
            _RELATIVE_FORCES,
            _CHARGES["mae"],
            _ATOMIC_DIPOLES["mae"],
            _DIPOLE["mae"],
        )


@register_error_table("DensityDipoleRMSE")
class DensityDipoleRMSE(ErrorTable):
    """Atomic multipoles, total charge, dipole and Fermi level, root mean square."""

    def columns(self) -> tuple[Column, ...]:
        return (
            _CHARGES["rmse"],
            _ATOMIC_DIPOLES["rmse"],
            _TOTAL_CHARGE,
            _DIPOLE["rmse"],
            _FERMI,
        )


@register_error_table("DipoleRMSE")
class DipoleRMSE(ErrorTable):
    """Dipole per atom, root mean square."""

    def columns(self) -> tuple[Column, ...]:
        return (_DIPOLE["rmse"],)


@register_error_table("DipoleMAE")
class DipoleMAE(ErrorTable):
    """Dipole per atom, mean absolute."""

    def columns(self) -> tuple[Column, ...]:
        return (_DIPOLE["mae"],)


@register_error_table("EnergyChargesRMSE")
class EnergyChargesRMSE(ErrorTable):
    """Energy per atom, forces and atomic charges, root mean square."""

    def columns(self) -> tuple[Column, ...]:
        return (_ENERGY["atom", "rmse"], _FORCES["rmse"], _CHARGES["rmse"])


@register_error_table("EnergyDipoleRMSE")
class EnergyDipoleRMSE(ErrorTable):
    """Energy per atom, forces and dipole, root mean square."""

    def columns(self) -> tuple[Column, ...]:
        return (_ENERGY["atom", "rmse"], _FORCES["rmse"], _DIPOLE["rmse"])


@register_error_table("PolarizabilityDipoleRMSE")
class PolarizabilityDipoleRMSE(ErrorTable):
    """Polarizability and dipole per atom, root mean square."""

    def columns(self) -> tuple[Column, ...]:
        return (_POLARIZABILITY, _DIPOLE["rmse"])
