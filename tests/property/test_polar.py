"""PolarMACE: charge and spin held, one pass and self-consistency, inputs that must be given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from helpers.families import CELL, R_MAX, crystal, make_family

from fpmace.calculators import FixedPointSCFCalculator, MACECalculator
from fpmace.density_modes.base import DensityMode
from fpmace.errors import ConfigError, DataError
from fpmace.models.initial import rebuilt
from fpmace.models.polar import PolarMACE
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.model_contract import check_forces, check_saving
from fpmace.testing.systems import atoms_batch


def polar(**options: Any) -> PolarMACE:
    model = make_family(5, type="PolarMACE", **options)
    assert isinstance(model, PolarMACE)
    return model


def scf(**options: Any) -> DensityMode:
    settings = {"scf_tolerance": 1e-12, "num_scf_steps": 200, "on_failure": "raise", **options}
    mode: DensityMode = build("training_mode", "scf", scf=ScfOptions(**settings))
    return mode


def found(model: PolarMACE, atoms: list[Atoms], *outputs: str, **options: Any) -> Observables:
    mode = scf(**options) if model.solves_self_consistency else None
    return predict(model, atoms_batch(atoms, R_MAX), mode=mode, outputs=outputs or ("energy",))


def states() -> list[Atoms]:
    """Crystals, a slab and a molecule in several states of charge and spin, in a field."""
    given = [(True, 0.0, 1.0), (True, 2.0, 3.0), ((True, True, False), -1.0, 2.0)]
    result = []
    for pbc, charge, spin in [*given, (False, 1.0, 4.0), (False, -3.0, 2.0)]:
        atoms = crystal(pbc=pbc)
        if not isinstance(pbc, bool):
            atoms.set_cell(np.diag([4.0, 4.2, 14.0]))
        atoms.info.update(total_charge=charge, total_spin=spin, external_field=(0.02, 0.01, 0.0))
        result.append(atoms)
    return result


@pytest.mark.parametrize("recursion", ["steps", "fixed_point"])
@pytest.mark.parametrize("weights", ["positive", "signed"])
@pytest.mark.parametrize("max_l", [0, 1])
def test_charge_and_spin_of_every_structure_are_met(
    recursion: str, weights: str, max_l: int
) -> None:
    model = polar(recursion=recursion, fukui_weights=weights, atomic_multipoles_max_l=max_l)
    if weights == "signed":
        with torch.no_grad():
            model.fukui_source_map.linear_2.bias.fill_(20.0)
            for update in model.updates:
                update.readout.linear_2.bias.fill_(20.0)
    atoms = states()
    result = found(model, atoms, "density", "spin_density")
    assert result.density is not None
    assert result.spin_density is not None
    batch = atoms_batch(atoms, R_MAX)
    for values, expected in (
        (result.density, batch.total_charge),
        (result.spin_density, batch.total_spin - 1.0),
    ):
        total = torch.zeros_like(expected).index_add(0, batch.batch, values[:, 0])
        assert float((total - expected).abs().max()) < 1e-10


def test_the_first_evaluation_of_the_iterated_map_is_the_one_pass_model() -> None:
    model = polar()
    iterated = rebuilt(model, recursion="fixed_point")
    atoms = states()[1:2]
    batch = atoms_batch(atoms, R_MAX)
    once = found(model, atoms, "density", "spin_density")
    layers = iterated.backbone(iterated.geometry(batch)).node_feats_per_layer
    state = iterated.spin_state(layers, iterated.geometry(batch), batch)
    problem = iterated.problem(state, batch)
    first, _ = problem.evaluate(problem.local_density, torch.zeros(batch.n_atoms))
    assert once.density is not None
    assert once.spin_density is not None
    assert torch.allclose(first, torch.cat([once.density, once.spin_density], 1), atol=1e-13)
    solved = found(iterated, atoms, "density")
    assert solved.density is not None
    assert float((solved.density - once.density).abs().max()) > 1e-5


def test_the_solution_is_a_fixed_point_whatever_the_start() -> None:
    model = polar(recursion="fixed_point")
    energies = [
        found(model, states(), initial_density=start).energy for start in ("local_guess", "zero")
    ]
    assert torch.allclose(*energies, rtol=0.0, atol=1e-9)


def test_training_modes_agree_on_a_loss_with_forces() -> None:
    model = polar(recursion="fixed_point")
    batch = atoms_batch(states()[2:4], R_MAX)
    settings = {"scf_tolerance": 1e-13, "num_scf_steps": 60, "mixing_parameter": 0.8}
    weights = [item for item in model.parameters() if item.numel()]
    gradients = []
    for name in ("implicit", "unroll_scf", "linearize_solve"):
        mode = build("training_mode", name, scf=ScfOptions(on_failure="ignore", **settings))
        result = predict(model, batch, mode=mode, outputs=("forces",), create_graph=True)
        assert result.forces is not None
        loss = result.energy.sum() + result.forces.square().sum()
        gradients.append(torch.autograd.grad(loss, weights, materialize_grads=True))
    scale = max(float(item.abs().max()) for item in gradients[0])
    for other in gradients[1:]:
        for first, second in zip(gradients[0], other, strict=True):
            assert float((first - second).abs().max()) < 1e-7 * scale


def test_the_direct_mode_sees_labelled_charges_and_spins() -> None:
    model = polar(recursion="fixed_point")
    batch = atoms_batch(states()[3:4], R_MAX)
    first = found(model, states()[3:4], "density", "spin_density")
    assert first.density is not None
    assert first.spin_density is not None
    labels = {
        "atomic_multipoles": first.density,
        "spins": first.spin_density[:, 0],
        "fermi_level": torch.zeros(1),
    }
    known = {"spins": torch.ones(1), "fermi_level": torch.zeros(1)}
    mode = build("training_mode", "direct")
    labelled = replace(batch, labels=labels, weights=known)
    again = predict(model, labelled, mode=mode, outputs=("spin_density",))
    unlabelled = replace(batch, labels=labels, weights={**known, "spins": torch.zeros(1)})
    other = predict(model, unlabelled, mode=mode, outputs=("spin_density",))
    assert again.spin_density is not None
    assert other.spin_density is not None
    close = (again.spin_density - first.spin_density).abs().max()
    far = (other.spin_density - first.spin_density).abs().max()
    assert float(close) < float(far)


@pytest.mark.parametrize("recursion", ["steps", "fixed_point"])
@pytest.mark.parametrize("method", ["pbc", "slab", "mixed_periodic"])
def test_stress_of_a_charged_triclinic_cell(recursion: str, method: str) -> None:
    model = polar(recursion=recursion, pbc_handling=method)
    pbc = (True, True, False) if method == "slab" else True
    structure = crystal(pbc=pbc)
    structure.info.update(total_charge=1.0, total_spin=2.0, external_field=(0.0, 0.01, 0.02))
    stress = found(model, [structure], "stress").stress
    assert stress is not None
    step, volume = 1e-4, abs(np.linalg.det(CELL))
    for a, b in [(0, 0), (0, 1), (2, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            strained = crystal(CELL @ (np.eye(3) + strain), pbc)
            strained.info = dict(structure.info)
            energies.append(float(found(model, [strained]).energy))
        slope = (energies[0] - energies[1]) / (2 * step * volume)
        assert float(stress[0, a, b]) == pytest.approx(slope, abs=1e-6)


def test_a_shared_readout_reads_every_layer() -> None:
    own, shared = polar(gate="tanh"), polar(gate="tanh", shared_readout=True)
    assert len(own.readouts) == 2
    (readout,) = shared.readouts
    check_forces(shared)
    check_saving(shared)
    batch = atoms_batch([crystal()], R_MAX)
    geometry = shared.geometry(batch)
    layers = shared.backbone(geometry).node_feats_per_layer
    energies = shared.readout_energies(layers, geometry)
    assert [torch.equal(e, readout(h)) for e, h in zip(energies, layers, strict=True)] == [
        True
    ] * 2


def test_a_left_handed_cell_is_the_same_crystal() -> None:
    model = polar()
    right, left = crystal(), crystal()
    left.set_cell(CELL[[1, 0, 2]])
    energies = [float(found(model, [atoms]).energy) for atoms in (right, left)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-9)


def test_the_constant_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds charge and spin"):
        found(polar(recursion="fixed_point"), states(), constant_charge=False)


def test_a_calculator_must_be_told_charge_and_spin() -> None:
    model = polar()
    atoms = crystal(pbc=False)
    atoms.calc = MACECalculator(model)
    with pytest.raises(DataError, match=r"no .total_charge.+default_total_charge"):
        atoms.get_potential_energy()
    atoms.info["charge"] = 1.0
    with pytest.raises(DataError, match=r"no .total_spin.+default_total_spin"):
        atoms.get_potential_energy()
    atoms.info["spin"] = 2
    doublet = atoms.get_potential_energy()
    assert atoms.calc.results["spins"].sum() == pytest.approx(1.0, abs=1e-10)
    assert atoms.get_charges().sum() == pytest.approx(1.0, abs=1e-10)
    atoms.info["spin"] = 4
    assert atoms.get_potential_energy() != doublet
    atoms.info = {"total_charge": 1.0}
    atoms.calc = MACECalculator(model, default_total_spin=2, default_total_charge=-5)
    assert atoms.get_potential_energy() == pytest.approx(doublet, abs=1e-12)
    atoms.info["total_spin"] = 0
    with pytest.raises(DataError, match="multiplicity"):
        atoms.get_potential_energy()
    with pytest.raises(ConfigError, match="default_total_spin"):
        MACECalculator(model, default_total_spin=0)


def test_dynamics_of_the_iterated_model_start_from_the_last_solution() -> None:
    atoms = crystal(pbc=False)
    atoms.info.update(total_charge=0.0, total_spin=3.0)
    model = polar(recursion="fixed_point")
    atoms.calc = FixedPointSCFCalculator(model, scf_options={"scf_tolerance": 1e-10})
    atoms.get_potential_energy()
    first = atoms.calc.results["num_map_evaluations"]
    atoms.positions[0, 0] += 1e-4
    warm = atoms.get_potential_energy()
    assert atoms.calc.results["num_map_evaluations"] < first
    atoms.calc = FixedPointSCFCalculator(model, scf_options={"scf_tolerance": 1e-10})
    assert warm == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
