"""The variational energy: stationary, with forces and losses that need no adjoint of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import pi, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from fixed_point_cases import BOUNDARIES, RULES, batch_of, make_mode, observe, structure
from passive_cases import QUADRUPOLES, passive_model, structures

from fpmace.data.batch import Batch
from fpmace.errors import ConfigError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.models.io import load_model, save_model
from fpmace.observables.converged import converge
from fpmace.observables.hessian import hessian
from fpmace.observables.perturbation import born_charges
from fpmace.observables.predict import predict
from fpmace.units import COULOMB_C

OPTIONS: dict[str, dict[str, Any]] = {"slab": QUADRUPOLES, "realspace": QUADRUPOLES}
SCF = make_mode("scf", scf_tolerance=1e-13)


def energies(model: FixedPointCore, batch: Batch) -> torch.Tensor:
    return observe(model, batch, SCF, ("energy",)).energy


def moved(batch: Batch, atom: int, axis: int, step: float) -> Batch:
    positions = batch.positions.clone()
    positions[atom, axis] += step
    return replace(batch, positions=positions)


def strained(batch: Batch, strain: torch.Tensor) -> Batch:
    matrix = torch.eye(3, dtype=torch.float64) + strain
    return replace(batch, positions=batch.positions @ matrix, cell=batch.cell @ matrix)


def fourth_order(value: Any, step: float) -> torch.Tensor:
    """Derivative of a function of a number at 0."""
    near, far = value(step) - value(-step), value(2 * step) - value(-2 * step)
    return (8.0 * near - far) / (12.0 * step)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_forces_are_differences_of_the_converged_energy(boundary: str) -> None:
    model = passive_model(boundary, **OPTIONS.get(boundary, {}))
    batch = batch_of(*structures(boundary))
    forces = observe(model, batch, SCF, ("forces",)).forces
    assert forces is not None
    for atom, axis in ((1, 2), (8, 0)):
        graph = int(batch.batch[atom])
        slope = fourth_order(
            lambda h, a=atom, x=axis, g=graph: energies(model, moved(batch, a, x, h))[g], 2e-3
        )
        error = abs(float(slope + forces[atom, axis]))
        assert error < 1e-8 * float(forces.abs().max())


@pytest.mark.parametrize("boundary", ["pbc", "slab", "molecule_in_box"])
def test_stress_is_the_difference_of_the_converged_energy(boundary: str) -> None:
    model = passive_model(boundary, kspace_window=0.3)
    batch = batch_of(structure(boundary, charge=1.0))
    stress = observe(model, batch, SCF, ("stress",)).stress
    assert stress is not None
    generator = torch.Generator().manual_seed(2)
    strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    strain = strain + strain.T
    if boundary != "pbc":
        strain = torch.eye(3, dtype=torch.float64)
        if boundary == "slab":
            strain[0, 1] = strain[1, 0] = 0.5
    slope = fourth_order(lambda h: energies(model, strained(batch, h * strain))[0], 1e-4)
    volume = torch.linalg.det(batch.cell[0])
    expected = float((stress[0] * strain).sum())
    assert abs(float(slope / volume) - expected) < 1e-6 * max(1.0, abs(expected))


def test_the_error_of_an_unconverged_energy_is_quadratic() -> None:
    model, batch = passive_model(), batch_of(*structures())
    exact = energies(model, batch)
    settings = {"solver": "linear", "mixing_parameter": 0.5, "on_failure": "ignore"}
    found = []
    for steps in (6, 10):
        mode = make_mode("scf", num_scf_steps=steps, **settings)
        result = observe(model, batch, mode, ("energy",))
        assert result.scf is not None
        found.append((result.energy - exact, result.scf.density_change))
    errors = found[1][0].abs() / found[0][0].abs()
    changes = (found[1][1] / found[0][1]).square()
    assert bool((errors < 30 * changes).all())
    assert bool((errors < 0.1).all())


def test_level_and_dipole_are_derivatives_of_the_energy() -> None:
    model, batch = passive_model("realspace"), batch_of(*structures("realspace"))
    found = observe(model, batch, SCF, ("energy", "dipole", "fermi_level"))
    assert found.fermi_level is not None
    assert found.dipole is not None

    def charged(h: float) -> torch.Tensor:
        return energies(model, replace(batch, total_charge=batch.total_charge + h))

    torch.testing.assert_close(fourth_order(charged, 1e-2), -found.fermi_level, rtol=1e-8, atol=0)

    def in_field(h: float) -> torch.Tensor:
        field = batch.external_field.clone()
        field[:, 1] += h
        return energies(model, replace(batch, external_field=field))

    torch.testing.assert_close(fourth_order(in_field, 1e-2), found.dipole[:, 1], rtol=1e-8, atol=0)


@pytest.mark.parametrize("mode", ["implicit", "scf", "linearize_solve", "direct", "unroll_scf"])
def test_gradients_of_a_force_loss_are_differences(mode: str) -> None:
    model = passive_model(**QUADRUPOLES).train()
    batch = batch_of(*structures())
    how = (
        make_mode(mode)
        if mode in ("direct",)
        else make_mode(
            mode, **({"num_scf_steps": 4, "on_failure": "ignore"} if mode == "unroll_scf" else {})
        )
    )

    def loss() -> torch.Tensor:
        out = predict(
            model, batch, mode=how, outputs=("forces", "stress", "dipole"), create_graph=True
        )
        assert out.forces is not None
        assert out.stress is not None
        assert out.dipole is not None
        assert out.density is not None
        assert out.fermi_level is not None
        return (
            out.forces.square().sum()
            + (10.0 * out.stress).square().sum()
            + out.dipole.square().sum()
            + out.density.square().sum()
            + (0.1 * out.fermi_level).square().sum()
            + out.energy.square().sum()
        )

    parameters = [p for p in model.parameters() if p.numel() > 0]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    expected = sum(
        float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None
    )

    def at(h: float) -> torch.Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(h * d)
        value = loss().detach()
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(h * d)
        return value

    assert float(fourth_order(at, 2e-4)) == pytest.approx(expected, rel=2e-7)


def test_a_force_loss_needs_one_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """No solve while forces are formed; one in the backward pass of the loss."""
    from fpmace.scf.quadratic import QuadraticSolve

    calls: list[str] = []
    for name in ("solve", "solve_transpose"):
        original = getattr(QuadraticSolve, name)

        def counted(self: Any, a: Any, b: Any, name: str = name, do: Any = original) -> Any:
            calls.append(name)
            return do(self, a, b)

        monkeypatch.setattr(QuadraticSolve, name, counted)
    model, batch = passive_model().train(), batch_of(*structures())
    out = predict(model, batch, mode=make_mode("implicit"), outputs=("forces",), create_graph=True)
    assert out.forces is not None
    assert out.density is not None
    assert "solve_transpose" not in calls
    (out.forces.square().sum() + out.density.square().sum()).backward()
    assert calls.count("solve_transpose") == 1
    calls.clear()
    observe(model, batch, make_mode("scf"), ("forces", "stress"))
    assert "solve_transpose" not in calls


def test_forces_at_constant_level_are_differences_of_the_energy() -> None:
    model, batch = passive_model("realspace"), batch_of(*structures("realspace"))
    mode = make_mode("scf", scf_tolerance=1e-13, constant_charge=False, initial_fermi_level=18.0)
    forces = observe(model, batch, mode, ("forces",)).forces
    assert forces is not None
    slope = fourth_order(
        lambda h: observe(model, moved(batch, 1, 2, h), mode, ("energy",)).energy[0], 2e-3
    )
    assert float(slope) == pytest.approx(-float(forces[1, 2]), rel=1e-7)


def test_hessian_and_born_charges() -> None:
    model, batch = passive_model("realspace"), batch_of(structure("realspace", charge=1.0))
    solution = converge(model, batch)
    matrix, charges = hessian(solution)[0], born_charges(solution)

    def at(h: float) -> tuple[torch.Tensor, torch.Tensor]:
        found = observe(model, moved(batch, 2, 1, h), SCF, ("forces", "dipole"))
        assert found.forces is not None
        assert found.dipole is not None
        return found.forces, found.dipole

    rows = fourth_order(lambda h: at(h)[0], 2e-3)
    torch.testing.assert_close(-rows.flatten(), matrix[7], rtol=1e-6, atol=1e-6)
    slope = fourth_order(lambda h: at(h)[1][0], 2e-3)
    torch.testing.assert_close(slope, charges[2, 1], rtol=1e-6, atol=1e-7)


def test_isolated_neutral_atoms_have_their_free_energy() -> None:
    model = passive_model("realspace", fermi_level_offset=-4.0)
    assert float(model.electronegativity.detach().abs().min()) > 0.1
    atoms = [Atoms(symbol, [[1.0, 2.0, 3.0]]) for symbol in "HO"]
    for item in atoms:
        item.info.update(total_charge=0.0, external_field=(0.0, 0.0, 0.0))
    batch = batch_of(*atoms)
    for training in (False, True):
        model.train(training)
        found = observe(model, batch, SCF, ("energy", "forces"))
        expected = torch.tensor([-1.5, 2.5], dtype=torch.float64)
        torch.testing.assert_close(found.energy, expected, rtol=0, atol=1e-11)
        assert found.contributions is not None
        assert float(found.contributions[:, 1:].abs().max()) < 1e-12
    before = energies(model.eval(), batch_of(structure("realspace")))
    with torch.no_grad():
        next(iter(model.lr_source_maps.parameters())).mul_(1.1)
    torch.testing.assert_close(energies(model, batch), expected, rtol=0, atol=1e-11)
    assert float((energies(model, batch_of(structure("realspace"))) - before).abs().max()) > 1e-6


def test_ions_of_free_atoms_have_a_parabola_of_their_own() -> None:
    """E0 + (chi - mu0) Q + (1/S + C) Q^2 / 2, each element with its own chi and S."""
    model = passive_model("realspace", fermi_level_offset=-4.0)
    for symbol, place, neutral in (("H", 0, -1.5), ("O", 1, 2.5)):
        ions = [Atoms(symbol, [[1.0, 2.0, 3.0]]) for _ in range(3)]
        for item, charge in zip(ions, (-1.0, 0.0, 1.0), strict=True):
            item.info.update(total_charge=charge, external_field=(0.0, 0.0, 0.0))
        anion, atom, cation = energies(model, batch_of(*ions)).tolist()
        slope = float(model.electronegativity[place].detach()) + 4.0
        assert atom == pytest.approx(neutral, abs=1e-11)
        assert 0.5 * (cation - anion) == pytest.approx(slope, abs=1e-10)
        assert cation + anion - 2.0 * atom > COULOMB_C / (sqrt(pi) * 1.5)


def test_models_of_earlier_files_have_no_electronegativity() -> None:
    model = passive_model("realspace")
    state = model.state_dict()
    del state["electronegativity"]
    model.load_state_dict(state)
    assert not bool(model.electronegativity.any())


def test_anchor_is_refused_where_it_would_not_hold() -> None:
    with pytest.raises(ConfigError, match=r"anchor_isolated_atoms.*use false"):
        passive_model(field_readout_config="NullFieldReadout", anchor_isolated_atoms=True)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        (
            "include_electrostatic_self_interaction",
            False,
            "got false; leave.*eigenvalues",
        ),
        ("field_feature_widths", [1.5, 3.0], r"so \[1.5\], got \[1.5, 3.0\]; leave it out"),
        ("field_feature_max_l", 0, "so 1, got 0; leave it out"),
        ("field_feature_norms", [1.0, 1.0], "so conjugate, got"),
        ("field_si", False, "so true, got false"),
        ("quadrupole_feature_corrections", True, "so false, got true"),
    ],
)
def test_options_that_contradict_the_rule_are_refused(option: str, value: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as excinfo:
        passive_model(**{option: value})
    assert option in str(excinfo.value)
    assert "OneBodyPassiveUpdate" in str(excinfo.value)


def test_conjugate_norms_by_the_closed_form() -> None:
    norms = passive_model(**QUADRUPOLES).field_feature_norms
    assert float(norms[0]) == pytest.approx(3.5449077018)
    assert float(norms[1]) == pytest.approx(5.771474, abs=1e-6)


def test_features_are_the_conjugate_potentials() -> None:
    """Through the receivers of the field features and from the energy alike."""
    for boundary in BOUNDARIES:
        model = passive_model(boundary, **QUADRUPOLES)
        batch = batch_of(*structures(boundary))
        local = model.local_part(model.geometry(batch), batch.external_field)
        density = torch.randn(batch.n_atoms, 9, dtype=torch.float64)
        level = torch.randn(batch.n_atoms, dtype=torch.float64)
        found = model.features(local, density, level)
        model.has_conjugate_features = False
        torch.testing.assert_close(model.features(local, density, level), found)


def test_either_part_alone_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        alone = passive_model(field_readout_config="StrictQuadraticFieldEnergyReadout")
    assert "energy is not stationary" in caplog.text
    assert not alone.energy_is_stationary
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        other = passive_model(fixedpoint_update_config=RULES["affine"])
    assert "OneBodyPassiveUpdate belongs to it" in caplog.text
    assert not other.energy_is_stationary
    assert passive_model().energy_is_stationary
    for model in (alone, other):
        batch = batch_of(structure())
        found = observe(model, batch, make_mode("scf", on_failure="ignore"), ("energy", "forces"))
        assert bool(torch.isfinite(found.energy).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_saved_and_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    model = passive_model().to(dtype)
    batch = batch_of(*structures()).to(dtype=dtype)
    mode = make_mode("scf", scf_tolerance=1e-5, on_failure="raise")
    before = observe(model.eval(), batch, mode, ("energy", "forces"))
    save_model(tmp_path / "passive.model", model)
    after = observe(load_model(tmp_path / "passive.model"), batch, mode, ("energy", "forces"))
    assert before.energy.dtype == dtype
    torch.testing.assert_close(before.energy, after.energy, rtol=0, atol=0)
    exact = observe(passive_model(), batch_of(*structures()), SCF, ("energy", "forces"))
    assert before.forces is not None
    assert exact.forces is not None
    torch.testing.assert_close(before.forces.double(), exact.forces, rtol=0, atol=2e-3)
