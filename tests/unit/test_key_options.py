"""``energy_key`` and the like, and messages that name the keys that a file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from calculator_cases import affine_model, water_row

from fpmace import registry
from fpmace.cli.preprocess import data_options as preprocess_options
from fpmace.cli.preprocess import read_settings
from fpmace.config.load import ConfigProblems, load_config, resolve
from fpmace.data.dataset import open_dataset
from fpmace.errors import DataError, RegistryError
from fpmace.evaluation.evaluate import evaluate_file
from fpmace.evaluation.options import EvaluationOptions
from fpmace.models.io import save_model
from fpmace.training.data import data_options, open_datasets, schedule_problems
from fpmace.training.setup import available_outputs, build_stages

FLAGS = ["--train_file", "a.xyz", "--energy_key", "energy", "--forces_key=my_forces"]
HEADS = {"xtb": {"info_keys": {"energy": "E"}, "arrays_keys": {"charges": "q"}}}


def plain() -> Atoms:
    """A structure with the plain names of ASE."""
    atoms = Atoms("OHH", np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
    atoms.info.update(energy=-1.0, total_charge=0.0)
    atoms.arrays["forces"] = np.zeros((3, 3))
    return atoms


def test_keys_are_options_of_training_and_preprocessing(tmp_path: Path) -> None:
    yaml = tmp_path / "c.yaml"
    yaml.write_text(f"heads: {HEADS}\nenergy_key: other\ndipole_key: mu\n")
    for extra in ([], ["--config", str(yaml)]):
        trained = data_options(load_config([*extra, *FLAGS]).config).keys
        written = preprocess_options(read_settings([*extra, *FLAGS])).keys
        for keys in (trained, written):
            assert (keys.key("energy"), keys.key("forces")) == ("energy", "my_forces")
            assert {"energy", "forces"} <= keys.explicit
        if extra:
            assert (trained.key("dipole"), trained.key("charges")) == ("mu", "q")
            assert trained == written
    again = resolve({"train_file": "a.xyz", "forces_key": "f"}).config
    assert again.heads == {"Default": {"arrays_keys": {"forces": "f"}}}


def test_plain_names_are_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    write(path, [plain()] * 4, format="extxyz")
    with pytest.raises(DataError, match=r"give --energy_key energy --forces_key forces"):
        open_dataset(path, 3.0)
    values: dict[str, Any] = {"train_file": str(path), "energy_key": "energy", "r_max": 3.0}
    values["valid_fraction"] = 0.5
    config = resolve({**values, "model": "MACE", "loss": {"forces": 1.0}}).config
    problems = schedule_problems(
        build_stages(config), open_datasets(config), available_outputs(config)
    )
    assert "the file has 'forces': give --forces_key forces" in problems[0]


def test_evaluation_points_them_out(tmp_path: Path) -> None:
    save_model(tmp_path / "a.model", affine_model())
    atoms = water_row(1)
    atoms.info["energy"] = -1.0
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    files = {"configs": "a.xyz", "model": "a.model", "output": "b.xyz"}
    said: list[str] = []
    options = EvaluationOptions(**{name: str(tmp_path / file) for name, file in files.items()})
    evaluate_file(options, message=said.append)
    assert any("'energy' is there: give --energy_key energy" in text for text in said)


def test_a_file_of_none_is_no_file() -> None:
    config = load_config(["--train_file", "a.xyz", "--test_file", "None"]).config
    assert config.test_file is None
    assert resolve({"train_file": "a.xyz", "test_file": "None"}).config.test_file is None


def test_epochs_of_a_schedule_are_changed_there() -> None:
    stage = {"start": 0, "end": 9, "loss": {"forces": 1.0}}
    with pytest.raises(ConfigProblems, match=r"change the end of the last stage .*0\.end, now 9"):
        resolve({"train_file": "a", "train_schedule": {0: stage}, "max_num_epochs": 3})


def test_a_forgotten_plugin_is_suggested() -> None:
    with pytest.raises(RegistryError, match=r"name its file with --plugins"):
        registry.get("loss", "my_loss")
