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
SMALL = {"num_channels": 4, "radial_MLP": [8], "correlation": 2, "batch_size": 4, "plot": False}


def shortened(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with small data, a small network and one epoch of every stage."""
    frames = read(ROOT / given["train_file"], ":200")
    free = [item for item in frames if item.info["config_type"] == "IsolatedAtom"]
    bound = [item for item in frames if item.info["config_type"] != "IsolatedAtom"]
    # Structures with polarizabilities stand beside others without.
    bound.sort(key=lambda item: "REF_polarizability" not in item.info)
    chosen = [*bound[:4], *bound[-4:]]
    for name, part in (("train", chosen), ("valid", chosen[:2]), ("test", chosen[-2:])):
        assert (ROOT / given[f"{name}_file"]).is_file()
        given[f"{name}_file"] = str(folder / f"{name}.xyz")
        write(folder / f"{name}.xyz", [*free, *part])
    for index, stage in enumerate(given.get("train_schedule", {}).values()):
        stage["start"] = stage["end"] = index
    if "train_schedule" not in given:
        given["max_num_epochs"] = 1
    return {**given, **SMALL, "work_dir": str(folder / "run"), "eval_interval": 1}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_shipped_configuration_runs(name: str, tmp_path: Path) -> None:
    given = yaml.safe_load((ROOT / name).read_text())
    given.pop("num_threads", None)
    result = run_training(resolve(shortened(given, tmp_path)))
    assert result.model_path is not None
    assert result.model_path.is_file()
    assert (tmp_path / "run" / f"{given['name']}_results.json").is_file()
