import dataclasses
import json
import logging
import math

import pytest
import torch
from toy_training import ToyModel, toy_batch, toy_predict, toy_stages, toy_trainer

from fpmace import registry
from fpmace.errors import ConfigError, ModelFileError, TrainingError
from fpmace.training.optimizers import use_averaged_weights, use_training_weights
from fpmace.training.parameter_groups import WeightDecays, make_parameter_groups
from fpmace.training.schedulers import RateOptions, after_epoch, make_scheduler
from fpmace.training.stages import check_schedule

pytestmark = pytest.mark.usefixtures("toy_model")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


def killing_predict(after: int):
    calls = {"n": 0}

    def predict(*args, **keywords):
        calls["n"] += 1
        if calls["n"] > after:
            raise Killed
        return toy_predict(*args, **keywords)

    return predict


def weights(model):
    return torch.cat([item.detach().flatten() for item in model.parameters()])


def metrics(folder):
    lines = (folder / "toy_metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["seconds"]
    return records


def test_training_lowers_the_loss_and_writes_metrics(tmp_path):
    toy_trainer(tmp_path).run()
    records = metrics(tmp_path)
    assert [record["epoch"] for record in records] == list(range(7))
    assert [record["stage_name"] for record in records] == ["first"] * 4 + ["second"] * 3
    first = records[:4]
    assert first[-1]["train"]["loss"] < first[0]["train"]["loss"]
    terms = first[0]["train"]["terms"]
    assert set(terms) == {"energy_per_atom", "forces", "atomic_multipoles"}
    assert math.isclose(sum(terms.values()), first[0]["train"]["loss"], rel_tol=1e-9)
    assert first[0]["valid"]["errors"]["forces"]["rmse"] > 0
    assert set(records[-1]["lr"]) == {"embedding", "products_decay", "readouts", "local_charges"}


def test_a_loss_without_a_gradient_is_one_clear_line(tmp_path):
    def without_gradient(*args, **keywords):
        found = toy_predict(*args, **keywords)
        return dataclasses.replace(
            found,
            **{name: getattr(found, name).detach() for name in ("energy", "forces", "density")},
        )

    message = r"no parameter of the model has an influence on the loss in stage 0 'first', epoch 0"
    with pytest.raises(TrainingError, match=message):
        toy_trainer(tmp_path, predict=without_gradient).run()


def test_same_seed_gives_the_same_weights(tmp_path):
    models = []
    for name in ("a", "b"):
        trainer = toy_trainer(tmp_path / name)
        trainer.run()
        models.append(weights(trainer.model))
    assert torch.equal(*models)


@pytest.mark.parametrize("optimizer", ["adam", "schedulefree"])
@pytest.mark.parametrize("after", [1, 7, 13, 18, 22, 29, 33])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, optimizer, after):
    changes = {"optimizer": optimizer, "ema_decay": 0.9 if optimizer == "adam" else None}
    whole = toy_trainer(tmp_path / "whole", **changes)
    whole.run()
    with pytest.raises(Killed):
        toy_trainer(tmp_path / "cut", predict=killing_predict(after), **changes).run()
    torch.manual_seed(99)
    resumed = toy_trainer(tmp_path / "cut", model=ToyModel(seed=5 if after > 7 else 0), **changes)
    resumed.run(resume=True)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    for name, entry in (("toy_epoch-6.pt", "model"), ("toy_stage-1_best.model", "state_dict")):
        first, second = (
            torch.load(tmp_path / run / "checkpoints" / name, weights_only=True)[entry]
            for run in ("whole", "cut")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    whole = toy_trainer(tmp_path)
    whole.run()
    again = toy_trainer(tmp_path, model=ToyModel(seed=3))
    again.run(resume=True)
    assert torch.equal(weights(whole.model), weights(again.model))


def test_resume_refuses_another_model(tmp_path):
    toy_trainer(tmp_path).run()

    class Wider(ToyModel):
        def __init__(self):
            super().__init__()
            self.other = torch.nn.Linear(2, 2)

    with pytest.raises(ModelFileError, match="does not fit this model"):
        toy_trainer(tmp_path, model=Wider()).run(resume=True)
    with pytest.raises(ModelFileError, match="--ema"):
        toy_trainer(tmp_path, ema_decay=None).run(resume=True)


def test_final_model_is_the_best_of_the_last_stage(tmp_path):
    trainer = toy_trainer(tmp_path)
    progress = trainer.run()
    assert progress.stage == 2
    best = trainer.store.load_best(1)
    assert all(torch.equal(best[key], value) for key, value in trainer.model.state_dict().items())


def test_validation_uses_averages_and_training_goes_on_from_raw(tmp_path):
    trainer = toy_trainer(tmp_path, eval_interval=7)
    trainer.run()
    last = torch.load(tmp_path / "checkpoints" / "toy_epoch-6.pt", weights_only=True)
    best = trainer.store.load_best(1)
    raw = last["model"]["products.weight"]
    shadow = last["ema"]["shadow_params"]
    assert not torch.equal(raw, best["products.weight"])
    assert any(torch.equal(item, best["products.weight"]) for item in shadow)


def test_patience_ends_a_stage_early(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    trainer = toy_trainer(tmp_path, patience=1, optimizer="adam")
    monkeypatch.setattr(trainer, "_note_improvement", lambda *_: _worse(trainer))
    trainer.run()
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 4]
    assert "ends early" in caplog.text


def _worse(trainer):
    trainer.progress.waited += 1


def test_non_finite_loss_names_the_place(tmp_path):
    def predict(model, batch, **keywords):
        found = toy_predict(model, batch, **keywords)
        if 1 in batch.index.tolist():
            found.energy = found.energy * math.nan
        return found

    with pytest.raises(TrainingError) as caught:
        toy_trainer(tmp_path, predict=predict).run()
    message = str(caught.value)
    assert "stage 0 'first', epoch 0" in message
    assert "training configurations 1" in message
    assert "energy_per_atom" in message


def test_unreached_parameters_are_reported(tmp_path, caplog):
    toy_trainer(tmp_path).run()
    assert "no loss of this stage reaches 1 parameters: lr_source_maps.weight" in caplog.text


def test_every_parameter_is_in_one_group():
    decays = WeightDecays(weight_decay=0.1, field_block=0.2, local_charges=0.3)
    model = ToyModel()
    groups = make_parameter_groups(model, lr=0.01, group_lrs={"products": 0.5}, decays=decays)
    found = [id(item) for group in groups for item in group["params"]]
    assert sorted(found) == sorted(id(item) for item in model.parameters())
    by_name = {group["name"]: group for group in groups}
    assert by_name["products_decay"]["lr"] == 0.5
    assert by_name["products_decay"]["weight_decay"] == 0.1
    assert by_name["local_charges_decay"]["weight_decay"] == 0.3
    assert by_name["embedding"]["weight_decay"] == 0.0


def test_learning_rate_of_an_absent_group_is_refused():
    with pytest.raises(ConfigError, match="field_block_lr"):
        make_parameter_groups(
            ToyModel(), lr=0.01, group_lrs={"field_block": 0.5}, decays=WeightDecays()
        )


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_optimizers_step(name):
    model = ToyModel()
    groups = make_parameter_groups(model, lr=0.01, group_lrs={}, decays=WeightDecays())
    optimizer = registry.build("optimizer", name, parameter_groups=groups, lr=0.01)
    before = weights(model)
    for _ in range(2):
        use_training_weights(optimizer)
        optimizer.zero_grad()
        model(torch.ones(4, 3, dtype=torch.float64), toy_batch([4]))[0].sum().backward()
        optimizer.step()
        use_averaged_weights(optimizer)
    assert not torch.equal(before, weights(model))


def test_schedule_must_be_gapless():
    first, second = toy_stages()
    with pytest.raises(ConfigError, match="leaves a gap"):
        check_schedule([first, type(second)(**{**_fields(second), "start": 6})])
    with pytest.raises(ConfigError, match="overlaps"):
        check_schedule([first, type(second)(**{**_fields(second), "start": 2})])


def _fields(stage):
    return {name: getattr(stage, name) for name in stage.__dataclass_fields__}


def test_longer_schedule_goes_on_from_the_checkpoint(tmp_path):
    whole = toy_trainer(tmp_path / "whole")
    whole.stages[-1] = dataclasses.replace(whole.stages[-1], end=8)
    whole.run()
    toy_trainer(tmp_path / "cut").run()
    longer = toy_trainer(tmp_path / "cut")
    longer.stages[-1] = dataclasses.replace(longer.stages[-1], end=8)
    longer.run(resume=True)
    assert torch.equal(weights(whole.model), weights(longer.model))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_a_cosine_ends_with_its_stage_and_goes_on_when_that_is_longer():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    options = RateOptions(scheduler="CosineAnnealingLR")
    half = make_scheduler(optimizer, options, 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        after_epoch(half)
    assert rates == pytest.approx([2.0, 1.0 + 0.5**0.5, 1.0, 1.0 - 0.5**0.5])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    longer = make_scheduler(optimizer, options, 12)
    longer.load_state_dict(half.state_dict())
    after_epoch(longer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0 + math.cos(5 * math.pi / 12))


def test_early_end_of_a_stage_is_remembered(tmp_path):
    changes = {"patience": 1, "rates": RateOptions(scheduler="ExponentialLR")}
    whole = toy_trainer(tmp_path / "whole", **changes)
    whole.stages = [dataclasses.replace(stage, lr=0.0) for stage in whole.stages]
    whole.run()
    assert [record["epoch"] for record in metrics(tmp_path / "whole")] == [0, 1, 4, 5]
    # Training and validation of two epochs are ten predictions: this stops in the second stage.
    cut = toy_trainer(tmp_path / "cut", predict=killing_predict(12), **changes)
    cut.stages = whole.stages
    with pytest.raises(Killed):
        cut.run()
    resumed = toy_trainer(tmp_path / "cut", **changes)
    resumed.stages = whole.stages
    resumed.run(resume=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
