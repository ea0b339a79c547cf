"""A training with several heads, from its files to its model; interrupted and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import free_atom, water, write_xyz
from small_models import SMALL

from fpmace.config.load import ConfigProblems, resolve
from fpmace.models.io import load_model
from fpmace.training.run import run_training
from fpmace.training.trainer import Trainer


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    shifts = {"xtb": 0.0, "dft": 7.0}
    for name, shift in shifts.items():
        frames = [free_atom("H", -13.0 + shift), free_atom("O", -400.0 + shift)]
        frames += [water(seed=seed) for seed in range(6)]
        for atoms in frames[2:]:
            atoms.info["REF_energy"] += shift - 410.0
        write_xyz(tmp_path / f"{name}.xyz", frames)
    files = {name: {"train_file": str(tmp_path / f"{name}.xyz")} for name in shifts}
    return {
        "model": {"type": "ScaleShiftMACE", **SMALL},
        "heads": {**files, "dft": {**files["dft"], "weight": 2.0}},
        "E0s": "IsolatedAtom",
        "valid_fraction": 0.3,
        "batch_size": 3,
        "work_dir": str(tmp_path / "run"),
        "train_schedule": {
            0: {"start": 0, "end": 2, "lr": 0.01, "loss": {"energy_per_atom": 1.0, "forces": 1.0}}
        },
    }


def test_heads_from_files_to_model(values: dict[str, Any], tmp_path: Path) -> None:
    result = run_training(resolve(values))
    assert result.model_path is not None
    model = load_model(result.model_path)
    assert model.heads == ("xtb", "dft")
    assert model.config["atomic_energies"] == [[-13.0, -400.0], [-6.0, -393.0]]
    assert model.config["atomic_inter_shift"][0] != model.config["atomic_inter_shift"][1]
    assert set(model.metadata["keys"]["heads"]) == {"xtb", "dft"}
    valid = result.evaluations["valid"]
    assert set(valid.errors_by_head) == {"xtb", "dft"}
    assert {n: e["energy"].count for n, e in valid.errors_by_head.items()} == {"xtb": 2, "dft": 2}
    assert set(valid.errors_by_group) == {"xtb, water", "dft, water"}
    log = (tmp_path / "run" / "fpmace.log").read_text()
    assert "errors by head:" in log
    assert "valid, dft" in log
    record = json.loads((tmp_path / "run" / "fpmace_metrics.jsonl").read_text().splitlines()[-1])
    heads = record["valid"]["heads"]
    assert {"loss", "terms", "errors"} <= set(heads["dft"])
    counts = {"xtb": 1.0, "dft": 2.0}
    weighted = sum(counts[n] * heads[n]["terms"]["forces"] / counts[n] for n in counts) / 2
    assert record["valid"]["terms"]["forces"] == pytest.approx(weighted)


def test_a_resumed_run_is_that_which_was_not_stopped(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_training(resolve(values)).model_path
    values["work_dir"] = str(tmp_path / "stopped")
    step = Trainer._note_improvement

    def stop(self: Any, *given: Any) -> None:
        step(self, *given)
        if self.progress.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_note_improvement", stop)
        with pytest.raises(KeyboardInterrupt):
            run_training(resolve(values))
    resumed = run_training(resolve({**values, "restart_latest": True})).model_path
    assert whole is not None
    assert resumed is not None
    first, second = load_model(whole).state_dict(), load_model(resumed).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_further_training_needs_all_heads(values: dict[str, Any], tmp_path: Path) -> None:
    start = str(run_training(resolve(values)).model_path)
    values |= {"init_from": start, "work_dir": str(tmp_path / "more"), "E0s": "IsolatedAtom"}
    again = run_training(resolve(values)).model_path
    assert again is not None
    assert load_model(again).heads == ("xtb", "dft")
    values["heads"] = {"xtb": values["heads"]["xtb"]}
    with pytest.raises(
        ConfigProblems, match=r"heads: has xtb, but the model has xtb, dft; .*--head"
    ):
        resolve(values)
