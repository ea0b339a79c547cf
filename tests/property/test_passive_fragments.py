"""Charges held fragment by fragment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write
from fixed_point_cases import SMALL, batch_of, make_mode, observe, scaled_model, structure
from passive_cases import passive_model

from fpmace.calculators.fixed_point import FixedPointSCFCalculator
from fpmace.cli import evaluate, response
from fpmace.data.batch import Batch
from fpmace.errors import ConfigError, DataError, ScfError
from fpmace.models.io import save_model
from fpmace.observables.converged import converge
from fpmace.observables.perturbation import born_charges, charge_response, field_response
from fpmace.observables.predict import predict
from fpmace.registry import build
from fpmace.scf.options import ScfOptions

CG = {"type": "cg", "max_dense_size": 0}


def two_waters(charges: tuple[float, float], apart: float = 0.0) -> Atoms:
    """Two molecules with charges of their own."""
    atoms = structure("realspace", charge=sum(charges), field=(0.0, 0.1, 0.0))
    atoms.positions[3:, 0] += apart
    atoms.arrays["cluster_id"] = np.array([4, 4, 4, 7, 7, 7])
    atoms.arrays["charges"] = np.repeat(np.array(charges) / 3.0, 3)
    return atoms


def held(batch: Batch, atoms: list[Atoms]) -> Batch:
    labels = {
        "cluster_id": torch.from_numpy(np.concatenate([a.arrays["cluster_id"] for a in atoms])),
        "formal_charges": torch.from_numpy(np.concatenate([a.arrays["charges"] for a in atoms])),
    }
    weights = {"formal_charges": torch.ones(batch.n_graphs, dtype=torch.float64)}
    return replace(batch, labels={**batch.labels, **labels}, weights={**batch.weights, **weights})


def batch_with(*atoms: Atoms) -> Batch:
    return held(batch_of(*atoms), list(atoms))


def sums(density: torch.Tensor) -> torch.Tensor:
    return density[:, 0].view(-1, 3).sum(1)


@pytest.mark.parametrize("solver", ["auto", CG])
def test_each_fragment_keeps_its_charge(solver: object) -> None:
    model = passive_model("realspace")
    batch = batch_with(two_waters((1.0, -1.0)), two_waters((0.0, 0.0)))
    mode = make_mode("scf", solver=solver, charge_per="fragment", scf_tolerance=1e-12)
    found = observe(model, batch, mode, ("energy", "density", "forces"))
    assert found.density is not None
    expected = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(sums(found.density), expected, rtol=0, atol=1e-10)
    free = observe(model, batch, make_mode("scf"), ("energy", "density"))
    assert free.density is not None
    assert float((sums(free.density) - expected).abs().max()) > 0.05
    assert bool((free.energy < found.energy).all())


def test_forces_with_fragments_are_differences_of_the_energy() -> None:
    model, batch = passive_model("realspace"), batch_with(two_waters((1.0, -1.0)))
    mode = make_mode("scf", charge_per="fragment", scf_tolerance=1e-13)
    forces = observe(model, batch, mode, ("forces",)).forces
    assert forces is not None

    def energy(h: float) -> float:
        positions = batch.positions.clone()
        positions[1, 2] += h
        moved = replace(batch, positions=positions)
        return float(observe(model, moved, mode, ("energy",)).energy)

    h = 2e-3
    slope = (8 * (energy(h) - energy(-h)) - energy(2 * h) + energy(-2 * h)) / (12 * h)
    assert abs(slope + float(forces[1, 2])) < 1e-8 * float(forces.abs().max())


def test_gradients_of_a_loss_with_fragments_are_differences() -> None:
    model, batch = passive_model("realspace").train(), batch_with(two_waters((1.0, -1.0)))
    mode = make_mode("implicit", charge_per="fragment")
    weight = model.field_dependent_charges_map.scale

    def loss() -> torch.Tensor:
        found = predict(model, batch, mode=mode, outputs=("forces", "dipole"), create_graph=True)
        assert found.forces is not None
        assert found.dipole is not None
        return found.forces.square().sum() + found.dipole.square().sum() + found.energy.sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.ones_like(weight)

    def at(h: float) -> float:
        with torch.no_grad():
            weight.add_(h * direction)
        value = float(loss().detach())
        with torch.no_grad():
            weight.sub_(h * direction)
        return value

    h = 1e-3
    slope = (8 * (at(h) - at(-h)) - at(2 * h) + at(-2 * h)) / (12 * h)
    assert slope == pytest.approx(float(gradient.sum()), rel=1e-7)


def test_far_fragments_are_whole_with_constraints_and_not_without() -> None:
    model = passive_model("realspace")
    far = batch_with(two_waters((1.0, 0.0), apart=60.0))
    whole = observe(model, far, make_mode("scf", charge_per="fragment"), ("density",)).density
    shared = observe(model, far, make_mode("scf"), ("density",)).density
    assert whole is not None
    assert shared is not None
    expected = torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(sums(whole), expected, rtol=0, atol=1e-10)
    assert float((sums(shared) - expected).abs().max()) > 0.1


def test_charge_equilibration_holds_them_too() -> None:
    options = {name: SMALL[name] for name in ("r_max", "max_ell", "hidden_irreps", "correlation")}
    torch.manual_seed(0)
    model = build(
        "model",
        {
            "type": "MACEQEq",
            "atomic_numbers": [1, 8],
            "atomic_energies": [0.0, 0.0],
            "pbc_handling": "realspace",
            **options,
        },
    )
    batch = batch_with(two_waters((1.0, -1.0)))
    mode = make_mode("scf", charge_per="fragment", scf_tolerance=1e-13)
    found = observe(model, batch, mode, ("density", "forces"))
    assert found.density is not None
    assert found.forces is not None
    expected = torch.tensor([1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(sums(found.density), expected, rtol=0, atol=1e-10)

    def energy(h: float) -> float:
        positions = batch.positions.clone()
        positions[1, 2] += h
        return float(observe(model, replace(batch, positions=positions), mode, ("energy",)).energy)

    h = 2e-3
    slope = (8 * (energy(h) - energy(-h)) - energy(2 * h) + energy(-2 * h)) / (12 * h)
    assert abs(slope + float(found.forces[1, 2])) < 1e-8 * float(found.forces.abs().max())


def test_responses_with_fragments_are_differences() -> None:
    model = passive_model("realspace").eval()
    batch = batch_with(two_waters((1.0, -1.0)))
    options = {"charge_per": "fragment", "scf_tolerance": 1e-12}
    solution = converge(model, batch, ScfOptions(**options))
    mode = make_mode("scf", **options)

    def dipole(field: torch.Tensor, shift: float) -> torch.Tensor:
        positions = batch.positions.clone()
        positions[4, 1] += shift
        moved = replace(batch, external_field=batch.external_field + field, positions=positions)
        found = observe(model, moved, mode, ("dipole",))
        assert found.dipole is not None
        return found.dipole[0]

    for axis, unit in enumerate(torch.eye(3, dtype=torch.float64)[:, None]):
        slope = (dipole(-1e-3 * unit, 0.0) - dipole(1e-3 * unit, 0.0)) / 2e-3
        found = field_response(solution).polarizability[0, :, axis]
        torch.testing.assert_close(found, slope, rtol=1e-7, atol=1e-9)
    none = torch.zeros(1, 3, dtype=torch.float64)
    slope = (dipole(none, 1e-4) - dipole(none, -1e-4)) / 2e-4
    torch.testing.assert_close(born_charges(solution)[4, 1], slope, rtol=1e-5, atol=1e-7)
    with pytest.raises(ConfigError, match=r"'fukui' needs one Fermi level.*use structure"):
        charge_response(solution)


def test_commands_read_the_fragments(tmp_path: Path) -> None:
    save_model(tmp_path / "m.model", passive_model("realspace"))
    write(tmp_path / "in.xyz", [two_waters((1.0, -1.0)), two_waters((0.0, 0.0))])
    files = [f"--{n}={tmp_path / f}" for n, f in (("model", "m.model"), ("configs", "in.xyz"))]
    more = ["--scf_options", "{charge_per: fragment}"]
    assert evaluate.main([*files, f"--output={tmp_path / 'e.xyz'}", *more]) == 0
    charges = [a.arrays["MACE_charges"] for a in read(tmp_path / "e.xyz", ":")]
    sizes = [[part.sum() for part in (q[:3], q[3:])] for q in charges]
    assert np.allclose(sizes, [[1.0, -1.0], [0.0, 0.0]], atol=1e-6)
    wanted = ["--properties", "polarizability"]
    traces = []
    for scf in (more, []):
        assert response.main([*files, f"--output={tmp_path / 'r.json'}", *scf, *wanted]) == 0
        lines = (tmp_path / "r.json").read_text().splitlines()
        traces.append([np.trace(json.loads(line)["response_polarizability"]) for line in lines])
    assert np.all(np.array(traces[0]) < traces[1])


def test_calculators_read_the_fragments() -> None:
    atoms = two_waters((1.0, -1.0))
    calculator = FixedPointSCFCalculator(
        passive_model("realspace").eval(), scf_options={"charge_per": "fragment"}
    )
    atoms.calc = calculator
    atoms.get_potential_energy()
    charges = calculator.results["charges"]
    assert charges[:3].sum() == pytest.approx(1.0, abs=1e-9)
    assert charges[3:].sum() == pytest.approx(-1.0, abs=1e-9)


def test_refusals() -> None:
    mode = make_mode("scf", charge_per="fragment")
    good = batch_with(two_waters((1.0, -1.0)))
    with pytest.raises(ConfigError, match="charge_per: fragment needs a passive rule"):
        observe(scaled_model(boundary="realspace"), good, mode)
    model = passive_model("realspace")
    with pytest.raises(DataError, match="needs cluster_id of every atom"):
        observe(model, batch_of(structure("realspace")), mode)
    wrong = replace(good, total_charge=good.total_charge + 1.0)
    with pytest.raises(DataError, match=r"formal charges sum to .* total_charge is 1 e"):
        observe(model, wrong, mode)
    rule = passive_model("realspace", anchor_isolated_atoms=False)
    rule.field_dependent_charges_map.isotropic = False
    with torch.no_grad():
        rule.field_dependent_charges_map.scale[:, 0] = 0.0
    with pytest.raises(ScfError, match="structure 0: the charge of the fragment of atom"):
        observe(rule, good, mode)
