"""Damaged archives are noticed before they are used; numbers that are not finite are not kept."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from damage import damages
from toy_training import ToyModel, toy_predict, toy_trainer

from fpmace.archive import checksum, open_archive, read_archive, write_archive
from fpmace.data.configuration import configuration_from_atoms
from fpmace.data.options import DataOptions
from fpmace.errors import ConfigError, DataError, ModelFileError, TrainingError
from fpmace.models.io import read_model_file, save_model
from fpmace.training.checkpoint import Checkpoint
from fpmace.training.losses import build_losses

pytestmark = pytest.mark.usefixtures("toy_model")


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    """A finished toy training."""
    trainer = toy_trainer(tmp_path)
    trainer.run()
    return SimpleNamespace(store=trainer.store, model=trainer.model, folder=tmp_path)


@pytest.mark.parametrize("kind", ["checkpoint", "model"])
def test_damage_is_noticed_or_harmless(run, kind):
    path = run.store.path(6) if kind == "checkpoint" else run.store.best_path(1)
    whole = path.read_bytes()
    intended = checksum(read_archive(path))
    noticed = 0
    for changed in damages(whole, 100):
        path.write_bytes(changed)
        try:
            if kind == "checkpoint":
                Checkpoint.load(path)
            else:
                read_model_file(path)
        except ModelFileError as error:
            noticed += "\n" not in str(error)
            continue
        # Padding and directory: what does not matter may change.
        assert checksum(read_archive(path)) == intended
    assert noticed > 100


def test_changed_configuration_of_a_model_is_refused(tmp_path):
    model = ToyModel()
    model.config = {"type": "Toy", "r_max": 4.0}
    write_archive(
        tmp_path / "a.model",
        {
            "format": "fpmace.model",
            "format_version": 1,
            "config": '{"type": "Toy", "r_max": 4.0}',
            "state_dict": model.state_dict(),
            "metadata": "{}",
        },
    )
    assert read_model_file(tmp_path / "a.model").config["r_max"] == 4.0
    content = torch.load(tmp_path / "a.model", weights_only=True)
    torch.save(content | {"config": '{"type": "Toy", "r_max": 5.0}'}, tmp_path / "a.model")
    with pytest.raises(ModelFileError, match="does not match its checksum"):
        read_model_file(tmp_path / "a.model")


def test_file_without_a_checksum_still_opens(run):
    path = run.store.path(6)
    content = torch.load(path, weights_only=True)
    content.pop("checksum")
    torch.save(content, path)
    assert Checkpoint.load(path).progress.epoch == 6


def test_damaged_checkpoint_gives_way_to_the_one_before_in_clear_words(run, caplog):
    last = run.store.path(6)
    last.write_bytes(last.read_bytes()[:-400])
    assert run.store.latest().progress.epoch == 5
    assert f"{last}: is damaged" in caplog.text
    assert "going on from the one before" in caplog.text
    again = toy_trainer(run.folder)
    again.run(resume=True)
    same = zip(again.model.parameters(), run.model.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in same)
    for path in run.store.folder.glob("*.pt"):
        path.write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"epoch-6\.pt: is damaged"):
        run.store.latest()


def _saved(tmp_path: Path, **tensors: torch.Tensor) -> Path:
    content = {"format": "x", "format_version": 1, **tensors}
    torch.save(content, tmp_path / "a")
    return tmp_path / "a"


def test_tensors_of_odd_kinds_are_refused(tmp_path):
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "huge": torch.zeros(1).expand(1_000_000_000),
        "meta": torch.zeros(3, device="meta"),
    }
    for name, tensor in odd.items():
        with pytest.raises(ModelFileError) as caught:
            read_archive(_saved(tmp_path, **{name: tensor}))
        assert "\n" not in str(caught.value)
    assert open_archive(_saved(tmp_path, t=torch.eye(3).t()), "x", 1, "test")["t"][0, 0] == 1.0


def test_compressed_records_are_refused(tmp_path):
    path = _saved(tmp_path, zeros=torch.zeros(1000))
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b", "w", 8) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
    with pytest.raises(ModelFileError, match="compressed records"):
        read_archive(tmp_path / "b")


def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    model = ToyModel()
    with torch.no_grad():
        model.products["weight"][0, 0] = math.nan
    with pytest.raises(ModelFileError, match=r"products\.weight' are not finite"):
        save_model(tmp_path / "a.model", model)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("epoch", [2, 6])
@pytest.mark.parametrize("what", ["weights", "averages", "optimizer"])
def test_poisoned_training_keeps_the_last_good_checkpoint(tmp_path, epoch, what):
    trainer = toy_trainer(tmp_path)
    step = trainer._step

    def poisoned(optimizer):
        step(optimizer)
        if trainer.progress.epoch == epoch - 1:
            first = next(iter(trainer.model.parameters()))
            targets = {
                "weights": first.data,
                "averages": trainer.average.shadow_params[0],
                "optimizer": optimizer.state[first]["exp_avg"],
            }
            targets[what].fill_(math.nan)

    trainer._step = poisoned
    with pytest.raises(TrainingError, match=r"not finite|non-finite"):
        trainer.run()
    latest = trainer.store.latest()
    assert latest.progress.epoch == epoch - 1
    assert all(torch.isfinite(value).all() for value in latest.model.values())


def poisoned_validation(epochs):
    """Energies of validations are NaN in the epochs given."""
    seen = []

    def predict(model, batch, **keywords):
        found = toy_predict(model, batch, **keywords)
        if not model.training:
            seen.append(batch)
            if (len(seen) - 1) // 2 in epochs:
                found.energy = found.energy * math.nan
        return found

    return predict


def test_validation_that_is_not_finite_is_said_and_is_no_improvement(tmp_path, caplog):
    trainer = toy_trainer(tmp_path, predict=poisoned_validation({1, 3}))
    trainer.run()
    assert "epoch 1: validation gives energy_per_atom that is not finite" in caplog.text
    assert trainer.store.latest().progress.epoch == 6
    lines = [
        json.loads(line) for line in (tmp_path / "toy_metrics.jsonl").read_text().splitlines()
    ]
    assert [line["valid"]["loss"] is None for line in lines] == [i in (1, 3) for i in range(7)]


def test_stage_without_a_finite_validation_ends_the_run(tmp_path):
    with pytest.raises(TrainingError, match="as did every validation of the stage"):
        toy_trainer(tmp_path, predict=poisoned_validation(set(range(4, 7)))).run()


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0, True, "1", None])
def test_weights_of_losses_are_finite(weight):
    for given in (weight, {"weight": weight}):
        with pytest.raises(ConfigError, match=r"loss\.forces: expected a finite weight"):
            build_losses({"forces": given}, where="loss")


@pytest.mark.parametrize("value", [1e30, -1e200, math.nan, math.inf])
@pytest.mark.parametrize("key", ["REF_energy", "REF_forces", "total_charge", "positions"])
def test_absurd_numbers_name_file_and_index(key, value):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])
    if key == "positions":
        atoms.positions[1, 2] = value
    elif key == "REF_forces":
        atoms.arrays[key] = np.array([[0, 0, 0], [0, value, 0]])
    else:
        atoms.info[key] = value
    with pytest.raises(DataError, match=rf"a\.xyz: configuration 7: {key}.*remove or mend it"):
        configuration_from_atoms(atoms, DataOptions(), source="a.xyz", index=7)
