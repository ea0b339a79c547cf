"""The ready configurations serve the data that they name, and shipped data without the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase.io import read, write

from fpmace.config.load import load_config
from fpmace.data.dataset import make_loader
from fpmace.observables.predict import predict
from fpmace.training.data import open_datasets, schedule_problems, training_statistics
from fpmace.training.setup import available_outputs, build_model, build_stages, with_field_norms
from fpmace.training.step import GradientStep

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "data" / "recipes").glob("*.yaml"))
KEPT = {"charges": "REF_charges", "dipoles": "REF_dipole"}


def bare(folder: Path, label: str) -> Path:
    """Shipped structures with energies, forces and one more label."""
    frames = read(ROOT / "data" / "quickstart" / "valid.xyz", ":12")
    atoms = read(ROOT / "data" / "quickstart" / "train.xyz", ":4")
    for item in [*atoms, *frames]:
        multipoles = item.arrays.pop("REF_atomic_multipoles")
        if label == "REF_charges":
            item.arrays[label] = multipoles[:, 0]
            del item.info["REF_dipole"]
        for name in ("REF_fermi_level", "REF_polarizability"):
            item.info.pop(name, None)
    write(folder / "train.xyz", [*atoms, *frames], format="extxyz")
    return folder / "train.xyz"


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_needs_no_more_labels_than_it_says(path: Path, tmp_path: Path) -> None:
    data = str(bare(tmp_path, KEPT[path.stem]))
    files = [text for split in ("train", "valid", "test") for text in (f"--{split}_file", data)]
    resolved = load_config(["--config", str(path), *files])
    config = resolved.config
    datasets, stages = open_datasets(config), build_stages(config)
    assert schedule_problems(stages, datasets, available_outputs(config)) == []
    statistics = training_statistics(config, resolved.origins, datasets.train)
    statistics = with_field_norms(config, statistics, datasets.train)
    model = build_model(config, statistics, device=torch.device("cpu"))
    batch = next(iter(make_loader(datasets.train, 3)))
    gradient = GradientStep(model, stages[0], predict=predict, clip_grad=None)
    step = gradient([batch], place="here")
    assert step.n_used == 3
    assert bool(torch.isfinite(step.loss))
