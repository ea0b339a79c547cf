"""Every solver on real models: the same density in every boundary mode, batch and order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixed_point_cases import (
    BOUNDARIES,
    batch_of,
    make_mode,
    observe,
    run_solver,
    scaled_model,
    structure,
    with_reference,
)

from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.scf.state import ScfStatus

MATRIX_FREE = {"type": "response", "max_dense_size": 0}
PLAIN = {"type": "anderson", "preconditioner": "none"}
SOLVERS: dict[str, list[object]] = {
    "affine": ["linear", "anderson", PLAIN, "newton_krylov", "response", MATRIX_FREE],
    "skip_mlp": ["linear", "anderson", "newton_krylov"],
    "many_body": ["linear", "anderson", "newton_krylov"],
}


def solvable_model(rule: str, boundary: str) -> FixedPointCore:
    """Random rules that bend have a solution for every charge only while they respond little."""
    eigenvalue = -0.8 if rule == "affine" else -0.4
    seed = 0
    if rule == "many_body":
        seed = 4 if boundary == "slab" else 1
    return scaled_model(rule, boundary, eigenvalue=eigenvalue, seed=seed)


@pytest.mark.parametrize("constant_charge", [True, False], ids=["charge", "fermi"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rule", SOLVERS)
def test_solvers_agree(rule: str, boundary: str, constant_charge: bool) -> None:
    model = solvable_model(rule, boundary)
    batch = batch_of(
        structure(boundary, charge=0.3, field=(0.01, 0.0, 0.02)),
        structure(boundary, n_molecules=1, seed=5),
    )
    results = [
        run_solver(
            model,
            batch,
            constant_charge=constant_charge,
            solver=solver,
            charge_tolerance=1e-8,
            mixing_parameter=0.4 if solver == "linear" else None,
        )
        for solver in SOLVERS[rule]
    ]
    assert all(result.converged.all() for result in results)
    for result in results[1:]:
        torch.testing.assert_close(result.density, results[0].density, rtol=0, atol=2e-8)
        torch.testing.assert_close(result.fermi_level, results[0].fermi_level, rtol=0, atol=2e-6)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_density_does_not_depend_on_the_batch(boundary: str) -> None:
    model = solvable_model("mlp", boundary)
    structures = [
        structure(boundary, n_molecules=n, seed=s, charge=q)
        for n, s, q in ((2, 3, 0.0), (1, 4, 0.4), (3, 5, 0.0))
    ]
    together = run_solver(model, batch_of(*structures), charge_tolerance=1e-9)
    assert together.converged.all()
    first = 0
    for index, atoms in enumerate(structures):
        alone = run_solver(model, batch_of(atoms), charge_tolerance=1e-9)
        mine = together.density[first : first + len(atoms)]
        torch.testing.assert_close(mine, alone.density, rtol=0, atol=1e-9)
        assert abs(int(together.n_steps[index]) - int(alone.n_steps[0])) <= 1
        first += len(atoms)


def test_a_structure_with_lost_positions_leaves_its_neighbours_alone() -> None:
    model = scaled_model("mlp", "realspace")
    structures = [structure("realspace", n_molecules=1, seed=s) for s in (3, 4, 5)]
    batch = batch_of(*structures)
    positions = batch.positions.clone()
    positions[batch.batch == 1] = torch.nan
    result = run_solver(model, replace(batch, positions=positions))
    good = run_solver(model, batch)
    kept = batch.batch != 1
    assert result.status.tolist() == [0, int(ScfStatus.NONFINITE), 0]
    torch.testing.assert_close(result.density[kept], good.density[kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", ["local_guess", "from_data", "zero"])
def test_the_start_does_not_change_the_answer(start: str) -> None:
    model = scaled_model("mlp")
    batch = with_reference(batch_of(structure()))
    batch = replace(batch, fermi_level=torch.full_like(batch.fermi_level, 0.4))
    plain = observe(model, batch, make_mode("scf"), ("energy",))
    level = "from_data" if start == "from_data" else 0.2
    mode = make_mode("scf", initial_density=start, initial_fermi_level=level)
    found = observe(model, batch, mode, ("energy",))
    assert plain.density is not None
    assert found.density is not None
    torch.testing.assert_close(found.density, plain.density, rtol=0, atol=1e-9)


def test_charge_and_fermi_level_are_two_views_of_one_solution() -> None:
    """Holding the level found at constant charge gives that charge back."""
    model = scaled_model("mlp")
    batch = batch_of(structure(charge=0.3))
    held = run_solver(model, batch, charge_tolerance=1e-9)
    free = run_solver(
        model,
        batch,
        constant_charge=False,
        initial_fermi_level=float(held.fermi_level),
    )
    torch.testing.assert_close(free.density, held.density, rtol=0, atol=1e-8)
    assert float(held.density[:, 0].sum()) == pytest.approx(0.3, abs=1e-8)


def test_single_precision_reaches_its_default_tolerance() -> None:
    model: FixedPointCore = scaled_model("mlp").to(torch.float32)
    batch = batch_of(structure(charge=0.2)).to(dtype=torch.float32)
    single = run_solver(model, batch, scf_tolerance=1e-6, num_scf_steps=60)
    assert single.converged.all()
    double = run_solver(scaled_model("mlp"), batch_of(structure(charge=0.2)))
    torch.testing.assert_close(single.density.double(), double.density, rtol=0, atol=3e-5)
