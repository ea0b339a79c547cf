"""Solvers on problems of small matrices, where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fpmace.errors import ConfigError, ScfError
from fpmace.registry import PartConfig, build
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import Linearisation
from fpmace.scf.state import ScfState, ScfStatus
from fpmace.testing.toy_maps import Toy, exact, random_toy, run, toy_problem

MATRIX_FREE = {"type": "response", "max_dense_size": 0}
PLAIN = {"type": "anderson", "preconditioner": "none"}
AFFINE = ["linear", "anderson", PLAIN, "newton_krylov", "response", MATRIX_FREE, "auto"]
GENERAL = ["linear", "anderson", "newton_krylov", "auto"]


def name(solver: PartConfig) -> str:
    return solver if isinstance(solver, str) else "-".join(map(str, solver.values()))


@pytest.mark.parametrize("charge", [None, 0.7], ids=["fermi", "charge"])
@pytest.mark.parametrize("solver", AFFINE, ids=name)
def test_affine_graphs_give_the_exact_solution(solver: PartConfig, charge: float | None) -> None:
    toys = [random_toy(3, seed=3), random_toy(5, seed=3)]
    problem = toy_problem(toys, None if charge is None else [charge, -charge])
    result = run(problem, solver)
    assert result.converged.all()
    for index, toy in enumerate(toys):
        target = None if charge is None else charge * (-1) ** index
        density, level = exact(toy, target)
        mine = result.density[problem.batch == index]
        torch.testing.assert_close(mine, density, rtol=0, atol=3e-8)
        if charge is not None:
            assert float(result.fermi_level[index]) == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize("charge", [None, 0.4], ids=["fermi", "charge"])
def test_solvers_agree_where_the_map_is_bent(charge: float | None) -> None:
    problem = toy_problem([random_toy(4, seed=3, bend=0.3)], None if charge is None else [charge])
    answers = [run(problem, solver) for solver in GENERAL]
    assert all(answer.converged.all() for answer in answers)
    for answer in answers[1:]:
        torch.testing.assert_close(answer.density, answers[0].density, rtol=0, atol=3e-8)


@pytest.mark.parametrize(
    "solver", [PLAIN, "anderson", "newton_krylov", "response", "auto"], ids=name
)
def test_a_spectral_radius_above_one_is_no_obstacle(solver: PartConfig) -> None:
    toy = random_toy(4, eigenvalues=(-14.5, 0.4), seed=4)
    problem = toy_problem([toy], [0.2])
    assert run(problem, "linear").status.tolist() == [int(ScfStatus.DIVERGED)]
    result = run(problem, solver)
    assert result.converged.all()
    torch.testing.assert_close(result.density, exact(toy, 0.2)[0], rtol=0, atol=3e-8)


@pytest.mark.parametrize("solver", ["response", MATRIX_FREE, "newton_krylov"], ids=name)
def test_eigenvalues_beyond_one_have_a_solution_too(solver: PartConfig) -> None:
    toy = random_toy(4, eigenvalues=(-2.0, 3.1), seed=5)
    result = run(toy_problem([toy], None), solver)
    assert result.converged.all()
    torch.testing.assert_close(result.density, exact(toy, None)[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "solver", ["response", MATRIX_FREE, "anderson", "newton_krylov"], ids=name
)
def test_nearly_singular_response(solver: PartConfig) -> None:
    toy = random_toy(4, eigenvalues=(-1.0, 0.9995), seed=6)
    result = run(toy_problem([toy], None), solver)
    assert result.converged.all()
    # The error is the tolerance times the condition of the problem.
    torch.testing.assert_close(result.density, exact(toy, None)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["response", MATRIX_FREE, PLAIN, "newton_krylov"], ids=name)
def test_total_charge_that_hardly_responds(solver: PartConfig) -> None:
    """The charges respond to the level, but their sum does not (bordered solve)."""
    toy = random_toy(4, seed=7)
    charges = toy.response.view(-1, 4)[:, 0]
    charges -= charges.mean()
    toy.response.view(-1, 4)[:, 0] = charges
    result = run(toy_problem([toy], [0.3]), solver, scf_tolerance=1e-9)
    assert result.converged.all()
    torch.testing.assert_close(result.density, exact(toy, 0.3)[0], rtol=1e-6, atol=1e-6)


def test_a_charge_out_of_reach_is_proven_to_have_no_solution() -> None:
    """Nothing responds to the Fermi level, so that the total charge cannot be chosen."""
    stiff, good = random_toy(3, seed=8, response=0.0), random_toy(3, seed=9)
    problem = toy_problem([good, stiff], [0.0, 5.0])
    for solver in ("auto", MATRIX_FREE):
        result = run(problem, solver)
        assert result.status.tolist() == [int(ScfStatus.CONVERGED), int(ScfStatus.NO_SOLUTION)]
        assert "no_solution" in result.describe(1)
        alone = run(toy_problem([good], [0.0]), solver)
        atoms = problem.batch == 0
        torch.testing.assert_close(result.density[atoms], alone.density, rtol=0, atol=1e-10)


def test_a_singular_map_without_fixed_point_is_recognised() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    toy = Toy(eye, torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    assert run(toy_problem([toy], None)).status.tolist() == [int(ScfStatus.NO_SOLUTION)]


def test_a_truncated_loop_does_not_ask_whether_there_is_a_solution() -> None:
    def refuse(density: torch.Tensor, level: torch.Tensor) -> Linearisation:
        raise AssertionError("the map was linearised")

    problem = toy_problem([random_toy(3, seed=8, response=0.0), random_toy(3, seed=9)], [5.0, 0.0])
    scf = ScfOptions(num_scf_steps=6, on_failure="ignore")
    mode = build("training_mode", "unroll_scf", scf=scf)
    start = ScfState(problem.local_density, torch.zeros(2, dtype=torch.float64))
    found = mode.run(replace(problem, linearise=refuse), start, order=1)
    assert not found.scf.converged.any()


@pytest.mark.parametrize("solver", ["linear", "anderson"])
def test_converged_graphs_are_frozen(solver: str) -> None:
    quick = random_toy(2, seed=1, eigenvalues=(-0.05, 0.05), bend=0.01)
    slow = random_toy(4, seed=2, eigenvalues=(-0.9, 0.85), bend=0.05)
    problem = toy_problem([quick, slow], None)
    result = run(problem, solver, history="full_history", scf_tolerance=1e-8)
    first, last = result.n_steps.tolist()
    assert first < last
    history = result.history
    assert history is not None
    frozen = [step[problem.batch == 0] for step in history.densities[first:]]
    assert all(torch.equal(step, frozen[0]) for step in frozen)
    assert torch.equal(frozen[0], result.density[problem.batch == 0])
    assert len(history.density_change) == len(history.densities) - 1 == last


def test_thresholds_are_reported_one_by_one() -> None:
    problem = toy_problem([random_toy(3, seed=3, bend=0.1)], None)
    result = run(problem, "linear", mixing_parameter=0.1, scf_tolerance=1e-6)
    assert result.converged.all()
    assert set(result.met) == {"scf_tolerance", "charge_tolerance"}
    assert result.residual is not None
    assert float(result.residual) == pytest.approx(10 * float(result.density_change), rel=0.3)
    strict = run(
        problem, "linear", mixing_parameter=0.1, scf_tolerance=1e-6, residual_tolerance=1e-6
    )
    assert int(strict.n_steps) > int(result.n_steps)
    assert strict.residual is not None
    assert float(strict.residual) < 1e-6
    short = run(problem, "linear", num_scf_steps=5)
    assert not short.met["scf_tolerance"].any()
    assert "not met: scf_tolerance" in short.describe(0)


def test_auto_says_who_solved_it() -> None:
    affine = run(toy_problem([random_toy(seed=1)], [0.0]))
    assert affine.solver == ["affine"]
    bent = run(toy_problem([random_toy(seed=1, bend=0.1)], [0.0]))
    assert bent.solver == ["anderson"]
    hurried = run(
        toy_problem([random_toy(seed=1, bend=0.1)], [0.0]), {"type": "auto", "anderson_steps": 2}
    )
    assert hurried.converged.all()
    assert hurried.solver == ["anderson then newton_krylov"]


def test_failures_follow_the_policy() -> None:
    problem = toy_problem([random_toy(seed=1)], [0.0])
    hopeless = {"num_scf_steps": 3, "mixing_parameter": 0.1}
    with pytest.raises(ScfError, match="not converged for 1 of 1 structures"):
        run(problem, "linear", on_failure="raise", **hopeless)
    with pytest.warns(RuntimeWarning, match="max_steps after 2 steps of linear"):
        run(problem, "linear", on_failure="warn", **hopeless)
    assert run(problem, "linear", on_failure="ignore", **hopeless).n_unconverged == 1


def test_response_refuses_a_bent_map() -> None:
    problem = toy_problem([random_toy(seed=1, bend=0.1)], [0.0])
    with pytest.raises(ConfigError, match="affine"):
        run(problem, "response")


def test_large_first_changes_do_not_end_a_recoverable_iteration() -> None:
    toy = random_toy(4, seed=2, eigenvalues=(-0.5, 0.4), bend=0.1)
    toy.constant *= 200.0
    result = run(toy_problem([toy], None), "anderson", max_density_change=1.0, scf_tolerance=1e-8)
    assert result.converged.all()


def test_fermi_levels_move_in_bounded_steps_where_the_map_is_bent() -> None:
    toy = random_toy(3, seed=1, bend=0.1)
    problem = toy_problem([toy], [10.0])
    for solver in ("anderson", "newton_krylov"):
        result = run(problem, {"type": solver, "max_fermi_step": 0.5}, history="full_history")
        assert result.converged.all()
        assert result.history is not None
        levels = torch.cat(result.history.fermi_levels)
        assert float(levels.diff().abs().max()) <= 0.5 + 1e-12
