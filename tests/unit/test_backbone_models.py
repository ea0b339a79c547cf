"""MACE models as objects: configuration, options, elements, dtype."""

import numpy as np
import pytest
import torch

from fpmace.errors import ConfigError, DataError
from fpmace.models.mace import MACE, ScaleShiftMACE
from fpmace.testing.systems import structure_batch

OPTIONS = {
    "r_max": 3.0,
    "num_bessel": 3,
    "max_ell": 1,
    "hidden_irreps": "2x0e+2x1o",
    "MLP_irreps": "2x0e",
    "avg_num_neighbors": 3.0,
    "atomic_numbers": [1, 8],
    "atomic_energies": [-1.0, -2.0],
    "correlation": 2,
    "radial_MLP": [4],
}
WATER = {
    "positions": np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]),
    "numbers": np.array([8, 1, 1]),
    "cell": np.zeros((3, 3)),
    "pbc": np.array([False, False, False]),
}


def _energy(model, **changes):
    batch = structure_batch([{**WATER, **changes}], model.r_max)
    dtype = next(model.parameters()).dtype
    return model(model.geometry(batch.to(dtype=dtype)))


@pytest.mark.parametrize("kind", [MACE, ScaleShiftMACE])
def test_energies_add_up(kind):
    result = _energy(kind(**OPTIONS))
    torch.testing.assert_close(result.energy, result.node_energy.sum(0, keepdim=True))
    torch.testing.assert_close(result.energy, result.contributions.sum(1))
    atomic = torch.tensor([-4.0], dtype=torch.float64)
    torch.testing.assert_close(result.energy - atomic, result.interaction_energy)


def test_unknown_element_is_named():
    with pytest.raises(DataError, match=r"configuration 0: element Na \(Z=11\).*knows H, O"):
        _energy(MACE(**OPTIONS), numbers=np.array([8, 11, 1]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_irreps", "8x0e+4x1o"),
        ("hidden_irreps", "8x1o"),
        ("hidden_irreps", "eight scalars"),
        ("correlation", 0),
        ("correlation", [3]),
        ("r_max", 0.0),
        ("num_bessel", 0),
        ("num_interactions", 0),
        ("avg_num_neighbors", -1.0),
        ("num_polynomial_cutoff", 1),
        ("max_ell", -1),
        ("gate", "relu"),
        ("MLP_irreps", "4x1o"),
        ("interaction_cls", "RealAgnosticBlock"),
        ("interaction_cls_first", "Nonsense"),
        ("radial_type", "besel"),
        ("atomic_numbers", [8, 1]),
        ("atomic_energies", [1.0]),
    ],
)
def test_a_wrong_option_is_named(name, value):
    with pytest.raises(ConfigError, match=name):
        MACE(**{**OPTIONS, name: value})


def test_stress_is_symmetric_and_strain_moves_cell_and_positions():
    model = MACE(**OPTIONS)
    cell = np.diag([4.0, 4.5, 5.0])
    batch = structure_batch([{**WATER, "cell": cell, "pbc": np.array([True] * 3)}], model.r_max)
    strain = torch.tensor([[[0.0, 0.02, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.1]]])
    geometry = model.geometry(batch, strain.to(torch.float64))
    change = np.eye(3) + np.array([[0.0, 0.01, 0.0], [0.01, 0.0, 0.0], [0.0, 0.0, 0.1]])
    np.testing.assert_allclose(geometry.cell[0].numpy(), cell @ change)
    np.testing.assert_allclose(geometry.positions.numpy(), WATER["positions"] @ change)
    lengths = geometry.edge_vectors.norm(dim=1)
    torch.testing.assert_close(geometry.edge_lengths, lengths)
