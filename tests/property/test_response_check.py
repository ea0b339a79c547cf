"""The check of the response: what it measures, and when it warns."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from fixed_point_cases import batch_of, scaled_model, structure

from fpmace.calculators.fixed_point import FixedPointSCFCalculator
from fpmace.data.batch import Batch
from fpmace.metrics.pairs import PairSigns
from fpmace.metrics.response_check import ResponseCheck, check_response
from fpmace.observables.passivity import NegativePolarizabilities, eigenvalues
from fpmace.observables.response import compute_response
from fpmace.registry import build
from fpmace.scf.options import ScfOptions

TIGHT = ScfOptions(scf_tolerance=1e-11, charge_tolerance=1e-10, num_scf_steps=200)


def two(boundary: str = "realspace") -> Batch:
    batch = batch_of(structure(boundary), structure(boundary, n_molecules=1, seed=4))
    return replace(batch, index=torch.tensor([7, 9]), weight=torch.ones(2).double())


def test_numbers_are_those_of_the_linear_response() -> None:
    model, batch = scaled_model("mlp", "realspace", eigenvalue=-0.6), two()
    labels = torch.stack([2.0 * torch.eye(3), torch.eye(3)]).double()
    labelled = replace(
        batch,
        labels={"polarizability": labels},
        weights={"polarizability": torch.tensor([1.0, 0.0]).double()},
    )
    found = check_response(model, [labelled], TIGHT)
    expected = compute_response(model, batch, ["polarizability", "fukui"])
    alpha = expected.polarizability
    values = eigenvalues(alpha)
    assert found.smallest == pytest.approx(values[:, 0].tolist(), rel=1e-6)
    assert found.largest == pytest.approx(values[:, 2].tolist(), rel=1e-6)
    assert max(found.asymmetry) == pytest.approx(float((alpha - alpha.mT).abs().max()), rel=1e-6)
    assert found.capacitance == pytest.approx(expected.capacitance.tolist(), rel=1e-6)
    assert found.labelled == [(found.trace[0], 2.0)]
    assert min(found.map_smallest) < 0 < found.n_structures == 2
    assert found.to_json()["smallest_eigenvalue"] == min(found.smallest)


def test_a_falling_dipole_is_told_in_words_with_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, batch = scaled_model("affine", "realspace", eigenvalue=-0.6), two()
    found = check_response(model, [batch], TIGHT, PairSigns(129, 115, 15.1, -26.3))
    assert found.negative
    first, second, third, *_ = found.warnings()
    assert first.startswith("the model's dipole falls with the field in 115 of 129 pairs")
    assert "{type: OneBodyPassiveUpdate} with field_readout_config" in first
    assert f"negative eigenvalue in {len(found.negative)} of 2 structures" in second
    assert "not symmetric" in third
    assert "(labels +0.117), wrong sign in 115" in found.describe()
    calculator = FixedPointSCFCalculator(model)
    with caplog.at_level(logging.WARNING, logger="fpmace"):
        for index in (0, 1):
            atoms = structure("realspace", n_molecules=2 - index, seed=3 + index)
            calculator.response(["polarizability"], atoms)
    assert "dipole falls with the field along some direction in 1 of 1 structures" in caplog.text
    assert "OneBodyPassiveUpdate" in caplog.text


def test_nothing_is_said_along_periodic_directions() -> None:
    model = scaled_model("affine", "pbc", eigenvalue=-0.6)
    found = check_response(model, [two("pbc")], TIGHT)
    assert found.smallest == found.largest == [0.0, 0.0]
    assert not any("polarizability" in text for text in found.warnings())
    signs = NegativePolarizabilities()
    signs.add(-torch.eye(3).double().expand(2, 3, 3), two("pbc"))
    assert signs.warning(model) is None
    signs.add(-torch.eye(3).double().expand(2, 3, 3), two("realspace"))
    assert "in 2 of 4 structures (lowest eigenvalue" in str(signs.warning(model))


def test_structures_without_a_solution_are_counted() -> None:
    model = scaled_model("mlp", "realspace", eigenvalue=-3.0)
    short = ScfOptions(scf_tolerance=1e-12, num_scf_steps=2, solver="linear")
    found = check_response(model, [two()], short)
    assert found.undefined == [7, 9]
    assert "2 of 2 structures have no converged solution" in found.warnings()[0]
    assert found.n_structures == 2


def test_charges_that_answer_to_nothing_are_no_fault() -> None:
    model = build(
        "model",
        {
            "type": "LocalCharges",
            "atomic_numbers": [1, 8],
            "atomic_energies": [0.0, 0.0],
            "r_max": 4.0,
            "hidden_irreps": "4x0e+4x1o",
            "MLP_irreps": "4x0e",
            "max_ell": 1,
            "correlation": 1,
            "radial_MLP": [8],
            "pbc_handling": "realspace",
        },
    ).double()
    found = check_response(model, [two()], TIGHT)
    assert found.trace == [0.0, 0.0]
    assert found.capacitance == []
    assert found.warnings() == []


def test_an_unstable_solution_and_a_charge_of_the_wrong_sign_are_told() -> None:
    check = ResponseCheck(capacitance=[-1.0, 0.2], map_smallest=[-3.0, -2.0], map_largest=[0.1, 1])
    rising, unstable = check.warnings()
    assert "charge rises with the Fermi level in 1 of 2" in rising
    assert "eigenvalue of 1 or more in 1 of 2" in unstable
