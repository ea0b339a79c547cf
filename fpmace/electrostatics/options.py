"""Settings of the electrostatics and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from fpmace.electrostatics.gaussian import MAX_L
from fpmace.errors import ConfigError, suggestion

PBC_METHODS = ("realspace", "pbc", "slab", "molecule_in_box", "mixed_periodic", "auto")


@dataclass(frozen=True)
class ElectrostaticsOptions:
    """Settings of :class:`~fpmace.electrostatics.gto.GTOElectrostatics`.

    Attributes:
        density_max_l: highest multipole of the density, 0 to 2.
        smearing_width: Gaussian width of the density in Angstrom.
        feature_max_l: highest l of the field features, 0 to 2.
        feature_widths: widths of the receiver Gaussians in Angstrom.
        kspace_cutoff_factor: scales the reciprocal-space cutoff.
        pbc_method: boundary condition; ``auto`` takes open boundaries for pbc FFF, the slab
            correction for TTF and plain periodic sums for TTT, graph by graph.
        include_energy_self_interaction: keep each multipole's energy in its own potential.
        include_field_self_interaction: keep each atom's own potential in its features.
        quadrupole_feature_corrections: in ``molecule_in_box`` corrections of the features, take
            the widths of source and receiver in the quadratic potential into account.
        kspace_window: 0 cuts the sum sharply at the cutoff k_c; a positive value lets vectors up
            to (1 + window) k_c in with a weight that falls smoothly to 0, so that the energy is
            smooth when the cell changes.

    Raises:
        ConfigError: for a value out of range.
    """

    density_max_l: int = 1
    smearing_width: float = 1.5
    feature_max_l: int = 1
    feature_widths: tuple[float, ...] = (1.5, 3.0)
    kspace_cutoff_factor: float = 1.5
    pbc_method: str = "pbc"
    include_energy_self_interaction: bool = False
    include_field_self_interaction: bool = False
    quadrupole_feature_corrections: bool = False
    kspace_window: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature_widths", tuple(float(w) for w in self.feature_widths))
        for name in ("density_max_l", "feature_max_l"):
            value = getattr(self, name)
            if value not in range(MAX_L + 1):
                raise ConfigError(f"electrostatics.{name}: must be 0 to {MAX_L}, got {value!r}")
        for name in ("smearing_width", "kspace_cutoff_factor"):
            _check_positive(name, getattr(self, name))
        if not self.feature_widths:
            raise ConfigError("electrostatics.feature_widths: needs at least one width, got none")
        for width in self.feature_widths:
            _check_positive("feature_widths", width)
        if not (isfinite(self.kspace_window) and self.kspace_window >= 0.0):
            raise ConfigError(
                f"electrostatics.kspace_window: must be 0 or more, got {self.kspace_window!r}"
            )
        if self.pbc_method not in PBC_METHODS:
            raise ConfigError(
                f"electrostatics.pbc_method: unknown {self.pbc_method!r}"
                f"{suggestion(str(self.pbc_method), PBC_METHODS)} "
                f"(one of {', '.join(PBC_METHODS)})"
            )


def _check_positive(name: str, value: float) -> None:
    if not (isfinite(value) and value > 0.0):
        raise ConfigError(f"electrostatics.{name}: must be a positive number, got {value!r}")
