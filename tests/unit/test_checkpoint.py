import json
import random

import numpy as np
import pytest
import torch
from toy_training import ToyModel

from fpmace.errors import ConfigError, ModelFileError
from fpmace.training import random_state
from fpmace.training.checkpoint import Checkpoint, CheckpointStore, Progress

pytestmark = pytest.mark.usefixtures("toy_model")


def _checkpoint(epoch: int = 3) -> Checkpoint:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return Checkpoint(
        config={"name": "run", "lr": 0.01},
        progress=Progress(stage=1, epoch=epoch, step=9, best_loss=0.5, best_epoch=2),
        model=model.state_dict(),
        ema={"decay": 0.9, "num_updates": 3, "shadow_params": [torch.ones(2)]},
        optimizer=optimizer.state_dict(),
        scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer).state_dict(),
        random=random_state.capture(),
    )


def test_checkpoint_roundtrip_is_exact_and_holds_no_code(tmp_path):
    written = _checkpoint()
    written.save(tmp_path / "c.pt")
    raw = torch.load(tmp_path / "c.pt", weights_only=True)
    assert raw["format"] == "fpmace.checkpoint"
    assert json.loads(raw["config"]) == written.config
    read = Checkpoint.load(tmp_path / "c.pt")
    assert read.progress == written.progress
    assert torch.equal(read.model["weight"], written.model["weight"])
    assert read.optimizer["state"][0]["step"] == written.optimizer["state"][0]["step"]


def test_store_keeps_the_last_and_finds_the_latest(tmp_path):
    store = CheckpointStore(tmp_path, "run", keep=2)
    assert store.latest() is None
    for epoch in (8, 9, 10):
        store.save(_checkpoint(epoch))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run_epoch-10.pt",
        "run_epoch-9.pt",
    ]
    assert store.latest().progress.epoch == 10


def test_earlier_run_is_set_aside_not_deleted(tmp_path, caplog):
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    store.save(_checkpoint(5))
    model = ToyModel()
    store.save_best(0, model)
    assert torch.equal(store.load_best(0)["products.weight"], model.products["weight"])
    store.set_aside()
    assert store.latest() is None
    assert store.load_best(0) is None
    assert (tmp_path / "checkpoints.previous" / "run_epoch-5.pt").is_file()
    assert "restart_latest" in caplog.text


def test_damaged_file_is_one_clear_error(tmp_path):
    store = CheckpointStore(tmp_path, "run")
    store.save(_checkpoint(4))
    path = store.path(4)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelFileError, match=r"run_epoch-4\.pt: is damaged"):
        store.latest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": "other"}, "is not a checkpoint of fpmace"),
        ({"format": "fpmace.checkpoint", "format_version": 99}, "format version 99"),
        ({"format": "fpmace.checkpoint", "format_version": 1}, "incomplete"),
    ],
)
def test_foreign_file_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelFileError, match=message):
        Checkpoint.load(tmp_path / "x.pt")


def test_missing_file_and_bad_keep(tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        Checkpoint.load(tmp_path / "none.pt")
    with pytest.raises(ConfigError, match="keep_checkpoints"):
        CheckpointStore(tmp_path, "run", keep=0)


def test_random_generators_continue(tmp_path):
    random_state.seed_all(7)
    torch.randn(3), random.random(), np.random.rand(2)  # noqa: NPY002
    state = random_state.capture()
    expected = (torch.randn(4), random.gauss(0, 1), np.random.randn(3))  # noqa: NPY002
    torch.save(state, tmp_path / "r.pt")
    random_state.restore(torch.load(tmp_path / "r.pt", weights_only=True))
    found = (torch.randn(4), random.gauss(0, 1), np.random.randn(3))  # noqa: NPY002
    assert torch.equal(expected[0], found[0])
    assert expected[1] == found[1]
    assert np.array_equal(expected[2], found[2])
