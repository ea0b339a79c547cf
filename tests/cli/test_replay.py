"""Fine-tuning with replay: what is chosen, and a run with it from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data_cases import free_atom, water, write_xyz
from small_models import SMALL

from fpmace.calculators import MACECalculator
from fpmace.cli.convert import main as convert
from fpmace.cli.evaluate import main as evaluate
from fpmace.cli.train import main as train
from fpmace.config.load import ConfigProblems, resolve
from fpmace.data.dataset import dataset_from_configurations, open_dataset
from fpmace.data.joined import JoinedDataset
from fpmace.errors import DataError
from fpmace.models.io import load_model, save_model
from fpmace.registry import build
from fpmace.training.data import open_datasets
from fpmace.training.replay import farthest_points, fitting, selected


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tuned = [free_atom("H", -13.0), free_atom("O", -400.0)] + [water(seed=n) for n in range(4)]
    old = [water(seed=10 + n) for n in range(9)]
    for atoms in old[:3]:
        atoms.numbers[0] = 16
    write_xyz(tmp_path / "tuned.xyz", tuned)
    write_xyz(tmp_path / "old.xyz", old)
    options = {"atomic_numbers": [1, 8, 16], "atomic_energies": [-13.6, -430.0, -800.0]}
    torch.manual_seed(4)
    save_model(tmp_path / "base.model", build("model", {"type": "MACE", **SMALL, **options}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


CONFIG = """\
foundation_model: base.model
multiheads_finetuning: true
pt_train_file: old.xyz
num_samples_pt: 4
weight_pt_head: 0.5
train_file: tuned.xyz
valid_fraction: 0.5
loss: {energy_per_atom: 1.0, forces: 1.0}
max_num_epochs: 1
batch_size: 2
"""


def test_replay_from_the_command_line(folder: Path) -> None:
    (folder / "c.yaml").write_text(CONFIG)
    assert train(["--config", "c.yaml", "--test_file", "tuned.xyz"]) == 0
    model = load_model("fpmace.model")
    assert model.heads == ("Default", "pt_head")
    assert model.config["atomic_numbers"] == [1, 8]
    assert model.config["atomic_energies"][1] == [-13.6, -430.0]
    log = (folder / "fpmace.log").read_text()
    assert "replay: 6 of 9 configurations of old.xyz fit the elements, farthest points" in log
    first = (folder / "fpmace_config.yaml").read_text()
    assert train(["--config", "fpmace_config.yaml", "--work_dir", "again"]) == 0
    second = (folder / "again" / "fpmace_config.yaml").read_text()
    assert _values(first) == _values(second)
    states = [load_model(path).state_dict() for path in ("fpmace.model", "again/fpmace.model")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert convert(["fpmace.model", "tuned.model", "--head", "Default"]) == 0
    common = ["--configs", "tuned.xyz", "--output", "out.xyz", "--model"]
    assert evaluate([*common, "fpmace.model", "--head", "Default"]) == 0
    atoms = water(seed=1)
    energies = [
        MACECalculator("fpmace.model", head="Default").get_potential_energy(atoms),
        MACECalculator("tuned.model").get_potential_energy(atoms),
    ]
    assert energies[0] == pytest.approx(energies[1], abs=1e-10)


def _values(text: str) -> dict[str, Any]:
    """A configuration without the place of its run."""
    return {**yaml.safe_load(text), "work_dir": ""}


def options(**changes: Any) -> Any:
    values = {
        "foundation_model": "base.model",
        "multiheads_finetuning": True,
        "pt_train_file": "old.xyz",
        "train_file": "tuned.xyz",
        "valid_fraction": 0.5,
        "loss": {"forces": 1.0},
    }
    return resolve({**values, **changes}).config


def test_the_choice_is_that_of_the_seed(folder: Path) -> None:
    replay = open_dataset("old.xyz", 3.0)

    def choice(seed: int, how: str) -> tuple[int, ...]:
        config = options(num_samples_pt=3, seed=seed, subselect_pt=how)
        found = selected(config, replay, {1, 8})
        return tuple(int(found[n].index) for n in range(3))

    for how in ("fps", "random"):
        chosen = [choice(seed, how) for seed in range(1, 5)]
        assert chosen[0] == choice(1, how)
        assert all(min(items) >= 3 for items in chosen), "sulphur is not replayed"
        assert len(set(chosen)) > 1
    train = open_datasets(options(num_samples_pt=4)).train
    assert isinstance(train, JoinedDataset)
    assert {name: len(part) for name, part in train.parts.items()} == {"Default": 2, "pt_head": 2}


def test_farthest_points_cover_the_space() -> None:
    points = np.array([[0.0], [0.1], [10.0], [5.1], [0.2], [4.9]])
    assert farthest_points(points, 3, 0) == [0, 2, 3]
    assert sorted(farthest_points(points, 6, 4)) == list(range(6))


def test_elements_of_what_is_replayed(folder: Path) -> None:
    replay = open_dataset("old.xyz", 3.0)
    assert fitting(replay, {1, 8, 9}, "combinations") == [3, 4, 5, 6, 7, 8]
    assert fitting(replay, {1}, "inclusive") == list(range(9))
    assert fitting(replay, {1, 16}, "exclusive") == [0, 1, 2]
    assert fitting(replay, {2}, "none") == list(range(9))
    with pytest.raises(DataError, match=r"none of 9 configurations fits the elements He"):
        selected(options(), replay, {2})
    assert dataset_from_configurations(replay.configurations[:1], 3.0).info.n_configurations == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"foundation_model": None}, "multiheads_finetuning: needs a foundation_model"),
        ({"pt_train_file": None}, "pt_train_file: missing; multiheads"),
        ({"multiheads_finetuning": False}, "pt_train_file: is for multiheads_finetuning"),
        ({"heads": {"a": {}, "b": {}}}, "train_file: whose"),
        ({"num_samples_pt": 0}, "num_samples_pt"),
    ],
)
def test_options_that_do_not_fit(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigProblems, match=message):
        options(**changes)
