"""``--init_from``: a training that starts from a model file or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import free_atom, water, write_xyz
from small_models import SMALL_FIXED_POINT

from fpmace.config.load import ConfigProblems, ResolvedConfig, resolve
from fpmace.errors import DataError
from fpmace.models.initial import load_initial
from fpmace.models.io import load_model
from fpmace.training.checkpoint import Checkpoint
from fpmace.training.run import run_training

STAGE = {"start": 0, "loss": {"atomic_multipoles": 1.0, "energy_per_atom": 1.0}}
DIRECT = {"fixed_point_training_options": {"mode": "direct"}}


def configuration(folder: Path, **options: Any) -> ResolvedConfig:
    values = {
        "train_file": str(folder / "train.xyz"),
        "work_dir": str(folder / "run"),
        "valid_fraction": 0.4,
        "batch_size": 2,
        "E0s": "IsolatedAtom",
        "eval_interval": 1,
        "train_schedule": {0: {**STAGE, **DIRECT, "end": 1, "lr": 0.01}},
    }
    return resolve({name: v for name, v in {**values, **options}.items() if v is not None})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two stages."""
    folder = tmp_path_factory.mktemp("first")
    atoms = [free_atom("H", -13.0), free_atom("O", -400.0)]
    write_xyz(folder / "train.xyz", atoms + [water(seed=seed) for seed in range(5)])
    later = {**STAGE, **DIRECT, "start": 2, "end": 2, "lr": 0.001}
    schedule = {0: {**STAGE, **DIRECT, "end": 1, "lr": 0.01}, 1: later}
    model = {**SMALL_FIXED_POINT, "atom_density_scaling": "average", "fermi_level_offset": -4.5}
    model["field_feature_norms"] = "average"
    options = {"model": {"type": "FixedPoint", **model}, "train_schedule": schedule}
    run_training(configuration(folder, **options))
    return folder


def unchanged(folder: Path, target: Path, start: Path, **options: Any) -> tuple[Any, str]:
    """The model after an epoch of no learning, and the log."""
    schedule = {0: {**STAGE, **DIRECT, "end": 0, "lr": 1e-15}}
    changes = {"init_from": str(start), "train_schedule": schedule, "work_dir": str(target)}
    result = run_training(configuration(folder, **changes, E0s=None, **options))
    assert result.model_path is not None
    (log,) = target.glob("*.log")
    return load_model(result.model_path), log.read_text()


def test_options_and_weights_are_those_of_the_file(first: Path, tmp_path: Path) -> None:
    start = first / "run" / "fpmace.model"
    found, log = unchanged(first, tmp_path, start, r_max=6.0, num_channels=4)
    expected = load_model(start)
    assert found.config == expected.config
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=0, atol=1e-12)
    assert "r_max: 6.0 is asked for, 3.0 of" in log
    assert "num_channels" not in log.split("resolved")[0].split("init_from:")[1]


def test_a_checkpoint_gives_its_averaged_weights(first: Path, tmp_path: Path) -> None:
    (path,) = (first / "run" / "checkpoints").glob("*_epoch-2.pt")
    content = Checkpoint.load(path)
    assert content.ema is not None
    model = load_initial(path)
    weights = [p for p in model.parameters() if p.requires_grad and p.numel() > 0]
    for weight, mean in zip(weights, content.ema["shadow_params"], strict=True):
        assert torch.equal(weight, mean)
    found, _ = unchanged(first, tmp_path, path)
    assert found.config["avg_num_neighbors"] == model.config["avg_num_neighbors"]


def test_later_stages_run_again_from_the_best_of_an_earlier_one(
    first: Path, tmp_path: Path
) -> None:
    best = first / "run" / "checkpoints" / "fpmace_stage-0_best.model"
    found, _ = unchanged(first, tmp_path, best)
    assert found.config == load_model(best).config


def test_atomic_energies_that_are_given_replace_those_of_the_file(
    first: Path, tmp_path: Path
) -> None:
    start = first / "run" / "fpmace.model"
    energies = {1: -20.0, 8: -300.0}
    result = run_training(
        configuration(first, init_from=str(start), E0s=energies, work_dir=str(tmp_path))
    )
    assert result.model_path is not None
    assert load_model(result.model_path).config["atomic_energies"] == [-20.0, -300.0]
    assert load_model(start).config["atomic_energies"] == [-13.0, -400.0]


def test_what_cannot_be_started_from_is_one_line(first: Path, tmp_path: Path) -> None:
    write_xyz(tmp_path / "train.xyz", [water(seed=seed) for seed in range(5)])
    with pytest.raises(ConfigProblems, match=r"init_from: .*none.model"):
        configuration(tmp_path, init_from=str(tmp_path / "none.model"))
    both = {"init_from": str(first / "run" / "fpmace.model"), "foundation_model": "x"}
    with pytest.raises(ConfigProblems, match=r"init_from: foundation_model is given too"):
        configuration(tmp_path, **both)
    foreign = [water(seed=seed) for seed in range(5)]
    for atoms in foreign:
        atoms.numbers[0] = 16
    write_xyz(tmp_path / "train.xyz", foreign)
    options = {"init_from": str(first / "run" / "fpmace.model"), "E0s": "average"}
    with pytest.raises(DataError, match="atomic number 16"):
        run_training(configuration(tmp_path, **options))
