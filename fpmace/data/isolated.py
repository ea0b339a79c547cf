"""Atomic energies from configurations of ``config_type=IsolatedAtom``."""

from __future__ import annotations

from ase.data import chemical_symbols

from fpmace.data.configuration import Configuration
from fpmace.errors import DataError


def add_isolated_energy(
    energies: dict[int, float], config: Configuration, tolerance: float = 1e-6
) -> None:
    """Put the energy of one free atom into ``energies`` (eV, by atomic number).

    An isolated atom without an energy is passed over.

    Raises:
        DataError: more than one atom, or another energy for the same element.
    """
    if config.n_atoms != 1:
        raise DataError(
            f"{config.where}: config_type=IsolatedAtom must have one atom, has {config.n_atoms};"
            " give it another config_type"
        )
    if "energy" not in config.properties:
        return
    number, energy = int(config.atomic_numbers[0]), float(config.properties["energy"])
    known = energies.setdefault(number, energy)
    if abs(known - energy) > tolerance:
        raise DataError(
            f"{config.where}: energy: IsolatedAtom {chemical_symbols[number]} has {energy} eV, but"
            f" an earlier one has {known} eV; keep the neutral atom of one method"
        )
