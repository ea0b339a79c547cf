"""The passive rule that is not linear: convex, one solution, an energy that belongs to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from fixed_point_cases import batch_of, make_mode, observe
from passive_cases import QUADRUPOLES, passive_model, structures

from fpmace.data.batch import Batch
from fpmace.density_modes.base import Start
from fpmace.density_modes.solved import SelfConsistent
from fpmace.errors import ConfigError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.observables.predict import predict
from fpmace.observables.response import compute_response
from fpmace.scf.options import ScfOptions
from fpmace.scf.state import ScfState
from fpmace.testing.systems import atoms_batch

RULE = {"type": "OneBodyConvexUpdate", "n_vectors": 4, "amplitude": 5.0}
SCF = make_mode("scf", scf_tolerance=1e-13)


def convex_model(boundary: str = "pbc", **options: Any) -> FixedPointCore:
    """Strongly non-linear, random weights."""
    return passive_model(boundary, fixedpoint_update_config=RULE, **options)


def energies(model: FixedPointCore, batch: Batch) -> torch.Tensor:
    return observe(model, batch, SCF, ("energy",)).energy


def fourth_order(value: Any, step: float) -> torch.Tensor:
    """Derivative of a function of a number at 0."""
    near, far = value(step) - value(-step), value(2 * step) - value(-2 * step)
    return (8.0 * near - far) / (12.0 * step)


def test_the_response_is_the_second_derivative_of_a_convex_energy() -> None:
    model, batch = convex_model(**QUADRUPOLES), batch_of(*structures())
    rule = model.update_rule
    prepared = model.local_part(model.geometry(batch), batch.external_field).prepared
    w = torch.randn(batch.positions.shape[0], 9, dtype=torch.float64).requires_grad_()

    def energy(potential: torch.Tensor) -> torch.Tensor:
        beyond = rule.energy_beyond_quadratic(potential, prepared)
        assert beyond is not None
        return -0.5 * (rule(potential, prepared) * potential).sum(-1) - beyond

    (slope,) = torch.autograd.grad(energy(w).sum(), w, create_graph=True)
    torch.testing.assert_close(slope, -rule(w, prepared), rtol=1e-10, atol=1e-12)
    rows = [torch.autograd.grad(slope[:, i].sum(), w, retain_graph=True)[0] for i in range(9)]
    response = rule.response_matrices(prepared, w)
    torch.testing.assert_close(response, torch.stack(rows, 1), rtol=1e-10, atol=1e-12)
    assert float(torch.linalg.eigvalsh(response.detach()).min()) > 0
    assert float(rule(torch.zeros_like(w), prepared).detach().abs().max()) < 1e-14


@pytest.mark.parametrize("boundary", ["pbc", "realspace"])
def test_forces_stress_and_level_are_derivatives_of_the_energy(boundary: str) -> None:
    model, batch = convex_model(boundary), batch_of(*structures(boundary))
    found = observe(model, batch, SCF, ("forces", "dipole", "fermi_level"))
    assert found.forces is not None
    assert found.dipole is not None
    assert found.fermi_level is not None

    def moved(h: float) -> torch.Tensor:
        positions = batch.positions.clone()
        positions[1, 2] += h
        return energies(model, replace(batch, positions=positions))[0]

    def charged(h: float) -> torch.Tensor:
        return energies(model, replace(batch, total_charge=batch.total_charge + h))

    error = abs(float(fourth_order(moved, 2e-3) + found.forces[1, 2]))
    assert error < 1e-8 * float(found.forces.abs().max())
    torch.testing.assert_close(fourth_order(charged, 1e-2), -found.fermi_level, rtol=1e-7, atol=0)


def test_gradients_of_a_force_loss_are_differences() -> None:
    model, batch, mode = convex_model(), batch_of(*structures()), make_mode("implicit")
    parameters = [p for p in model.parameters() if p.numel() > 0]

    def loss() -> torch.Tensor:
        out = predict(model, batch, mode=mode, outputs=("forces", "dipole"), create_graph=True)
        assert out.forces is not None
        assert out.dipole is not None
        assert out.density is not None
        return out.forces.square().sum() + out.dipole.square().sum() + out.density.square().sum()

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    pairs = zip(gradients, directions, strict=True)
    expected = sum(float((g * d).sum()) for g, d in pairs if g is not None)

    def at(h: float) -> torch.Tensor:
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=h)
        value = loss().detach()
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=-h)
        return value

    assert float(fourth_order(at, 2e-4)) == pytest.approx(expected, rel=2e-6)


def test_the_solution_depends_on_neither_start_nor_solver() -> None:
    model = convex_model("realspace")
    batch = atoms_batch(structures("realspace"), model.r_max)
    found = []
    for solver in ("auto", "newton_cg", "anderson"):
        options = ScfOptions(solver=solver, scf_tolerance=1e-11, charge_tolerance=1e-10)
        for seed in (None, 1, 2):
            start = None
            if seed is not None:
                noise = np.random.default_rng(seed).normal(size=(batch.positions.shape[0], 4))
                state = ScfState(torch.tensor(noise), torch.zeros(2, dtype=torch.float64))
                start = Start(state)
            out = predict(model, batch, mode=SelfConsistent(scf=options), start=start)
            assert out.scf is not None
            assert bool(out.scf.converged.all())
            found.append(out.density)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-8)


def test_polarizability_is_positive_symmetric_and_depends_on_the_field() -> None:
    model = convex_model("realspace")
    weak, strong = structures("realspace")[0], structures("realspace")[0].copy()
    weak.info["external_field"], strong.info["external_field"] = [0.0] * 3, [2.0, 0.0, 0.0]
    found = []
    for atoms in (weak, strong):
        batch = atoms_batch([atoms], model.r_max)
        alpha = compute_response(model, batch, ("polarizability",)).polarizability[0]
        torch.testing.assert_close(alpha, alpha.T, rtol=1e-7, atol=1e-9)
        assert float(torch.linalg.eigvalsh(alpha).min()) > 0
        found.append(alpha)
    assert float((found[0] - found[1]).abs().max()) > 1e-3


def test_a_lone_neutral_atom_has_its_free_energy() -> None:
    batch = atoms_batch([Atoms("O", [[0.0, 0.0, 0.0]])], 3.0)
    model = convex_model("realspace")
    assert float(energies(model, batch)) == pytest.approx(2.5, abs=1e-10)


def test_what_needs_another_rule_says_so() -> None:
    model, batch = convex_model(), batch_of(*structures())
    with pytest.raises(ConfigError, match="affine, such as OneBodyPassiveUpdate"):
        observe(model, batch, make_mode("scf", charge_per="fragment"), ("energy",))
    plain = passive_model(fixedpoint_update_config="OneBodyVariableUpdate")
    with pytest.raises(ConfigError, match=r"newton_cg needs .*OneBodyConvexUpdate"):
        observe(plain, batch, make_mode("scf", solver="newton_cg"), ("energy",))
