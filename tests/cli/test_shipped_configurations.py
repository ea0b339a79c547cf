"""Every configuration in data/ runs as it stands, on a few of its own configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.io import read, write

from fpmace.config.load import resolve
from fpmace.training.run import run_training

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("data/*/*.yaml"))
FIRST = "data/fine_tuning/pretrain.yaml"
"""Trains the model that others start from."""
SMALL = {"num_channels": 4, "radial_MLP": [8], "correlation": 2, "batch_size": 4, "plot": False}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model that others start from."""
    folder = tmp_path_factory.mktemp("first")
    return str(run_training(resolve(shortened(read_yaml(FIRST), folder, ""))).model_path)


def shortened(given: dict[str, Any], folder: Path, first: str) -> dict[str, Any]:
    """The configuration with small data, a small network and one epoch of every stage."""
    small = dict(SMALL)
    if "foundation_model" in given:
        given["foundation_model"] = first
        small = {name: SMALL[name] for name in ("batch_size", "plot")}
    for number, files in enumerate([given, *given.get("heads", {}).values()]):
        _shorten_files(files, folder, number)
    for index, stage in enumerate(given.get("train_schedule", {}).values()):
        stage["start"] = stage["end"] = index
    if "train_schedule" not in given:
        given["max_num_epochs"] = 1
    return {**given, **small, "work_dir": str(folder / "run"), "eval_interval": 1}


def _shorten_files(given: dict[str, Any], folder: Path, number: int) -> None:
    names = [name for name in ("train_file", "pt_train_file") if name in given]
    others = [name for name in ("valid_file", "test_file") if name in given]
    for name in names or others[:1]:
        frames = read(ROOT / given[name], ":")
        free = [item for item in frames if item.info["config_type"] == "IsolatedAtom"]
        bound = [item for item in frames if item.info["config_type"] != "IsolatedAtom"]
        # Structures with polarizabilities stand beside others without.
        bound.sort(key=lambda item: "REF_polarizability" not in item.info)
        salts = [item for item in bound if set(item.numbers) & {11, 17}]
        chosen = [*bound[:4], *bound[-4:], *salts[::50][:6]]
        parts = {name: chosen} | dict(zip(others, (chosen[:2], chosen[-2:]), strict=False))
        for part, frames in parts.items():
            assert (ROOT / given[part]).is_file()
            given[part] = str(folder / f"{number}_{part}.xyz")
            write(given[part], [*free, *frames])


def read_yaml(name: str) -> dict[str, Any]:
    given: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    given.pop("num_threads", None)
    return given


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_shipped_configuration_runs(name: str, tmp_path: Path, first: str) -> None:
    given = read_yaml(name)
    result = run_training(resolve(shortened(given, tmp_path, first)))
    assert result.model_path is not None
    assert result.model_path.is_file()
    assert (tmp_path / "run" / f"{given['name']}_results.json").is_file()
