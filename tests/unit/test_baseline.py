"""Trivial predictions that errors are compared with."""

import dataclasses

import torch

from fpmace.metrics.baseline import TrivialBaseline
from fpmace.testing.systems import atoms_batch, water_box


def labelled_batch():
    batch = atoms_batch([water_box((1, 1, 1), pbc=False), water_box((2, 1, 1), pbc=False)], 3.0)
    density = torch.where(
        (batch.atomic_numbers == 8)[:, None], torch.tensor([-0.8, 0.1, 0.0, 0.0]), 0.4
    ).double()
    oxygens = torch.tensor([1.0, 2.0], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    return dataclasses.replace(
        batch,
        labels={
            "energy": oxygens * -470.0,
            "atomic_multipoles": density,
            "fermi_level": torch.tensor([-5.0, -7.0], dtype=torch.float64),
        },
        weights=dict.fromkeys(("energy", "atomic_multipoles", "charges", "fermi_level"), ones),
    )


def test_means_and_energies_of_a_uniform_set_are_exact():
    batch = labelled_batch()
    found = TrivialBaseline.fit([batch]).predict(None, batch)
    torch.testing.assert_close(found.density, batch.labels["atomic_multipoles"])
    torch.testing.assert_close(found.energy, batch.labels["energy"])
    torch.testing.assert_close(found.fermi_level, torch.full((2,), -6.0, dtype=torch.float64))
    assert not found.forces.any()


def test_dipole_is_that_of_the_mean_multipoles():
    batch = labelled_batch()
    found = TrivialBaseline.fit([batch]).predict(None, batch)
    q = batch.labels["atomic_multipoles"][:3]
    expected = (q[:, :1] * batch.positions[:3] + q[:, [3, 1, 2]]).sum(0)
    torch.testing.assert_close(found.dipole[0], expected)


def test_unlabelled_structures_do_not_enter_the_means():
    batch = labelled_batch()
    first = torch.tensor([1.0, 0.0]).double()
    weights = {**batch.weights, "atomic_multipoles": first, "charges": first}
    spoiled = batch.labels["atomic_multipoles"].clone()
    spoiled[3:] = 9.0
    labels = {**batch.labels, "atomic_multipoles": spoiled}
    found = TrivialBaseline.fit([dataclasses.replace(batch, labels=labels, weights=weights)])
    assert abs(float(found.multipoles[8, 0]) + 0.8) < 1e-6
