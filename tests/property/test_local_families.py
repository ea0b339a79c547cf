"""Models whose charges follow from the surroundings alone: conservation, dipoles, stress."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from helpers.families import CELL, R_MAX, crystal, make_family
from scipy.spatial.transform import Rotation

from fpmace.calculators import MACECalculator
from fpmace.errors import ConfigError, DataError
from fpmace.models.base import Model
from fpmace.observables.predict import predict
from fpmace.observables.response import compute_response
from fpmace.testing.systems import atoms_batch

FORMAL = {1: 1.0, 8: -2.0}
FAMILIES: list[dict[str, Any]] = [
    {"type": "LocalCharges"},
    {"type": "LocalCharges", "conserve": "learned"},
    {"type": "FixedChargeBaselinedMACE", "atomic_formal_charges": FORMAL},
    {"type": "LocalSplitCharges", "atomic_formal_charges": FORMAL},
]


def make(options: dict[str, Any], **more: Any) -> Model:
    return make_family(3, **options, **more)


def quantity(model: Model, atoms: Atoms, name: str) -> torch.Tensor:
    found: torch.Tensor = getattr(
        predict(model, atoms_batch([atoms], R_MAX), outputs=(name,)), name
    )
    return found


@pytest.mark.parametrize("conserve", ["uniform", "learned"])
def test_conserved_charge_is_met_exactly(conserve: str) -> None:
    model = make({"type": "LocalCharges"}, conserve=conserve)
    atoms = crystal()
    atoms.info["total_charge"] = -1.5
    assert float(quantity(model, atoms, "total_charge")) == pytest.approx(-1.5, abs=1e-10)


def test_unconserved_charge_is_that_of_the_readouts() -> None:
    model = make({"type": "LocalCharges"})
    atoms = crystal()
    atoms.info["total_charge"] = 3.0
    found = quantity(model, atoms, "density")
    other = quantity(model, crystal(), "density")
    assert torch.equal(found, other)
    assert float(found[:, 0].sum().abs()) > 1e-3


@pytest.mark.parametrize(
    "more",
    [
        {"oxidation_state_mixer": "ProductOxidationStateMixer"},
        {"oxidation_state_mixer": "SumOxidationStateMixer"},
        {"static_bond_transfer_block": "NoFieldSymmetricPredictionSourceBlock"},
    ],
)
def test_transfer_conserves_charge_and_depends_on_its_inputs(more: dict[str, Any]) -> None:
    split = {"type": "LocalSplitCharges", "atomic_formal_charges": {1: 0.5, 8: -0.7}}
    model = make(split, **more)
    density = quantity(model, crystal(), "density")
    formal = torch.tensor([-0.7, 0.5, 0.5] * 2, dtype=torch.float64)
    assert float((density[:, 0] - formal).sum().abs()) < 1e-12
    assert float((density[:, 0] - formal).abs().max()) > 1e-4


def test_wrapping_an_atom_changes_the_dipole_by_its_formal_charge() -> None:
    model = make({"type": "LocalSplitCharges", "atomic_formal_charges": FORMAL})
    atoms, moved = crystal(), crystal()
    moved.positions[2] += CELL[1]
    change = quantity(model, moved, "dipole") - quantity(model, atoms, "dipole")
    assert np.allclose(change[0].numpy(), FORMAL[1] * CELL[1], atol=1e-12)


def test_dipole_of_a_molecule_is_that_of_its_multipoles() -> None:
    model = make({"type": "LocalSplitCharges", "atomic_formal_charges": FORMAL})
    atoms = crystal(pbc=False)
    density, dipole = quantity(model, atoms, "density"), quantity(model, atoms, "dipole")
    expected = atoms.positions.T @ density[:, 0].numpy() + density[:, [3, 1, 2]].sum(0).numpy()
    assert np.allclose(dipole[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("options", FAMILIES, ids=lambda o: o["type"] + o.get("conserve", ""))
@pytest.mark.parametrize("method", ["pbc", "slab", "mixed_periodic"])
def test_stress_on_a_triclinic_cell(options: dict[str, Any], method: str) -> None:
    model = make(options, pbc_handling=method)
    pbc = (True, True, False) if method == "slab" else True
    stress = quantity(model, crystal(pbc=pbc), "stress")[0].numpy()
    step, volume = 1e-4, abs(np.linalg.det(CELL))
    for a, b in [(0, 0), (0, 1), (2, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            strained = crystal(CELL @ (np.eye(3) + strain), pbc)
            energies.append(float(quantity(model, strained, "energy")))
        assert stress[a, b] == pytest.approx(
            (energies[0] - energies[1]) / (2 * step * volume), abs=1e-6
        )


def test_fitted_polarizability_turns_with_the_molecule() -> None:
    split = {"type": "LocalSplitCharges", "atomic_formal_charges": FORMAL}
    model = make(split, compute_polarizability=True)
    turn = Rotation.from_rotvec([0.3, 0.8, -0.5]).as_matrix()
    atoms, turned = crystal(pbc=False), crystal(pbc=False)
    turned.positions = atoms.positions @ turn.T
    first, second = (quantity(model, a, "polarizability")[0].numpy() for a in (atoms, turned))
    assert np.allclose(turn @ first @ turn.T, second, atol=1e-10)
    assert np.allclose(first, first.T, atol=1e-12)
    assert np.abs(first - np.trace(first) / 3 * np.eye(3)).max() > 1e-3


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"atomic_formal_charges.*gives no charge for O"):
        make({"type": "FixedChargeBaselinedMACE", "atomic_formal_charges": {1: 1.0}})
    with pytest.raises(ConfigError, match="formal_charges_from_data"):
        make({"type": "LocalSplitCharges"})
    with pytest.raises(ConfigError, match=r"none, uniform, learned|'none' or 'uniform'"):
        make({"type": "LocalCharges"}, conserve="fukui")
    model = make({"type": "LocalSplitCharges", "atomic_formal_charges": {1: 1.0, 8: -5.0}})
    with pytest.raises(DataError, match=r"-5 e is outside oxidation_state_range"):
        quantity(model, crystal(), "energy")
    model = make({"type": "FixedChargeBaselinedMACE", "formal_charges_from_data": True})
    with pytest.raises(DataError, match=r"formal_charges_from_data is true, but"):
        quantity(model, crystal(), "energy")


def test_calculator_reads_formal_charges_of_every_atom() -> None:
    model = make({"type": "FixedChargeBaselinedMACE", "formal_charges_from_data": True})
    atoms, values = crystal(pbc=False), np.array([-1.0, 0.5, 0.5, -0.8, 0.4, 0.4])
    atoms.calc = MACECalculator(model)
    with pytest.raises(DataError, match=r"atoms.arrays has no 'charges' \(formal_charges\)"):
        atoms.get_potential_energy()
    atoms.set_array("charges", values)
    before = atoms.get_potential_energy()
    assert np.allclose(atoms.get_charges(), values)
    atoms.set_array("charges", -0.5 * values)
    assert atoms.get_potential_energy() != pytest.approx(before)


def test_born_charges_in_a_cell_know_no_images_and_tend_to_the_open_ones() -> None:
    model = make({"type": "LocalCharges"}, conserve="learned", pbc_handling="realspace")

    def born(atoms: Atoms) -> torch.Tensor:
        found = compute_response(
            model, atoms_batch([atoms], R_MAX), ("born_charges",)
        ).born_charges
        assert found is not None
        return found

    open_cluster = Atoms("OHH", positions=[[1.0, 1, 1], [1.9, 1.2, 1], [0.6, 1.9, 1.1]])
    errors = []
    for length in (12.0, 48.0):
        boxed = open_cluster.copy()
        boxed.set_cell([length] * 3)
        boxed.pbc = True
        moved = boxed.copy()
        moved.positions[1] -= boxed.cell[0] - boxed.cell[2]
        assert torch.allclose(born(boxed), born(moved), atol=1e-10)
        errors.append(float((born(boxed) - born(open_cluster)).abs().max()))
    assert errors[1] < 0.1 * errors[0]
    dipoles = []
    for sign in (1, -1):
        atoms = open_cluster.copy()
        atoms.positions[2, 0] += sign * 1e-4
        dipoles.append(quantity(model, atoms, "dipole")[0])
    assert torch.allclose(born(open_cluster)[2, 0], (dipoles[0] - dipoles[1]) / 2e-4, atol=1e-6)
