"""Eigenvalue estimates against dense eigenvalues, and the mixing they imply."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fpmace.scf.diagnostics import DiagnosticsSummary
from fpmace.scf.spectrum import best_mixing, diagnose
from fpmace.testing.toy_maps import N_LM, Toy, random_toy, run, toy_problem


def projected(toy: Toy) -> np.ndarray:
    """Eigenvalues of the map with the Fermi level following the charge."""
    charges = torch.zeros_like(toy.response)
    charges[::N_LM] = 1.0
    projector = torch.eye(len(charges), dtype=torch.float64)
    projector = projector - torch.outer(toy.response, charges) / (charges @ toy.response)
    return torch.linalg.eigvals(projector @ toy.jacobian).numpy()


@pytest.mark.parametrize("charge", [True, False])
def test_estimates_agree_with_dense_eigenvalues(charge: bool) -> None:
    toys = [random_toy(4, eigenvalues=(-3.0, 0.6), seed=1), random_toy(3, seed=2)]
    problem = toy_problem(toys, [0.0, 0.1] if charge else None)
    found = diagnose(problem, run(problem), n_vectors=16)
    for index, toy in enumerate(toys):
        values = projected(toy) if charge else np.linalg.eigvals(toy.jacobian.numpy())
        assert float(found.spectral_radius[index]) == pytest.approx(np.abs(values).max(), rel=1e-4)
        assert float(found.largest_real[index]) == pytest.approx(values.real.max(), rel=1e-3)
        assert float(found.smallest_real[index]) == pytest.approx(values.real.min(), rel=1e-4)


def test_the_optimal_mixing_is_that_of_the_extreme_eigenvalues() -> None:
    mixing, rate = best_mixing(np.array([-3.0, 0.0, 0.6], dtype=complex))
    assert mixing == pytest.approx(2.0 / (2.0 + 3.0 - 0.6), rel=1e-3)
    assert rate == pytest.approx((0.6 + 3.0) / (2.0 + 3.0 - 0.6), rel=1e-3)
    assert np.isnan(best_mixing(np.array([-1.0, 1.2], dtype=complex))[0])
    assert best_mixing(np.array([0.1, 0.2], dtype=complex))[0] == pytest.approx(1.0)


def test_the_optimal_mixing_is_the_fastest() -> None:
    problem = toy_problem([random_toy(4, eigenvalues=(-3.0, 0.6), seed=1)], None)
    found = diagnose(problem, run(problem), n_vectors=16)
    best = float(found.optimal_mixing)

    def steps(mixing: float) -> int:
        result = run(problem, "linear", mixing_parameter=mixing, num_scf_steps=1000)
        return int(result.n_steps)

    assert steps(best) < steps(0.7 * best)
    assert run(problem, "linear", mixing_parameter=1.3 * best).n_unconverged == 1


def test_a_graph_has_the_same_estimate_in_any_batch() -> None:
    toys = [random_toy(4, seed=1), random_toy(3, seed=2)]
    pair, single = toy_problem(toys, None), toy_problem(toys[1:], None)
    in_pair = diagnose(pair, run(pair), n_vectors=6)
    alone = diagnose(single, run(single), n_vectors=6)
    torch.testing.assert_close(in_pair.spectral_radius[1:], alone.spectral_radius)


def test_they_come_with_the_result_on_request_and_read_well() -> None:
    problem = toy_problem([random_toy(seed=1), random_toy(seed=2, eigenvalues=(-1.0, 1.5))], None)
    assert run(problem).diagnostics is None
    found = run(problem, diagnostics=True).diagnostics
    assert found is not None
    assert "best linear mixing" in found.describe(0)
    assert "no linear mixing converges" in found.describe(1)
    assert "spectral radius 1.50 at most (structure 1" in str(found)
    assert found.n_map_evaluations == 2


def test_a_map_without_numbers_gives_no_estimate() -> None:
    bad = random_toy(seed=1)
    bad.jacobian[0, 0] = torch.nan
    problem = toy_problem([random_toy(seed=2), bad], None)
    found = diagnose(problem, run(problem))
    assert torch.isnan(found.spectral_radius).tolist() == [False, True]


def test_many_batches_are_summed_up() -> None:
    summary = DiagnosticsSummary()
    assert summary.to_json() is None
    assert str(summary) == "no diagnostics of the map"
    for seed, top in ((1, 0.3), (2, 1.5)):
        problem = toy_problem([random_toy(seed=seed, eigenvalues=(-1.0, top))], None)
        summary.add(run(problem, diagnostics=True).diagnostics)
    summary.add(None)
    found = summary.to_json()
    assert found is not None
    assert found["n_structures"] == 2
    assert found["max_spectral_radius"] == pytest.approx(1.5, rel=1e-3)
    assert found["n_without_linear_mixing"] == 1
    assert "none for 1 structures" in str(summary)
    assert summary.warning().startswith("in 1 of 2 structures the density answers")
    assert "up to 1.50" in summary.warning()
    assert "response_bound" in summary.warning()


def test_a_map_that_linear_mixing_solves_is_no_danger() -> None:
    summary = DiagnosticsSummary()
    assert summary.warning() == ""
    problem = toy_problem([random_toy(seed=1, eigenvalues=(-2.0, 0.3))], None)
    summary.add(run(problem, diagnostics=True).diagnostics)
    assert summary.warning() == ""
