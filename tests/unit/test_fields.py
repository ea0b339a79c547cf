"""Potential and density on points, lines, planes and grids; cube files; plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io.cube import read_cube
from calculator_cases import affine_model, local_model, water_row
from scipy.special import erf

from fpmace.calculators import FixedPointSCF, GTOCoulombCalculator, MACECalculator
from fpmace.errors import ConfigError, DataError
from fpmace.observables.fields import ElectrostaticField
from fpmace.plots.fields import plot_lines, plot_slice
from fpmace.units import COULOMB_C

SIGMA = 1.2


def ion() -> ElectrostaticField:
    """A charge of 2 e in the open, in an external field along x."""
    return ElectrostaticField.from_multipoles(
        Atoms("Na", [[0.0, 0.0, 1.0]]),
        [2.0],
        smearing_width=SIGMA,
        external_field=(0.1, 0.0, 0.0),
    )


def test_gaussian_charge_in_the_open() -> None:
    field = ion()
    points = np.array([[[3.0, 0.0, 1.0], [0.0, 4.0, 1.0]]])
    r = np.array([[3.0, 4.0]])
    bare = 2.0 * COULOMB_C * erf(r / np.sqrt(2.0) / SIGMA) / r
    np.testing.assert_allclose(field.potential(points, external=False), bare, rtol=1e-10)
    np.testing.assert_allclose(field.potential(points), bare + 0.1 * points[..., 0], rtol=1e-10)
    gauss = 2.0 * np.exp(-0.5 * r**2 / SIGMA**2) / (2.0 * np.pi * SIGMA**2) ** 1.5
    np.testing.assert_allclose(field.density(points), gauss, rtol=1e-10)


@pytest.mark.parametrize(
    ("pbc", "handling"),
    [(False, "realspace"), (True, "pbc"), ((True, True, False), "slab"), (False, "auto")],
)
def test_the_density_integrates_to_the_charge(pbc: object, handling: str) -> None:
    atoms = Atoms("NaCl", [[5.0, 6.0, 7.0], [6.5, 6.0, 7.0]], cell=[13.0, 13.0, 13.0], pbc=pbc)
    multipoles = np.array([[1.0, 0.1, 0.0, -0.2], [-0.4, 0.0, 0.3, 0.0]])
    field = ElectrostaticField.from_multipoles(
        atoms, multipoles, smearing_width=0.9, pbc_handling=handling
    )
    grid = field.grid("density", (26, 26, 26))
    assert grid.values.mean() * 13.0**3 == pytest.approx(0.6, abs=1e-4)


def test_potential_of_a_slab_jumps_by_its_dipole() -> None:
    cell = [6.0, 7.0, 40.0]
    atoms = Atoms("NaCl", [[3.0, 3.0, 18.0], [3.0, 3.0, 22.0]], cell=cell, pbc=(True, True, False))
    field = ElectrostaticField.from_multipoles(atoms, [0.5, -0.5], smearing_width=1.0)
    profile = field.planar_average("potential", axis=2, n_points=80)
    dipole = 0.5 * (18.0 - 22.0)
    jump = profile.values[-8] - profile.values[8]
    assert jump == pytest.approx(4.0 * np.pi * COULOMB_C * dipole / 42.0, rel=1e-5)
    flat = profile.values[4:12]
    np.testing.assert_allclose(flat, flat[0], atol=5e-5)
    assert profile.distance[-1] == pytest.approx(40.0 * 79 / 80)


def test_lines_and_planes_hold_their_points() -> None:
    field = ion()
    line = field.line("potential", [0, 0, 0], [0, 0, 4.0], n_points=5)
    np.testing.assert_allclose(line.distance, np.arange(5.0))
    np.testing.assert_allclose(line.values, field.potential(line.points))
    plane = field.plane("density", [-1, -1, 1], [2, 0, 0], [0, 2, 0], shape=(3, 5))
    assert plane.points.shape == (3, 5, 3)
    assert plane.values.argmax() == 7
    assert plane.sides == (2.0, 2.0)
    np.testing.assert_allclose(plane.points[2, 4], [1, 1, 1])


def test_field_of_a_calculators_last_result() -> None:
    atoms = water_row(2)
    atoms.info["external_field"] = [0.0, 0.02, 0.0]
    atoms.calc = FixedPointSCF(affine_model())
    atoms.get_potential_energy()
    field = ElectrostaticField.from_calculator(atoms.calc)
    # At the atoms the potential of the smeared density, the atom's own included, plus the field.
    expected = atoms.calc.results["electrostatic_potentials"]
    np.testing.assert_allclose(field.potential(atoms.positions), expected, rtol=1e-8, atol=1e-10)
    salt = bulk("NaCl", "rocksalt", a=5.0)
    salt.arrays["multipoles"] = np.array([1.0, -1.0])
    salt.calc = GTOCoulombCalculator()
    salt.get_potential_energy()
    values = ElectrostaticField.from_calculator(salt.calc).potential(salt.positions)
    assert values[0] == pytest.approx(-values[1])


def test_cube_files_hold_the_grid(tmp_path: Path) -> None:
    salt = bulk("NaCl", "rocksalt", a=5.0, cubic=True)
    multipoles = np.where(salt.numbers == 11, 1.0, -1.0)
    field = ElectrostaticField.from_multipoles(salt, multipoles)
    path = tmp_path / "density.cube"
    field.write_cube(path, "density", (6, 7, 8))
    with path.open() as stream:
        content = read_cube(stream)
    assert content["data"].shape == (6, 7, 8)
    expected = field.grid("density", (6, 7, 8)).values
    np.testing.assert_allclose(content["data"], expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(content["atoms"].cell.array, salt.cell.array, atol=1e-4)


def test_cube_of_a_molecule_has_a_box_of_its_own(tmp_path: Path) -> None:
    field = ion()
    field.write_cube(tmp_path / "ion.cube", "potential", (4, 4, 4), margin=3.0)
    with (tmp_path / "ion.cube").open() as stream:
        content = read_cube(stream)
    np.testing.assert_allclose(np.diag(content["atoms"].cell.array), 6.0, atol=1e-4)
    np.testing.assert_allclose(content["origin"], [-3, -3, -2], atol=1e-4)


def test_plots_are_written(tmp_path: Path) -> None:
    field = ion()
    line = field.line("potential", [0, 0, 0], [0, 0, 4.0], n_points=9)
    plot_lines({"a": line, "b": line}, tmp_path / "line.png", label="V / V")
    plane = field.plane("potential", [-3, -3, 1], [6, 0, 0], [0, 6, 0], shape=(9, 9))
    plot_slice(plane, tmp_path / "slice.png", label="V / V")
    assert all((tmp_path / name).stat().st_size > 0 for name in ("line.png", "slice.png"))


def test_misuse_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="quantity: got 'charge', allowed: potential, density"):
        ion().line("charge", [0, 0, 0], [1, 0, 0])
    with pytest.raises(DataError, match=r"multipoles: have shape \(2, 1\), expected \(1, 1, 4"):
        ElectrostaticField.from_multipoles(Atoms("Na"), [1.0, 2.0])
    with pytest.raises(ConfigError, match="MACECalculator has no charge density"):
        ElectrostaticField.from_calculator(MACECalculator(local_model()))
    with pytest.raises(ConfigError, match="the calculator holds no result"):
        ElectrostaticField.from_calculator(FixedPointSCF(affine_model()))
