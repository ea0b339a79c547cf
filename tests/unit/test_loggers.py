"""Loggers: what they are told, what they leave on disk, and one of one's own."""

from __future__ import annotations

import builtins
import time
from pathlib import Path

import numpy as np
import pytest
from toy_training import toy_trainer

from fpmace import registry
from fpmace.config.load import load_config
from fpmace.errors import ConfigError
from fpmace.training.loggers import Logger, build_loggers, scalars
from fpmace.training.recorder import MetricsRecorder


class Memory(Logger):
    """Keeps what it is told."""

    def __init__(self, *, folder: Path, name: str, size: int = 3) -> None:
        self.place, self.size = folder / name, size
        self.begun: list[int] = []
        self.epochs: dict[int, dict[str, float]] = {}

    def begin(self, config, *, after_epoch):
        self.begun.append(after_epoch)

    def epoch(self, epoch, values):
        self.epochs[epoch] = dict(values)


@pytest.fixture
def memory():
    registry.register_logger("memory")(Memory)
    yield
    registry.unregister("logger", "memory")


def test_numbers_of_an_epoch_by_path():
    record = {
        "epoch": 3,
        "stage_name": "a",
        "lr": {"all": 0.1},
        "train": {"loss": 1.0, "n_graphs": 4, "scf": {"converged": 4}},
        "valid": {"errors": {"forces": {"rmse": 0.2, "max": float("nan")}}},
        "quick": None,
    }
    assert scalars(record) == {
        "lr/all": 0.1,
        "train/loss": 1.0,
        "train/scf/converged": 4.0,
        "valid/errors/forces/rmse": 0.2,
    }


def test_a_logger_of_ones_own_is_told_of_every_epoch(memory, tmp_path, toy_model):
    (logger,) = build_loggers([{"type": "memory", "size": 5}], folder=tmp_path, name="run")
    assert (logger.place, logger.size) == (tmp_path / "run", 5)
    trainer = toy_trainer(tmp_path)
    trainer.recorder = MetricsRecorder(trainer.recorder.path, loggers=[logger])
    trainer.run()
    assert logger.begun == [-1]
    assert list(logger.epochs) == list(range(7))
    assert logger.epochs[6]["valid/errors/forces/rmse"] > 0
    again = toy_trainer(tmp_path)
    again.recorder = MetricsRecorder(again.recorder.path, loggers=[logger])
    again.run(resume=True)
    assert logger.begun == [-1, 6]


@pytest.mark.parametrize("text", ["[memory]", "memory", "[{type: memory, size: 4}]"])
def test_they_are_named_in_the_configuration(memory, tmp_path, text):
    data = Path(__file__).parents[2] / "data" / "quickstart" / "valid.xyz"
    (tmp_path / "a.yaml").write_text(f"loggers: {text}\ntrain_file: {data}\n")
    config = load_config(["--config", f"{tmp_path}/a.yaml"]).config
    assert config.loggers[0]["type"] == "memory"
    assert config.loggers[0]["size"] == (4 if "4" in text else 3)
    for wrong, message in {"memry": "did you mean 'memory'", "{type: memory, a: 1}": "a"}.items():
        (tmp_path / "a.yaml").write_text(f"loggers: [{wrong}]\ntrain_file: {data}\n")
        with pytest.raises(ConfigError, match=r"loggers\.0.*" + message):
            load_config(["--config", f"{tmp_path}/a.yaml"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_not_there_is_one_line(name, tmp_path, monkeypatch):
    found = builtins.__import__

    def without(module, *rest, **named):
        if module.split(".")[0] in ("tensorboard", "wandb") or "tensorboard" in module:
            raise ImportError("not here")
        return found(module, *rest, **named)

    registry.names("logger")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf"pip install 'fpmace\[{name}\]'"):
        build_loggers([name], folder=tmp_path, name="run")


def told(logger: Logger) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    logger.begin({"lr": 0.1}, after_epoch=-1)
    for epoch in range(3):
        logger.epoch(epoch, {"train/loss": 1.0 / (epoch + 1)})
    logger.end({"valid/errors/forces/rmse": 0.5}, {"training": figure})
    logger.close()


@pytest.mark.filterwarnings("ignore")
def test_event_files_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is in the extra [tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (logger,) = build_loggers(["tensorboard"], folder=tmp_path, name="run")
    assert not (tmp_path / "tensorboard").exists()
    told(logger)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run"))
    events.Reload()
    values = [item.value for item in events.Scalars("train/loss")]
    assert values == pytest.approx(1.0 / np.arange(1, 4))
    assert "final/valid/errors/forces/rmse" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["training"]


@pytest.mark.filterwarnings("ignore")
def test_offline_runs_of_wandb(tmp_path):
    pytest.importorskip("wandb", reason="wandb is in the extra [wandb]")
    (logger,) = build_loggers([{"type": "wandb", "project": "p"}], folder=tmp_path, name="run")
    told(logger)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("run-*.wandb")
    deadline = time.monotonic() + 30
    # Written by a process of its own, a moment after the run has ended.
    while b"final/valid/errors/forces/rmse" not in log.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert b"train/loss" in log.read_bytes()
    assert list(run.glob("files/media/images/training*.png"))
