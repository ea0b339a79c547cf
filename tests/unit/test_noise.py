"""Random numbers that belong to a structure, not to the batch it is in."""

import torch
from toy_training import toy_batch

from fpmace.data.noise import structure_noise


def test_noise_of_a_structure_is_the_same_in_every_batch():
    whole = toy_batch([3, 2, 4])
    part = whole.select(torch.tensor([False, True, True]))
    torch.manual_seed(5)
    first, second = (structure_noise(whole, whole.positions) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(structure_noise(part, part.positions), first[3:])
    assert not torch.isclose(first, second).any()


def test_noise_is_standard_normal_and_independent():
    batch = toy_batch([500] * 40)
    noise = structure_noise(batch, torch.zeros(batch.n_atoms, 4, dtype=torch.float64))
    assert torch.allclose(noise.mean(0), torch.zeros(4).double(), atol=0.03)
    assert torch.allclose(noise.T.cov(), torch.eye(4).double(), atol=0.03)
    for shift in (1, 500):
        assert abs(float((noise[shift:] * noise[:-shift]).mean())) < 0.02
    below = (noise < torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)).double().mean((1, 2))
    assert torch.allclose(
        below, torch.special.ndtr(torch.tensor([-1.0, 0.0, 1.0])).double(), atol=0.01
    )
