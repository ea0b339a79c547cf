"""The passive rule: one solution, found by every solver, and passive responses of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ase import Atoms
from fixed_point_cases import (
    BOUNDARIES,
    R_MAX,
    batch_of,
    make_mode,
    make_problem,
    run_solver,
    structure,
)
from passive_cases import QUADRUPOLES, passive_model, structures

from fpmace.errors import ConfigError, ScfError
from fpmace.observables.converged import converge
from fpmace.observables.perturbation import charge_response, field_response
from fpmace.observables.predict import predict
from fpmace.scf.driver import solve
from fpmace.scf.options import ScfOptions
from fpmace.scf.quadratic_dense import semidefinite_root
from fpmace.scf.state import ScfState
from fpmace.testing.systems import atoms_batch, water_box

CG = {"type": "cg", "max_dense_size": 0}
CHOLESKY = {"type": "cg", "max_dense_size": 10_000}


@pytest.mark.parametrize("constant_charge", [True, False])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_every_solver_finds_the_same_density(boundary: str, constant_charge: bool) -> None:
    options = QUADRUPOLES if boundary in ("slab", "realspace") else {}
    model, batch = passive_model(boundary, **options), batch_of(*structures(boundary))
    exact = run_solver(model, batch, solver=CHOLESKY, constant_charge=constant_charge)
    for solver in (CG, "anderson", "response", "newton_krylov"):
        found = run_solver(model, batch, solver=solver, constant_charge=constant_charge)
        assert bool(found.converged.all())
        torch.testing.assert_close(found.density, exact.density, rtol=0, atol=5e-8)
        torch.testing.assert_close(found.fermi_level, exact.fermi_level, rtol=0, atol=5e-7)
    assert run_solver(model, batch, constant_charge=constant_charge).solver == ["cg", "cg"]
    if constant_charge:
        assert float(exact.charge_error.abs().max()) < 1e-10


@pytest.mark.parametrize("solver", [CG, CHOLESKY])
def test_the_start_does_not_matter(solver: dict[str, Any]) -> None:
    model, batch = passive_model(), batch_of(*structures())
    with torch.no_grad():
        problem = make_problem(model, batch)
        options = ScfOptions(solver=solver, scf_tolerance=1e-11, on_failure="raise")
        torch.manual_seed(1)
        starts = [
            ScfState(
                scale * torch.randn_like(problem.local_density), scale * torch.ones(2).double()
            )
            for scale in (0.0, 3.0)
        ]
        one, other = (solve(problem, start, options) for start in starts)
    torch.testing.assert_close(one.density, other.density, rtol=0, atol=1e-9)
    torch.testing.assert_close(one.fermi_level, other.fermi_level, rtol=0, atol=1e-9)


def test_a_graph_does_not_see_its_company() -> None:
    model, both = passive_model(), structures()
    together = run_solver(model, batch_of(*both), solver=CG)
    alone = run_solver(model, batch_of(both[1]), solver=CG)
    torch.testing.assert_close(together.density[6:], alone.density, rtol=0, atol=1e-10)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_symmetric_matrix_has_eigenvalues_of_one_or_more(boundary: str) -> None:
    model = passive_model(boundary, **QUADRUPOLES)
    problem = make_problem(model, batch_of(structure(boundary)))
    form = problem.quadratic
    assert form is not None
    assert form.dense_interaction is not None
    with torch.no_grad():
        root = torch.block_diag(*semidefinite_root(form.response))
        interaction = form.dense_interaction()[0]
        matrix = root.T @ interaction @ root
        assert float((matrix - matrix.T).abs().max()) < 1e-10
        # The truncated sum and the correction of a molecule in a box nearly cancel.
        assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-8
        random = torch.randn_like(problem.local_density)
        direct = (interaction @ random.flatten()).view_as(random)
        torch.testing.assert_close(form.interaction(random), direct)
        line = problem.linearisation(random, torch.zeros(1, dtype=random.dtype))
        torch.testing.assert_close(line.apply(random), -form.respond(direct))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_root_of_a_semidefinite_matrix(rank: int) -> None:
    torch.manual_seed(rank)
    vectors = torch.randn(5, 4, rank, dtype=torch.float64)
    matrix = vectors @ vectors.mT
    root = semidefinite_root(matrix)
    torch.testing.assert_close(root @ root.mT, matrix, rtol=0, atol=1e-13)
    assert bool((root.triu(1) == 0).all())


def test_responses_are_passive() -> None:
    """dQ/dmu is not positive; the polarizability is symmetric, positive, out of plane too."""
    flat = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    flat.info.update(total_charge=0.0, external_field=(0.0, 0.0, 0.0))
    model = passive_model("realspace")
    solution = converge(model, batch_of(flat, structure("realspace", charge=-1.0)))
    assert solution.scf is not None
    assert solution.scf.solver == ["cg", "cg"]
    alpha = field_response(solution).polarizability
    assert float((alpha - alpha.mT).abs().max()) < 1e-10
    assert float(torch.linalg.eigvalsh(alpha).min()) > 1e-3
    assert float(alpha[0, 2, 2]) > 1e-3
    assert bool((charge_response(solution).capacitance < 0).all())
    found = predict(
        model, solution.batch, mode=make_mode("implicit"), outputs=("polarizability",)
    ).polarizability
    assert found is not None
    torch.testing.assert_close(found, alpha, rtol=0, atol=1e-9)


def test_a_graph_that_cannot_move_charge_is_named() -> None:
    model = passive_model("realspace", anchor_isolated_atoms=False)
    with torch.no_grad():
        model.field_dependent_charges_map.scale[:, 0] = 0.0
    model.field_dependent_charges_map.isotropic = False
    batch = batch_of(structure("realspace"), structure("realspace", charge=1.0))
    with pytest.raises(ScfError, match=r"structure [01]: its total charge cannot be met"):
        run_solver(model, batch)
    assert bool(run_solver(model, batch, constant_charge=False).converged.all())


def test_cg_needs_a_passive_rule() -> None:
    from fixed_point_cases import scaled_model

    with pytest.raises(ConfigError, match="cg needs a passive update rule"):
        run_solver(scaled_model(), batch_of(structure()), solver="cg")


@pytest.mark.parametrize("boundary", ["pbc", "realspace"])
def test_untrained_models_converge(boundary: str) -> None:
    """Ten models; the last is solved for 1,536 atoms (open: 384), the others for up to 96."""
    largest = (8, 8, 8) if boundary == "pbc" else (8, 4, 4)
    shapes = [(1, 1, 1), (2, 2, 1), (4, 4, 2), largest]
    for seed in range(10):
        model = passive_model(boundary, seed=seed, fermi_level_offset=-5.0)
        shape = shapes[3 if seed == 9 else seed % 3]
        atoms = water_box(shape, seed=seed, pbc=boundary == "pbc")
        atoms.info["total_charge"] = float(seed % 3 - 1)
        result = run_solver(model, atoms_batch([atoms], R_MAX), solver=CG, num_scf_steps=20)
        assert bool(result.converged.all()), f"seed {seed}: {result}"
        assert float(result.charge_error.abs().max()) < 1e-10
