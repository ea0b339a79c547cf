"""The torch-sim interface, where torch-sim is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.testing.systems import atoms_batch, random_model, scale_response, water_box

torch_sim = pytest.importorskip("torch_sim")

SMALL = {"hidden_irreps": "2x0e+2x1o", "max_ell": 1, "correlation": 1, "r_max": 3.0}


@pytest.fixture(scope="module")
def model():
    made = random_model(seed=1, pbc_handling="pbc", radial_MLP=[4], **SMALL)
    scale_response(made, atoms_batch([water_box((2, 2, 1))], 3.0), -0.5)
    return made


def test_energies_and_forces_are_those_of_the_ase_calculator(model):
    from fpmace.calculators.torch_sim import TorchSimModel

    boxes = [water_box((2, 2, 1), seed=1), water_box((2, 1, 1), seed=2)]
    state = torch_sim.io.atoms_to_state(boxes, torch.device("cpu"), torch.float64)
    tight = {"scf_tolerance": 1e-10}
    found = TorchSimModel(model, scf_options=tight, compute_stress=True)(state)
    start = 0
    for number, atoms in enumerate(boxes):
        atoms.calc = FixedPointSCFCalculator(model, scf_options=tight)
        end = start + len(atoms)
        assert abs(float(found["energy"][number]) - atoms.get_potential_energy()) < 1e-8
        np.testing.assert_allclose(found["forces"][start:end], atoms.get_forces(), atol=1e-8)
        stress = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(found["stress"][number], stress, atol=1e-9)
        start = end
