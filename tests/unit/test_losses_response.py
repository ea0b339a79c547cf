"""The loss on pairs against differences written out, and what refuses a response loss."""

import dataclasses

import pytest
import torch
from toy_training import DTYPE, toy_batch

from fpmace import registry
from fpmace.data.batch import Batch
from fpmace.errors import ConfigError, TrainingError
from fpmace.metrics.errors import QUANTITIES, ErrorAccumulator
from fpmace.metrics.pairs import PairTracker
from fpmace.observables.types import Observables

SIZES = [3, 4, 3, 2, 4, 3]
NUMBERS = [7, 0, 7, -1, 0, 7]
"""Structures 1 and 4 are a pair; 0, 2 and 5 one geometry in three fields."""


def pair_batch() -> Batch:
    batch = toy_batch(SIZES, seed=3)
    generator = torch.Generator().manual_seed(8)
    field = 0.1 * torch.randn(6, 3, generator=generator, dtype=DTYPE)
    field[0] = 0.0
    labels = {**batch.labels, "pair_id": torch.tensor(NUMBERS)}
    weights = {
        **batch.weights,
        "pair_id": torch.tensor([1.0, 1.0, 0.5, 0.0, 3.0, 1.0], dtype=DTYPE),
        "dipole": torch.rand(6, 3, generator=generator, dtype=DTYPE) + 0.1,
        "energy": torch.rand(6, generator=generator, dtype=DTYPE) + 0.1,
    }
    weight = torch.rand(6, generator=generator, dtype=DTYPE) + 0.5
    return dataclasses.replace(
        batch, external_field=field, labels=labels, weights=weights, weight=weight
    )


def prediction(seed: int = 5) -> Observables:
    generator = torch.Generator().manual_seed(seed)
    energy = torch.randn(6, generator=generator, dtype=DTYPE).requires_grad_()
    dipole = torch.randn(6, 3, generator=generator, dtype=DTYPE).requires_grad_()
    return Observables(energy=energy, dipole=dipole)


def written_out(batch, found, dipole, energy, per_atom):
    total = 0.0
    for first, second in ((0, 2), (0, 5), (1, 4)):
        size = float((batch.external_field[second] - batch.external_field[first]).norm())
        scale = size * (SIZES[second] if per_atom else 1)
        weight = float(batch.weight[second] * batch.weights["pair_id"][second])
        error = found.dipole.detach() - batch.labels["dipole"]
        square = ((error[second] - error[first]) / scale) ** 2
        total += dipole * weight * float((batch.weights["dipole"][second] * square).sum()) / 3
        error = found.energy.detach() - batch.labels["energy"]
        own = float(batch.weights["energy"][second])
        total += energy * weight * own * float((error[second] - error[first]) / scale) ** 2
    return total / 6


@pytest.mark.parametrize(
    ("dipole", "energy", "per_atom"), [(1.0, 1.0, True), (1.0, 0.0, False), (0.0, 2.0, True)]
)
def test_value_is_that_of_the_written_out_differences(dipole, energy, per_atom):
    batch, found = pair_batch(), prediction()
    options = {"dipole": dipole, "energy": energy, "per_atom": per_atom}
    value = registry.build("loss", {"type": "field_pairs", **options})(batch, found)
    expected = written_out(batch, found, **options)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-12)
    value.backward()
    assert bool(found.dipole.grad.any()) == (dipole > 0)
    assert bool(found.energy.grad.any()) == (energy > 0)


def test_a_shift_of_all_dipoles_and_energies_does_not_matter():
    batch, found = pair_batch(), prediction()
    loss = registry.build("loss", "field_pairs")
    moved = Observables(energy=found.energy + 3.0, dipole=found.dipole - 2.0)
    assert loss(batch, moved).item() == pytest.approx(loss(batch, found).item(), rel=1e-10)


def test_a_batch_without_a_pair_counts_with_zero():
    batch, found = pair_batch(), prediction()
    batch.labels["pair_id"][:] = torch.arange(6)
    value = registry.build("loss", "field_pairs")(batch, found)
    assert float(value.detach()) == 0.0
    value.backward()


