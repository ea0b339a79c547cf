"""Training steps on batches in which self-consistency was not reached everywhere."""

import dataclasses
import json
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_training import ToyModel, toy_batch, toy_predict, toy_stages, toy_trainer

from fpmace import registry
from fpmace.errors import TrainingError
from fpmace.scf.options import ScfOptions
from fpmace.training.step import GradientStep

SIZES = [3, 2, 4]
MODE = registry.build("training_mode", "implicit", scf=ScfOptions(on_failure="ignore"))


@dataclasses.dataclass
class Outcome:
    """What training reads of an ``ScfResult``."""

    converged: torch.Tensor

    @property
    def usable(self):
        return self.converged

    @property
    def status(self):
        return (~self.converged).long()

    @property
    def n_steps(self):
        return torch.ones_like(self.status)

    @property
    def charge_error(self):
        return torch.zeros(len(self.converged))

    density_change = charge_error
    diagnostics = None


def failing_predict(failed, *, value=None):
    """Predicts as the toy does; ``failed`` configurations do not converge.

    ``value``: factor of their energies and forces, such as NaN.
    """
    calls = []

    def predict(model, batch, **keywords):
        calls.append(batch.index.tolist())
        found = toy_predict(model, batch, **keywords)
        lost = torch.tensor([index in failed for index in batch.index.tolist()])
        if value is not None:
            factor = torch.where(lost, value, 1.0)
            found.energy = found.energy * factor
            found.forces = found.forces * factor[batch.batch].unsqueeze(-1)
        found.scf = Outcome(~lost)
        return found

    return predict, calls


def gradient(batch, predict, stage):
    model = ToyModel()
    result = GradientStep(model, stage, predict=predict, clip_grad=None)([batch], place="here")
    return result, [item.grad for item in model.parameters() if item.grad is not None]


def stage(**changes):
    return dataclasses.replace(toy_stages()[0], mode=MODE, **changes)


@pytest.mark.parametrize("value", [None, 1e6, math.nan, math.inf])
def test_loss_and_gradient_are_those_of_the_usable_structures(value):
    whole = toy_batch(SIZES, seed=4)
    rest = whole.select(torch.tensor([True, False, True]))
    predict, calls = failing_predict({1}, value=value)
    found, mine = gradient(whole, predict, stage())
    expected, theirs = gradient(rest, failing_predict(set())[0], stage())
    assert found.n_used == 2
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0.0)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    again = value is not None and not math.isfinite(value)
    assert calls == ([[0, 1, 2], [0, 2]] if again else [[0, 1, 2]])
    assert found.scf[0].converged.tolist() == [True, False, True]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_selected_graphs_are_those_of_a_smaller_batch(sizes, data):
    keep = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    if not any(keep):
        return
    whole = toy_batch(sizes, seed=len(sizes))
    part = whole.select(torch.tensor(keep))
    chosen = [size for size, kept in zip(sizes, keep, strict=True) if kept]
    assert part.atoms_per_graph.tolist() == chosen
    assert part.batch.tolist() == [g for g, size in enumerate(chosen) for _ in range(size)]
    assert part.index.tolist() == [g for g, kept in enumerate(keep) if kept]
    atoms = [i for i, g in enumerate(whole.batch.tolist()) if keep[g]]
    assert torch.equal(part.labels["forces"], whole.labels["forces"][atoms])
    assert torch.equal(part.labels["energy"], whole.labels["energy"][torch.tensor(keep)])


def test_edges_of_selected_graphs_are_numbered_anew():
    batch = dataclasses.replace(
        toy_batch([2, 3, 2]),
        edge_index=torch.tensor([[1, 0, 4, 6, 5], [0, 1, 2, 5, 6]]),
        unit_shifts=torch.arange(15.0).view(5, 3),
    )
    part = batch.select(torch.tensor([True, False, True]))
    assert part.edge_index.tolist() == [[1, 0, 3, 2], [0, 1, 2, 3]]
    assert part.unit_shifts[:, 0].tolist() == [0.0, 3.0, 9.0, 12.0]


def run(folder, failed, **changes):
    predict, _ = failing_predict(failed)
    trainer = toy_trainer(folder, predict=predict, **changes)
    trainer.stages = [dataclasses.replace(item, mode=MODE) for item in trainer.stages]
    return trainer


@pytest.mark.usefixtures("toy_model")
def test_batch_without_a_usable_structure_takes_no_step(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trainer = run(tmp_path, {0})
    trainer.run()
    assert trainer.progress.step == 2 * 7
    assert trainer.average.num_updates == 2 * 7
    assert "no structure reached self-consistency (training configurations 0)" in caplog.text
    assert "trained on 2/3 structures" in caplog.text
    lines = (tmp_path / "toy_metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["train"]["n_used"] == 2 for line in lines)


@pytest.mark.usefixtures("toy_model")
def test_stage_that_left_most_out_ends_with_the_remedy(tmp_path):
    with pytest.raises(TrainingError, match=r"stage 0 'first': 8 of 12 .*num_scf_steps"):
        run(tmp_path, {0, 1}).run()
    with pytest.raises(TrainingError, match="stage 0 'first': 8 of 12"):
        run(tmp_path, {0, 1}).run(resume=True)


@pytest.mark.usefixtures("toy_model")
def test_epoch_that_used_nothing_ends_training(tmp_path):
    trainer = run(tmp_path, {0, 1, 2})
    before = [item.clone() for item in trainer.model.parameters()]
    with pytest.raises(TrainingError, match="epoch 0: none of 3 training structures"):
        trainer.run()
    assert all(map(torch.equal, before, trainer.model.parameters()))
