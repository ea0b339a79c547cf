"""One rule about boundaries: data checks, electrostatics and calculators take the same cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms

from fpmace.boundaries import SHAPE_TOLERANCE
from fpmace.calculators import GTOCoulombCalculator
from fpmace.calculators.inputs import InputKeys, configuration, read_inputs
from fpmace.data.checks import pbc_problem
from fpmace.electrostatics import ElectrostaticsOptions, GTOElectrostatics
from fpmace.errors import DataError

SHEAR = np.array([[0.0, 0.0, 1.0], [0.0, 0.5, 0.0], [1.0, 0.0, -0.5]])


def accepted(method: str, atoms: Atoms) -> list[bool]:
    """By the data check, the electrostatics and the calculator."""
    inputs = read_inputs(atoms, InputKeys(), where="structure")
    config = configuration(atoms, inputs, source="structure", index=0)
    found = [pbc_problem(config, method) is None]
    cell, pbc = torch.tensor(atoms.cell.array), torch.tensor(atoms.pbc)
    model = GTOElectrostatics(ElectrostaticsOptions(pbc_handling=method))
    calculator = GTOCoulombCalculator(pbc_handling=method, smearing_width=1.5)
    for attempt in (
        lambda: model.plan_structure(torch.tensor(atoms.positions), cell, pbc),
        lambda: calculator.get_potential_energy(atoms),
    ):
        try:
            attempt()
        except DataError:
            found.append(False)
        else:
            found.append(True)
    return found


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0.0, True), (1e-5, True), (0.8 * SHAPE_TOLERANCE, True), (3.0 * SHAPE_TOLERANCE, False)],
)
@pytest.mark.parametrize("method", ["slab", "molecule_in_box", "mixed_periodic", "auto", "pbc"])
def test_the_same_strain_is_allowed_everywhere(method: str, size: float, expected: bool) -> None:
    kinds = {"slab": [(True, True, False)], "pbc": [(True, True, True)]}
    both = [(False, False, False), (True, True, False)]
    for pbc in kinds.get(method, both[:1] if method == "molecule_in_box" else both):
        atoms = Atoms("NaCl", [[1.0, 2.0, 3.0], [3.0, 2.0, 3.0]], cell=np.eye(3) * 9.0, pbc=pbc)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + size * SHEAR))
        atoms.arrays["multipoles"] = np.array([1.0, -1.0])
        has_shape = method != "pbc" and not (method == "auto" and not any(pbc))
        assert accepted(method, atoms) == [expected or not has_shape] * 3