def test_members_with_different_atoms_are_refused():
    batch, found = pair_batch(), prediction()
    batch.labels["pair_id"][3] = 7
    with pytest.raises(TrainingError, match=r"configurations 0 and 3.*pair_id 7.*3 and 2 atoms"):
        registry.build("loss", "field_pairs")(batch, found)


def test_options_out_of_range():
    with pytest.raises(ConfigError, match=r"field_pairs.*not both 0"):
        registry.build("loss", {"type": "field_pairs", "dipole": 0.0, "energy": 0.0})


def test_errors_of_pairs_do_not_depend_on_the_batches():
    batch, found = pair_batch(), prediction()
    item = QUANTITIES["pair_polarizability"]
    group = torch.tensor([0, 1, 0, 0, 1, 0])
    whole = ErrorAccumulator([item], n_groups=2)
    whole.update(batch, found, group)

    def part(accumulator, keep):
        some = torch.zeros(6, dtype=torch.bool)
        some[keep] = True
        chosen = Observables(energy=found.energy[some], dipole=found.dipole[some])
        accumulator.update(batch.select(some), chosen, group[some])

    resumed = ErrorAccumulator([item], n_groups=2)
    part(resumed, [0, 1, 3])
    state = resumed.state_dict()
    resumed = ErrorAccumulator([item], n_groups=2)
    resumed.load_state_dict(state)
    part(resumed, [2, 4, 5])
    others = ErrorAccumulator([item], n_groups=2)
    merged = ErrorAccumulator([item], n_groups=2)
    part(merged, [0, 2, 4, 5])
    part(others, [1, 3])
    merged.merge(others)
    expected = whole.statistics()["pair_polarizability"]
    assert expected.count == 3
    error = found.dipole.detach() - batch.labels["dipole"]
    change = batch.external_field[4] - batch.external_field[1]
    along = float((error[4] - error[1]) @ change / (change @ change))
    assert whole.statistics(1)["pair_polarizability"].rmse == pytest.approx(abs(along))
    assert resumed.statistics()["pair_polarizability"] == expected
    assert merged.statistics()["pair_polarizability"].rmse == pytest.approx(expected.rmse)


def test_relative_errors_of_polarizabilities_weigh_weak_and_strong_answers_alike():
    batch = toy_batch([2, 3, 2])
    labels = torch.eye(3, dtype=DTYPE) * torch.tensor([0.1, 10.0, 0.0], dtype=DTYPE).view(3, 1, 1)
    labels = {**batch.labels, "polarizability": labels}
    weights = {**batch.weights, "polarizability": torch.tensor([1.0, 1.0, 1.0], dtype=DTYPE)}
    batch = dataclasses.replace(
        batch, labels=labels, weights=weights, weight=torch.ones(3, dtype=DTYPE)
    )
    found = Observables(
        energy=torch.zeros(3, dtype=DTYPE), polarizability=1.2 * labels["polarizability"]
    )
    loss = registry.build("loss", {"type": "polarizability", "relative": True})
    assert float(loss(batch, found)) == pytest.approx(2 * 3 * 0.2**2 / (3 * 9))


def test_a_dipole_that_stays_but_for_rounding_has_no_wrong_sign():
    batch = toy_batch([2, 2, 2, 2])
    field = torch.zeros(4, 3, dtype=DTYPE)
    field[1::2, 2] = 0.01
    labels = {**batch.labels, "pair_id": torch.tensor([0, 0, 1, 1])}
    labels["dipole"] = -1e-3 * field
    weights = {**batch.weights, "dipole": torch.ones(4, 3, dtype=DTYPE)}
    batch = dataclasses.replace(
        batch,
        external_field=field,
        labels=labels,
        weights=weights,
        weight=torch.ones(4, dtype=DTYPE),
    )
    dipole = torch.full((4, 3), 3.0, dtype=DTYPE)
    dipole[1] += 1e-15
    dipole[3, 2] += 1e-6
    tracker = PairTracker()
    found = Observables(energy=torch.zeros(4, dtype=DTYPE), dipole=dipole)
    tracker.update(batch, found, torch.zeros(4, dtype=torch.int64))
    assert (tracker.signs.n_pairs, tracker.signs.n_wrong) == (2, 1)
