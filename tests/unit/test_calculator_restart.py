"""Warm starts along trajectories, and neighbour lists that are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from calculator_cases import affine_model, local_model, vibration, water_row
from fixed_point_cases import scaled_model, structure

from fpmace.calculators import FixedPointSCF, FixedPointSCFCalculator, MACECalculator
from fpmace.calculators.history import DensityHistory, Snapshot
from fpmace.calculators.neighbours import SkinNeighbourList
from fpmace.data.neighborhood import neighborhood
from fpmace.scf.state import ScfState


def geometry(positions: np.ndarray, signature: tuple[object, ...] = ()) -> Snapshot:
    return Snapshot(signature, positions, np.eye(3) * 10, np.zeros(3, dtype=bool), np.zeros(1))


def solution(value: float) -> ScfState:
    return ScfState(
        torch.full((2, 4), value, dtype=torch.float64),
        torch.tensor([-value], dtype=torch.float64),
    )


def along(t: float) -> np.ndarray:
    """A curve in configuration space of third order in t."""
    return np.array([[t, t**2, t**3], [1.0 - t, 2.0 * t**2, -(t**3)]])


def test_extrapolation_is_exact_for_a_cubic_path() -> None:
    history = DensityHistory(noise=1e-12)
    for t in 0.1 * np.arange(6):
        history.store(geometry(along(t)), solution(1.0 + t - 3.0 * t**2 + 2.0 * t**3))
    found = history.predict(geometry(along(0.6)))
    assert found is not None
    exact = 1.0 + 0.6 - 3.0 * 0.36 + 2.0 * 0.216
    assert float(found.density[0, 0]) == pytest.approx(exact, abs=1e-6)
    assert float(found.fermi_level[0]) == pytest.approx(-exact, abs=1e-6)


def test_history_forgets_at_a_change_of_signature_and_does_not_repeat() -> None:
    history = DensityHistory()
    assert history.predict(geometry(along(0.0))) is None
    history.store(geometry(along(0.0)), solution(1.0))
    history.store(geometry(along(0.0)), solution(2.0))
    assert len(history) == 1
    kept = history.predict(geometry(along(0.1)))
    assert kept is not None
    assert float(kept.density[0, 0]) == 2.0
    assert history.predict(geometry(along(0.1), ("other",))) is None
    assert len(history) == 0


def test_a_geometry_far_away_begins_a_new_history() -> None:
    history = DensityHistory(reach=0.3)
    history.store(geometry(along(0.0)), solution(1.0))
    assert history.predict(geometry(along(0.0) + 0.2)) is not None
    assert history.predict(geometry(along(0.0) + 0.5)) is None


def test_an_atom_wrapped_into_the_cell_has_not_moved() -> None:
    periodic = np.ones(3, dtype=bool)
    cell = np.array([[5.0, 0, 0], [1.0, 6.0, 0], [0, 0, 7.0]])
    first = Snapshot((), along(0.2), cell, periodic, np.zeros(1))
    second = Snapshot((), along(0.2) + 2 * cell[0] - cell[1], cell, periodic, np.zeros(1))
    np.testing.assert_allclose(second.step_from(first), 0.0, atol=1e-12)


MATRIX_FREE = {"type": "response", "max_dense_size": 0}


def mean_work(solver: str | dict[str, object], restart: str) -> tuple[float, list[float]]:
    options = {"solver": solver, "scf_tolerance": 1e-6, "charge_tolerance": 1e-5}
    calc = FixedPointSCF(affine_model(), scf_options=options, restart=restart)
    work, energies = [], []
    for atoms in vibration(water_row(2), 12, step=0.05):
        atoms.calc = calc
        energies.append(atoms.get_potential_energy())
        work.append(calc.results["num_map_evaluations"] + calc.results["num_matvecs"])
    return float(np.mean(work[6:])), energies


@pytest.mark.parametrize("solver", [MATRIX_FREE, "anderson"], ids=["response", "anderson"])
def test_warm_starts_save_work_and_change_nothing(solver: str | dict[str, object]) -> None:
    cold, expected = mean_work(solver, "none")
    last, _ = mean_work(solver, "last")
    warm, found = mean_work(solver, "extrapolate")
    assert warm <= 0.6 * cold
    assert warm < last < cold
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("change", ["charge", "species", "pbc"])
def test_no_start_is_taken_across_another_system(change: str) -> None:
    atoms = water_row(2)
    atoms.calc = calc = FixedPointSCF(affine_model())
    atoms.get_potential_energy()
    assert len(calc.loop.history) == 1
    other = water_row(2)
    if change == "charge":
        other.info["total_charge"] = 1.0
    elif change == "species":
        other.numbers[[0, 1]] = other.numbers[[1, 0]]
    else:
        other.set_cell([8.0, 8.0, 8.0])
        other.pbc = True
    other.calc = calc
    other.get_potential_energy()
    cold = FixedPointSCF(affine_model(), restart="none")
    cold.get_property("energy", other)
    assert calc.results["num_matvecs"] == cold.results["num_matvecs"]
    assert len(calc.loop.history) == 1


def test_a_start_that_leads_nowhere_is_dropped() -> None:
    atoms = water_row(2)
    atoms.calc = calc = FixedPointSCF(affine_model())
    expected = atoms.get_potential_energy()
    geometry_kept, state = calc.loop.history._kept[0]
    calc.loop.history._kept[0] = (
        geometry_kept,
        ScfState(state.density * np.nan, state.fermi_level),
    )
    calc.reset()
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-6)


def test_asking_for_more_at_the_same_geometry_costs_one_evaluation() -> None:
    atoms = water_row(2, pbc=True)
    atoms.calc = calc = FixedPointSCF(affine_model())
    atoms.get_forces()
    atoms.get_stress()
    assert calc.results["num_map_evaluations"] == 1
    assert len(calc.loop.history) == 1


def edges_of(atoms: Atoms, r_max: float) -> tuple[np.ndarray, np.ndarray]:
    return neighborhood(atoms.positions, atoms.cell.array, atoms.pbc, r_max)


def test_kept_neighbour_lists_equal_new_ones() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.0) * (2, 1, 1)
    neighbours = SkinNeighbourList(3.6, skin=0.6)
    for frame in vibration(atoms, 30, step=0.3):
        found = neighbours.edges(frame.positions, frame.cell.array, frame.pbc)
        expected = edges_of(frame, 3.6)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    assert neighbours.n_builds < 5


def test_neighbour_lists_are_rebuilt_when_they_must_be() -> None:
    atoms = water_row(2, pbc=True)
    neighbours = SkinNeighbourList(3.0, skin=0.4)
    builds = []
    for change in ("first", "none", "small", "large", "cell", "pbc"):
        if change == "small":
            atoms.positions[0] += 0.1
        elif change == "large":
            atoms.positions[0, 0] += 0.21
        elif change == "cell":
            atoms.set_cell(atoms.cell.array * 1.001)
        elif change == "pbc":
            atoms.pbc = (True, True, False)
        found = neighbours.edges(atoms.positions, atoms.cell.array, atoms.pbc)
        np.testing.assert_array_equal(found[0], edges_of(atoms, 3.0)[0])
        builds.append(neighbours.n_builds)
    assert builds == [1, 1, 1, 2, 3, 4]


def test_local_models_keep_their_lists() -> None:
    calc = MACECalculator(local_model(), skin=1.0)
    for atoms in vibration(water_row(2), 5):
        atoms.calc = calc
        kept = atoms.get_potential_energy()
        assert kept == MACECalculator(local_model(), skin=0.0).get_property("energy", atoms)
    assert calc.neighbours.n_builds == 1


def test_tight_tolerance_removes_the_noise_of_numerical_differences():
    """As the page on calculators says: the energies of warm starts differ by the tolerance."""
    tight = {"scf_tolerance": 1e-8, "charge_tolerance": 1e-8}
    calculator = FixedPointSCFCalculator(scaled_model("mlp"), scf_options=tight)
    atoms = structure()
    atoms.calc = calculator
    forces, step = atoms.get_forces().copy(), 1e-3
    for axis in range(3):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[1, axis] += sign * step
            moved.calc = calculator
            energies.append(moved.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * step)
        assert abs(slope + forces[1, axis]) < 1e-6
