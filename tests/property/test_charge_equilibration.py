"""Charge equilibration: a unique minimum, its forces, its level, and what far fragments do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from helpers import families
from helpers.families import CELL, R_MAX, make_family

from fpmace.density_modes.solved import SelfConsistent
from fpmace.errors import ConfigError, DataError
from fpmace.models.base import Model
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.systems import atoms_batch


def make(**more: Any) -> Model:
    return make_family(5, type="MACEQEq", train_hardness=True, **more)


def crystal(cell: np.ndarray = CELL, pbc: Any = True, charge: float = 0.3) -> Atoms:
    atoms = families.crystal(cell, pbc)
    atoms.info.update(total_charge=charge, external_field=[0.02, -0.05, 0.03])
    return atoms


def solve(
    model: Model, *atoms: Atoms, outputs: tuple[str, ...] = ("energy",), **scf: Any
) -> Observables:
    options = ScfOptions(**{"scf_tolerance": 1e-12, "charge_tolerance": 1e-11, **scf})
    batch = atoms_batch(list(atoms), R_MAX)
    return predict(model, batch, mode=SelfConsistent(scf=options), outputs=outputs)


@pytest.mark.parametrize("max_l", [0, 1, 2])
@pytest.mark.parametrize("pbc", [False, True])
def test_charge_is_met_and_the_energy_is_the_minimum(max_l: int, pbc: bool) -> None:
    model, atoms = make(atomic_multipoles_max_l=max_l), crystal(pbc=pbc)
    found = solve(model, atoms, outputs=("energy", "problem", "density"))
    assert float(found.total_charge) == pytest.approx(0.3, abs=1e-10)
    assert found.problem is not None
    assert found.density is not None
    assert found.fermi_level is not None
    new, _ = found.problem.evaluate(found.density, found.problem.spread(found.fermi_level))
    assert float((new - found.density).abs().max()) < 1e-10


@pytest.mark.parametrize("max_l", [0, 1])
def test_forces_without_adjoint_are_finite_differences(max_l: int) -> None:
    model, atoms = make(atomic_multipoles_max_l=max_l), crystal(pbc=False)
    forces = solve(model, atoms, outputs=("forces",)).forces
    assert forces is not None
    step = 1e-3
    for atom, axis in [(0, 0), (4, 2)]:
        energies = []
        for shift in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[atom, axis] += shift * step
            energies.append(float(solve(model, moved).energy))
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
        assert float(forces[atom, axis]) == pytest.approx(-slope, rel=1e-7)


@pytest.mark.parametrize("method", ["pbc", "slab", "mixed_periodic"])
def test_stress_on_a_triclinic_cell(method: str) -> None:
    model, pbc = make(pbc_handling=method), (True, True, method != "slab")
    stress = solve(model, crystal(pbc=pbc), outputs=("stress",)).stress
    assert stress is not None
    step, volume = 1e-4, abs(np.linalg.det(CELL))
    for a, b in [(0, 0), (0, 1), (2, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            energies.append(float(solve(model, crystal(CELL @ (np.eye(3) + strain), pbc)).energy))
        expected = (energies[0] - energies[1]) / (2 * step * volume)
        assert float(stress[0, a, b]) == pytest.approx(expected, abs=1e-6)


def test_level_is_minus_the_slope_of_the_energy_in_the_charge() -> None:
    model, step = make(), 1e-3
    low, high = (float(solve(model, crystal(charge=q)).energy) for q in (-step, step))
    level = solve(model, crystal(charge=0.0), outputs=("fermi_level",)).fermi_level
    assert float(level) == pytest.approx(-(high - low) / (2 * step), rel=1e-6)


def test_charge_falls_with_the_level_and_the_level_can_be_held() -> None:
    model = make()
    charges = [
        float(solve(model, crystal(), constant_charge=False, initial_fermi_level=x).total_charge)
        for x in (-1.0, 0.0, 1.0)
    ]
    assert charges[0] > charges[1] > charges[2]


def test_solution_is_independent_of_solver_batch_and_dtype() -> None:
    model, atoms, other = make(), crystal(), crystal(pbc=False, charge=-1.0)
    alone = solve(model, atoms)
    together = solve(model, other, atoms, solver="anderson")
    assert float(together.energy[1]) == pytest.approx(float(alone.energy), abs=1e-9)
    single = build("model", model.config).to(torch.float32)
    single.load_state_dict(model.state_dict())
    options = ScfOptions(scf_tolerance=1e-5, charge_tolerance=1e-4)
    batch = atoms_batch([atoms], R_MAX).to(dtype=torch.float32)
    found = predict(single, batch, mode=SelfConsistent(scf=options), outputs=("energy",))
    assert float(found.energy) == pytest.approx(float(alone.energy), rel=1e-5)


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(ConfigError, match="include_electrostatic_self_interaction"):
        make(include_electrostatic_self_interaction=False)
    with pytest.raises(ConfigError, match="default_hardness"):
        make(default_hardness=-1.0)
    with pytest.raises(DataError, match="read_enegs is true, but a structure has no enegs"):
        solve(make(read_enegs=True), crystal())
