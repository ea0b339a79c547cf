"""The calculator of given multipoles: derivatives, point-charge limit, analytic results."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from calculator_cases import numerical_forces, numerical_stress
from matscipy.calculators.ewald import Ewald

from fpmace.calculators import GTOCoulombCalculator
from fpmace.errors import DataError
from fpmace.units import COULOMB_C


def salt() -> Atoms:
    """Eight displaced ions of rock salt with their charges."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    rng = np.random.default_rng(1)
    atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    atoms.arrays["charge"] = np.where(atoms.numbers == 11, 1.0, -1.0)
    return atoms


def test_point_charge_limit_is_ewald() -> None:
    atoms = salt()
    atoms.arrays["multipoles"] = atoms.arrays["charge"]
    reference = atoms.copy()
    reference.calc = Ewald()
    by_hand = {"alpha": 0.75, "nbk_c": [10, 10, 10]}
    reference.calc.set(accuracy=1e-10, cutoff=8.0, kspace=by_hand, verbose=False)
    atoms.calc = GTOCoulombCalculator(smearing_width=0.25, kspace_cutoff_factor=2.5)
    scale = COULOMB_C / 14.399645
    energy = scale * reference.get_potential_energy()
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-8)
    forces = scale * reference.get_forces()
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-6)
    stress = scale * reference.get_stress()
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=1e-7)


def test_madelung_energy_of_rock_salt() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.0)
    atoms.arrays["multipoles"] = np.array([1.0, -1.0])
    atoms.calc = GTOCoulombCalculator(smearing_width=0.25, kspace_cutoff_factor=2.5)
    expected = -1.7475645946 * COULOMB_C / 2.5
    assert atoms.get_potential_energy() == pytest.approx(expected, rel=1e-8)


def test_two_gaussian_charges_in_the_open() -> None:
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.0]])
    atoms.arrays["multipoles"] = np.array([1.0, -0.5])
    atoms.info["external_field"] = [0.0, 0.0, 0.1]
    atoms.calc = GTOCoulombCalculator(smearing_width=1.1)
    bare = -0.5 * COULOMB_C * erf(2.0 / (2.0 * 1.1)) / 2.0
    dipole = -0.5 * 2.0
    assert atoms.get_potential_energy() == pytest.approx(bare + 0.1 * dipole, abs=1e-10)
    np.testing.assert_allclose(atoms.get_dipole_moment(), [0, 0, dipole], atol=1e-12)
    np.testing.assert_allclose(atoms.get_charges(), [1.0, -0.5])


@pytest.mark.parametrize("columns", [4, 9])
@pytest.mark.parametrize("handling", ["realspace", "pbc", "slab"])
def test_forces_of_multipoles_are_the_slope(columns: int, handling: str) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.0)
    atoms.set_cell([4.0, 4.5, 12.0])
    atoms.pbc = {"realspace": False, "pbc": True, "slab": (True, True, False)}[handling]
    rng = np.random.default_rng(0)
    atoms.arrays["multipoles"] = 0.3 * rng.normal(size=(2, columns))
    atoms.calc = GTOCoulombCalculator(pbc_handling=handling, kspace_window=0.3)
    forces = atoms.get_forces()
    expected = numerical_forces(atoms, [(0, 0), (1, 2)])
    np.testing.assert_allclose([forces[0, 0], forces[1, 2]], expected, rtol=1e-6, atol=1e-9)
    if handling == "pbc":
        stress = atoms.get_stress()[[0, 3]]
        np.testing.assert_allclose(stress, numerical_stress(atoms), rtol=1e-6, atol=1e-11)
    else:
        with pytest.raises(PropertyNotImplementedError, match="three periodic directions"):
            atoms.get_stress()


def test_changed_multipoles_are_a_changed_calculation() -> None:
    atoms = salt()
    atoms.arrays["multipoles"] = atoms.arrays["charge"]
    atoms.calc = GTOCoulombCalculator()
    first = atoms.get_potential_energy()
    atoms.arrays["multipoles"] = 2.0 * atoms.arrays["charge"]
    assert atoms.get_potential_energy() == pytest.approx(4.0 * first)


def test_unusable_multipoles_are_one_clear_line() -> None:
    atoms = salt()
    atoms.calc = GTOCoulombCalculator(multipoles_key="charges")
    with pytest.raises(DataError, match=r"has no 'charges' .* did you mean 'charge'"):
        atoms.get_potential_energy()
    atoms.calc = GTOCoulombCalculator()
    atoms.arrays["multipoles"] = np.zeros((8, 3))
    with pytest.raises(DataError, match="expected 1, 4 or 9 numbers per atom"):
        atoms.get_potential_energy()
    atoms.arrays["multipoles"] = np.full(8, np.inf)
    with pytest.raises(DataError, match="not finite"):
        atoms.get_potential_energy()
    atoms.arrays["multipoles"] = np.zeros(8)
    atoms.calc = GTOCoulombCalculator(pbc_handling="realspace")
    with pytest.raises(DataError, match="pbc TTT does not suit electrostatic_pbc_method"):
        atoms.get_potential_energy()
