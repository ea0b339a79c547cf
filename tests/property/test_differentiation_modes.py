"""Gradients of losses through self-consistency: all modes against each other and differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fixed_point_cases import batch_of, make_mode, observe, scaled_model, structure
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.errors import ConfigError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.observables.types import Observables


@dataclass(frozen=True)
class Case:
    """A model, a boundary mode, and what is held constant."""

    rule: str
    boundary: str
    constant_charge: bool
    eigenvalue: float = -0.3
    seed: int = 0

    @property
    def outputs(self) -> tuple[str, ...]:
        periodic = self.boundary in ("pbc", "slab")
        return ("energy", "forces", "stress") if periodic else ("energy", "forces")

    def model(self) -> FixedPointCore:
        return scaled_model(self.rule, self.boundary, eigenvalue=self.eigenvalue, seed=self.seed)

    def batch(self) -> Batch:
        return batch_of(
            structure(self.boundary, n_molecules=1, charge=0.3, field=(0.0, 0.01, 0.02)),
            structure(self.boundary, n_molecules=1, seed=5),
        )


CASES = [
    Case("affine", "pbc", True),
    Case("affine", "slab", False),
    Case("skip_mlp", "slab", True),
    Case("mlp", "pbc", False),
    Case("mlp", "molecule_in_box", True),
    Case("many_body", "realspace", False),
    Case("many_body", "pbc", True, seed=4),
]
IDS = [f"{c.rule}-{c.boundary}-{'charge' if c.constant_charge else 'fermi'}" for c in CASES]


def loss(found: Observables, batch: Batch) -> Tensor:
    """Energy, forces, stress, dipole, multipoles and Fermi level, each of some weight."""
    assert found.forces is not None
    assert found.density is not None
    assert found.dipole is not None
    assert found.fermi_level is not None
    wave = torch.sin(torch.arange(batch.n_atoms * 3, dtype=torch.float64)).view(-1, 3)
    total = 1e-4 * (found.energy / batch.atoms_per_graph).square().sum()
    total = total + (found.forces - 0.2 * wave).square().mean()
    total = total + 3.0 * (found.density - 0.1).square().mean()
    total = total + 0.1 * found.dipole.square().sum() + 0.01 * found.fermi_level.square().sum()
    if found.stress is not None:
        total = total + 1e3 * found.stress.square().sum() + found.stress.sum()
    return total


def gradient(case: Case, model: FixedPointCore, kind: str, **options: Any) -> dict[str, Tensor]:
    batch = case.batch()
    settings = {"constant_charge": case.constant_charge, "charge_tolerance": 1e-10, **options}
    found = observe(model, batch, make_mode(kind, **settings), case.outputs, create_graph=True)
    names = [name for name, _ in model.named_parameters()]
    rows = torch.autograd.grad(loss(found, batch), list(model.parameters()), allow_unused=True)
    return {name: row for name, row in zip(names, rows, strict=True) if row is not None}


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative error of a parameter's gradient."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - row).norm() / row.norm().clamp_min(1e-8))
        for name, row in expected.items()
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_all_exact_modes_agree(case: Case) -> None:
    model = case.model()
    unrolled = gradient(case, model, "unroll_scf", solver="linear", mixing_parameter=0.7)
    assert worst(gradient(case, model, "implicit"), unrolled) < 1e-6
    matrix_free = gradient(case, model, "implicit", mode={"max_dense_size": 0})
    assert worst(matrix_free, unrolled) < 1e-6
    assert worst(gradient(case, model, "linearize_solve"), unrolled) < 1e-6


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[5]], ids=[IDS[0], IDS[2], IDS[5]])
@pytest.mark.parametrize("mode", ["implicit", "linearize_solve"])
def test_gradients_are_those_of_finite_differences(case: Case, mode: str) -> None:
    check_differences(case, mode)


@pytest.mark.parametrize("case", [CASES[0], CASES[5]], ids=[IDS[0], IDS[5]])
def test_losses_on_forces_at_a_held_density_have_exact_gradients(case: Case) -> None:
    check_differences(case, "implicit", use_autograd_forces=False)


def check_differences(case: Case, mode: str, **changes: Any) -> None:
    """Compare the gradient of the loss with differences of what inference finds."""
    model = case.model()
    found = gradient(case, model, mode, **changes)
    batch = case.batch()
    options = {"constant_charge": case.constant_charge, "charge_tolerance": 1e-11, **changes}

    def value(shift: float, weight: Tensor, direction: Tensor) -> float:
        with torch.no_grad():
            weight.add_(shift * direction)
            where = make_mode("scf", scf_tolerance=1e-13, **options)
        result = float(loss(observe(model, batch, where, case.outputs), batch))
        with torch.no_grad():
            weight.sub_(shift * direction)
        return result

    blocks = {name.split(".")[0]: name for name in found}
    for name in blocks.values():
        weight = model.get_parameter(name)
        direction = found[name] / found[name].norm().clamp_min(1e-12)
        step = 2e-4 * max(float(weight.detach().abs().max()), 1e-2)
        near = value(step, weight, direction) - value(-step, weight, direction)
        far = value(2 * step, weight, direction) - value(-2 * step, weight, direction)
        slope = (8.0 * near - far) / (12.0 * step)
        assert float((found[name] * direction).sum()) == pytest.approx(slope, rel=1e-5), name


def test_one_linearised_step_is_exact_for_affine_rules_only() -> None:
    affine, bent = CASES[0], CASES[2]
    for case, exact in ((affine, True), (bent, False)):
        model = case.model()
        right = gradient(case, model, "implicit")
        one_step = gradient(case, model, "linearize_solve_one_step")
        assert (worst(one_step, right) < 1e-7) == exact


def test_first_order_is_not_enough_for_forces_in_the_loss() -> None:
    case = CASES[0]
    model = case.model()
    right = gradient(case, model, "implicit")
    assert worst(gradient(case, model, "implicit", mode={"order": 1}), right) > 1e-4


def test_first_derivatives_agree_in_every_mode() -> None:
    case = CASES[2]
    model, batch = case.model(), case.batch()
    forces = [
        observe(model, batch, make_mode(mode, charge_tolerance=1e-10, **options)).forces
        for mode, options in (
            ("unroll_scf", {"solver": "linear", "mixing_parameter": 0.7}),
            ("scf", {}),
            ("implicit", {"mode": {"order": 1}}),
            ("linearize_solve", {}),
            ("linearize_solve_one_step", {}),
        )
    ]
    for other in forces[1:]:
        torch.testing.assert_close(other, forces[0], rtol=1e-7, atol=1e-9)


def test_linearize_solve_polishes_a_loose_solution() -> None:
    case = CASES[0]
    model, batch = case.model(), case.batch()
    tight = observe(model, batch, make_mode("scf", charge_tolerance=1e-11), ("energy",))
    loose = {"solver": "linear", "scf_tolerance": 1e-2, "on_failure": "ignore"}
    errors = []
    for mode in ("scf", "linearize_solve"):
        found = observe(model, batch, make_mode(mode, **loose), ("energy", "forces"))
        assert found.density is not None
        assert tight.density is not None
        errors.append(float((found.density - tight.density).abs().max()))
    assert errors[0] > 1e-4
    assert errors[1] < 1e-9


def test_recomputation_changes_no_gradient() -> None:
    case = CASES[2]
    model = case.model()
    options = {"solver": "linear", "num_scf_steps": 6, "on_failure": "ignore"}
    kept = gradient(case, model, "unroll_scf", **options)
    repeated = gradient(case, model, "unroll_scf", mode={"checkpoint": True}, **options)
    assert worst(repeated, kept) < 1e-10
    fermi = {**options, "constant_charge": False}
    kept = gradient(case, model, "unroll_scf", **fermi)
    repeated = gradient(case, model, "unroll_scf", mode={"checkpoint": True}, **fermi)
    assert worst(repeated, kept) < 1e-10


def test_no_derivatives_through_the_density_is_an_explicit_choice() -> None:
    case = CASES[1]
    model, batch = case.model(), case.batch()
    exact = observe(model, batch, make_mode("scf", constant_charge=False))
    rough = observe(
        model, batch, make_mode("scf", constant_charge=False, use_autograd_forces=False)
    )
    torch.testing.assert_close(rough.energy, exact.energy)
    assert exact.forces is not None
    assert rough.forces is not None
    assert float((rough.forces - exact.forces).abs().max()) > 1e-3
    by_hand = {"type": "scf", "differentiation": "none"}
    scf = {"constant_charge": False}
    none = observe(model, batch, make_mode("scf", mode=by_hand, **scf))
    torch.testing.assert_close(rough.forces, none.forces)


@pytest.mark.parametrize("mode", ["implicit", "linearize_solve"])
def test_held_forces_leave_losses_on_the_density_their_gradient(mode: str) -> None:
    case = CASES[0]
    model, batch = case.model(), case.batch()
    rows = []
    for attached in (True, False):
        how = make_mode(mode, charge_tolerance=1e-10, use_autograd_forces=attached)
        found = observe(model, batch, how, case.outputs, create_graph=True)
        assert found.density is not None
        weights = list(model.lr_source_maps.parameters())
        rows.append(torch.autograd.grad(found.density.square().sum(), weights))
    for held, exact in zip(*rows, strict=True):
        assert float(exact.norm()) > 1e-3
        torch.testing.assert_close(held, exact)


def test_unrolling_at_constant_charge_refuses_held_forces() -> None:
    with pytest.raises(ConfigError, match=r"use_autograd_forces.*leave it out"):
        make_mode("unroll_scf", solver="linear", use_autograd_forces=False)
