"""ASE calculators of models: results, derivatives, kinds of model, batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from calculator_cases import (
    affine_model,
    gentle_model,
    local_model,
    numerical_forces,
    numerical_stress,
    water_row,
)

from fpmace.calculators import FixedPointSCF, FixedPointSCFCalculator, MACECalculator
from fpmace.errors import ConfigError, DataError, ModelFileError, ScfError
from fpmace.models.io import save_model

TIGHT = {"scf_tolerance": 1e-11, "charge_tolerance": 1e-10}


def test_results_have_ase_names_and_agree_with_each_other() -> None:
    atoms = water_row(3)
    atoms.info["total_charge"] = 1.0
    atoms.calc = FixedPointSCFCalculator(affine_model(), scf_options=TIGHT)
    energy = atoms.get_potential_energy()
    results = atoms.calc.results
    assert results["free_energy"] == energy
    assert atoms.get_charges().sum() == pytest.approx(1.0, abs=1e-9)
    density = results["density_coefficients"]
    assert density.shape == (9, 4)
    expected = atoms.get_charges() @ atoms.positions + density[:, [3, 1, 2]].sum(0)
    np.testing.assert_allclose(atoms.get_dipole_moment(), expected, atol=1e-10)
    assert results["scf_converged"]
    assert results["num_scf_steps"] == len(results["convergence_history"]["density_change"])
    for name in ("fermi_level", "electrostatic_energy", "electron_energy", "total_charge"):
        assert isinstance(results[name], float)
    assert results["electrostatic_features"].shape == (9, 8)
    assert results["electrostatic_potentials"].shape == (9,)
    assert "full_scf_history" not in results
    assert FixedPointSCF is FixedPointSCFCalculator


@pytest.mark.parametrize(
    ("pbc", "handling", "field"),
    [
        (False, "realspace", True),
        ((True, True, False), "slab", False),
        (True, "pbc", False),
        (False, "molecule_in_box", False),
    ],
)
def test_forces_are_the_slope_of_the_energy(pbc: object, handling: str, field: bool) -> None:
    atoms = water_row(2, pbc=pbc)
    if handling == "molecule_in_box":
        atoms.set_cell([12.0, 12.0, 12.0])
    if pbc == (True, True, False):
        atoms.set_cell([6.2, 6.2, 18.0])
    if field:
        atoms.info["external_field"] = [0.01, -0.02, 0.03]
    atoms.calc = FixedPointSCF(affine_model(), pbc_handling=handling, scf_options=TIGHT)
    forces = atoms.get_forces()
    probes = [(0, 0), (4, 2)]
    expected = numerical_forces(atoms, probes)
    found = np.array([forces[atom, axis] for atom, axis in probes])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_stress_is_the_slope_of_the_energy() -> None:
    atoms = water_row(2, pbc=True)
    atoms.calc = FixedPointSCF(affine_model(), scf_options=TIGHT)
    stress = atoms.get_stress()
    np.testing.assert_allclose(stress[[0, 3]], numerical_stress(atoms), rtol=1e-6, atol=1e-10)


def test_energy_along_a_strain_path_is_the_integral_of_the_stress() -> None:
    """Lattice vectors enter the reciprocal-space sum on the way; the energy does not jump."""
    start = water_row(1, pbc=True)
    start.set_cell([5.0, 5.0, 5.0])
    calc = FixedPointSCF(affine_model(), scf_options=TIGHT)
    work, energies = [], []
    strains = np.linspace(0.0, 0.04, 9)
    for strain in strains:
        atoms = start.copy()
        atoms.set_cell(start.cell.array * (1.0 + strain), scale_atoms=True)
        atoms.calc = calc
        energies.append(atoms.get_potential_energy())
        pressure = atoms.get_stress()[:3].sum()
        work.append(pressure * atoms.get_volume() / (1.0 + strain))
    step = strains[1]
    weights = np.array([1, 4, 2, 4, 2, 4, 2, 4, 1]) * step / 3.0
    assert weights @ work == pytest.approx(energies[-1] - energies[0], rel=1e-4)


def test_default_dtype_of_torch_plays_no_part() -> None:
    atoms = water_row(2, pbc=True)
    expected = FixedPointSCF(affine_model()).get_property("stress", atoms)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        found = FixedPointSCF(affine_model()).get_property("stress", atoms)
    finally:
        torch.set_default_dtype(before)
    np.testing.assert_array_equal(found, expected)


def test_stress_exists_only_with_three_periodic_directions() -> None:
    atoms = water_row(1)
    atoms.calc = FixedPointSCF(affine_model())
    with pytest.raises(PropertyNotImplementedError, match=r"three periodic directions.*FFF"):
        atoms.get_stress()
    assert atoms.get_forces().shape == (3, 3)


def test_a_property_asked_for_once_comes_along() -> None:
    atoms = water_row(1, pbc=True)
    calc = atoms.calc = FixedPointSCF(affine_model())
    atoms.get_stress()
    atoms.positions += 0.01
    atoms.get_potential_energy()
    assert {"forces", "stress"} <= set(calc.results)


def test_constant_fermi_level_lets_the_charge_follow() -> None:
    atoms = water_row(2)
    options = {**TIGHT, "constant_charge": False}
    atoms.calc = FixedPointSCF(affine_model(), scf_options=options)
    with pytest.raises(DataError, match=r"no Fermi level to hold; set .*initial_fermi_level"):
        atoms.get_charges()
    atoms.info["initial_fermi_level"] = 0.0
    first = atoms.get_charges().sum()
    atoms.info["initial_fermi_level"] = 0.3
    second = atoms.get_charges().sum()
    assert atoms.calc.results["fermi_level"] == 0.3
    assert abs(second - first) > 1e-6
    options["initial_fermi_level"] = 0.3
    again = FixedPointSCF(affine_model(), scf_options=options)
    assert again.get_property("charges", water_row(2)).sum() == pytest.approx(second, abs=1e-9)


def test_changed_info_is_a_changed_calculation() -> None:
    atoms = water_row(2)
    atoms.calc = FixedPointSCF(affine_model(), scf_options=TIGHT)
    neutral = atoms.get_potential_energy()
    assert not atoms.calc.check_state(atoms)
    atoms.info["total_charge"] = -1.0
    charged = atoms.get_potential_energy()
    atoms.info["external_field"] = [0.05, 0.0, 0.0]
    assert len({neutral, charged, atoms.get_potential_energy()}) == 3


def test_batches_give_what_single_calls_give() -> None:
    structures = [water_row(1), water_row(2), water_row(1, pbc=True), water_row(3)]
    structures[1].info["total_charge"] = 1.0
    calc = FixedPointSCF(affine_model(), scf_options=TIGHT, restart="none")
    together = calc.evaluate(structures, batch_size=3, properties=("energy", "forces", "stress"))
    assert ["stress" in item for item in together] == [False, False, True, False]
    for atoms, results in zip(structures, together, strict=True):
        atoms.calc = calc
        assert results["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(results["forces"], atoms.get_forces(), atol=1e-8)
        assert results["scf_converged"]


def test_full_history_starts_with_the_start() -> None:
    atoms = water_row(1)
    options = {"history": "full_history", "solver": "anderson"}
    atoms.calc = FixedPointSCF(affine_model(), scf_options=options)
    atoms.get_potential_energy()
    history = atoms.calc.results["full_scf_history"]
    steps = atoms.calc.results["num_scf_steps"]
    assert history["densities"].shape == (steps + 1, 3, 4)
    assert history["fermi_levels"].shape == (steps + 1,)
    np.testing.assert_allclose(
        history["densities"][-1], atoms.calc.results["density_coefficients"], atol=1e-5
    )


def test_initial_density_is_read_when_asked_for() -> None:
    atoms = water_row(1)
    options = {**TIGHT, "initial_density": "from_data"}
    calc = FixedPointSCF(affine_model(), scf_options=options, density_key="start")
    with pytest.raises(DataError, match=r"atoms.arrays has no 'start'"):
        calc.get_property("energy", atoms)
    first = FixedPointSCF(affine_model(), scf_options=TIGHT)
    first.get_property("energy", atoms)
    atoms.arrays["start"] = first.results["density_coefficients"]
    atoms.info["initial_fermi_level"] = first.results["fermi_level"]
    calc.get_property("energy", atoms)
    assert calc.results["num_map_evaluations"] == 1


@pytest.mark.parametrize("constant_charge", [True, False])
def test_polarizability_is_the_response_of_the_dipole(constant_charge: bool) -> None:
    atoms = water_row(1)
    options = {**TIGHT, "constant_charge": constant_charge}
    atoms.calc = calc = FixedPointSCF(affine_model(), scf_options=options)
    atoms.info["initial_fermi_level"] = 0.1
    found = calc.response(["polarizability"], atoms).polarizability
    assert found is not None
    dipoles = []
    for field in (0.001, -0.001):
        # The physical field is minus external_field.
        atoms.info["external_field"] = [0.0, -field, 0.0]
        dipoles.append(atoms.get_dipole_moment())
    expected = (dipoles[0] - dipoles[1]) / 0.002
    np.testing.assert_allclose(found[0, :, 1].numpy(), expected, rtol=1e-5, atol=1e-8)


def test_a_calculator_without_a_structure_has_no_response() -> None:
    with pytest.raises(ConfigError, match="response: give a structure"):
        FixedPointSCF(affine_model()).response(["polarizability"])


def test_float32_is_close_to_float64() -> None:
    atoms = water_row(2)
    double = FixedPointSCF(affine_model(), scf_options={"scf_tolerance": 1e-5})
    single = FixedPointSCF(affine_model(), dtype="float32", scf_options={"scf_tolerance": 1e-5})
    expected = double.get_property("forces", atoms)
    found = single.get_property("forces", atoms)
    np.testing.assert_allclose(found, expected, atol=2e-3 * abs(expected).max())


def test_local_model_has_its_calculator(tmp_path: Path) -> None:
    atoms = water_row(2, pbc=True)
    path = tmp_path / "mace.model"
    save_model(path, local_model())
    atoms.calc = MACECalculator(path)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(
        atoms.get_stress()[[0, 3]], numerical_stress(atoms), rtol=1e-6, atol=1e-10
    )
    with pytest.raises(PropertyNotImplementedError, match="dipole property not implemented"):
        atoms.get_dipole_moment()


def test_model_of_another_kind_is_one_clear_line(tmp_path: Path) -> None:
    local, fixed = tmp_path / "mace.model", tmp_path / "fixed.model"
    save_model(local, local_model())
    save_model(fixed, affine_model())
    with pytest.raises(ModelFileError, match=r"mace.model: is a ScaleShiftMACE .* MACECalculator"):
        FixedPointSCF(local)
    with pytest.raises(ModelFileError, match=r"fixed.model: .* use FixedPointSCFCalculator"):
        MACECalculator(fixed)
    with pytest.raises(ModelFileError, match="no such file"):
        FixedPointSCF(tmp_path / "absent.model")
    (tmp_path / "text.model").write_text("hello")
    with pytest.raises(ModelFileError, match="is damaged or not a file of fpmace"):
        FixedPointSCF(tmp_path / "text.model")


def test_bad_options_are_one_clear_line() -> None:
    model = affine_model()
    with pytest.raises(ConfigError, match="device: 'gpu' is not a device"):
        FixedPointSCF(model, device="gpu")
    with pytest.raises(ConfigError, match="device: 'cuda:99' is not available"):
        FixedPointSCF(model, device="cuda:99")
    with pytest.raises(ConfigError, match=r"dtype: got 'float16', allowed: float32, float64"):
        FixedPointSCF(model, dtype="float16")
    with pytest.raises(ConfigError, match=r"pbc_handling: .*got 'slap'; did you mean 'slab'"):
        FixedPointSCF(model, pbc_handling="slap")
    with pytest.raises(ConfigError, match=r"scf_options.tolerance: no SCF setting 'tolerance'"):
        FixedPointSCF(model, scf_options={"tolerance": 1e-3})
    with pytest.raises(ConfigError, match="restart: got 'always', allowed: extrapolate"):
        FixedPointSCF(model, restart="always")
    with pytest.raises(ConfigError, match="skin: must be 0 or more"):
        FixedPointSCF(model, skin=-1.0)


def test_bad_structures_are_one_clear_line() -> None:
    calc = FixedPointSCF(affine_model(), charge_key="Q")
    atoms = water_row(1)
    atoms.info["q"] = 1
    with pytest.raises(DataError, match=r"info has no 'Q' \(total_charge\); did you mean 'q'"):
        calc.get_property("energy", atoms)
    calc = FixedPointSCF(affine_model())
    atoms = water_row(1)
    atoms.positions[1, 2] = np.nan
    with pytest.raises(DataError, match="positions: atom 1 has a coordinate that is not finite"):
        calc.get_property("energy", atoms)
    atoms = water_row(1)
    atoms.numbers[0] = 16
    with pytest.raises(DataError, match=r"element S is not in the model \(it has H, O\)"):
        calc.get_property("energy", atoms)
    atoms = water_row(1)
    atoms.pbc = True
    with pytest.raises(DataError, match="periodic along a, but Lattice has no vector a"):
        calc.get_property("energy", atoms)
    atoms = water_row(1)
    atoms.info["external_field"] = 0.1
    with pytest.raises(DataError, match="has 1 numbers, expected 3"):
        calc.get_property("energy", atoms)
    atoms = water_row(1)
    atoms.numbers[0] = 16
    with pytest.raises(DataError, match="structures: configuration 1: species: element S"):
        calc.evaluate([water_row(1), atoms])
    slab = FixedPointSCF(affine_model(), pbc_handling="slab")
    with pytest.raises(DataError, match="pbc FFF does not suit electrostatic_pbc_method 'slab'"):
        slab.get_property("energy", water_row(1))


def test_running_out_of_steps_warns_or_raises() -> None:
    short = {"num_scf_steps": 3, "scf_tolerance": 1e-12, "solver": "linear"}
    atoms = water_row(2)
    with pytest.warns(RuntimeWarning, match=r"max_steps after 2 .*changes of the last"):
        FixedPointSCF(gentle_model(), scf_options=short).get_property("energy", atoms)
    with pytest.raises(ScfError, match="raise num_scf_steps or scf_tolerance"):
        FixedPointSCF(gentle_model(), scf_options={**short, "on_failure": "raise"}).get_property(
            "energy", atoms
        )


def test_diagnostics_tell_the_eigenvalues_of_the_map() -> None:
    calc = FixedPointSCF(affine_model(), scf_options={"diagnostics": True})
    calc.get_property("energy", water_row(2))
    assert 0.1 < calc.results["scf_diagnostics"]["spectral_radius"] < 1.0


def test_divergence_always_raises() -> None:
    wild = {"solver": {"type": "linear", "mixing_parameter": 1.0}, "max_density_change": 1e-6}
    calc = FixedPointSCF(gentle_model(), scf_options={**wild, "on_failure": "ignore"})
    with pytest.raises(ScfError, match=r"SCF diverged .* try initial_density 'local_guess'"):
        calc.get_property("energy", water_row(2))
    batch = calc.evaluate([water_row(2), water_row(1)])
    assert not any(item["scf_converged"] for item in batch)
