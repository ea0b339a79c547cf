"""A model family from a file outside the package: trained, resumed, evaluated elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.io import read, write

from fpmace.calculators import MACECalculator
from fpmace.cli import train
from fpmace.models.io import read_model_file
from fpmace.training.checkpoint import CheckpointStore

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "my_model.py"
MODEL = "{type: MyModel, smearing: 0.7}"
CONFIG = {
    "name": "own",
    "plugins": [str(EXAMPLE)],
    "train_file": "train.xyz",
    "valid_file": "train.xyz",
    "E0s": "average",
    "r_max": 3.0,
    "hidden_irreps": "4x0e+4x1o",
    "max_ell": 1,
    "correlation": 2,
    "MLP_irreps": "4x0e",
    "radial_MLP": [8],
    "batch_size": 2,
    "loss": {"energy_per_atom": 1.0, "forces": 10.0, "dipole_per_atom": 10.0},
    "local_charges_weight_decay": 1e-3,
    "max_num_epochs": 4,
}


def water(rng: np.random.Generator) -> Atoms:
    positions = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    atoms = Atoms("OHH", positions + 0.05 * rng.normal(size=(3, 3)))
    atoms.arrays["REF_forces"] = rng.normal(size=(3, 3))
    atoms.info.update(REF_energy=-100 + rng.normal(), total_charge=0.0)
    atoms.info["REF_dipole"] = 0.4 * atoms.positions[1:].sum(0) - 0.8 * atoms.positions[0]
    atoms.info["config_dipole_weight"] = np.ones(3)
    return atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(4)
    write(place / "train.xyz", [water(rng) for _ in range(4)], format="extxyz")
    names = ("train_file", "valid_file")
    content = CONFIG | {name: str(place / CONFIG[name]) for name in names}
    (place / "config.yaml").write_text(yaml.safe_dump(content))
    return place


def run(folder: Path, work: str, *flags: str) -> int:
    paths = ["--config", str(folder / "config.yaml"), "--work_dir", str(folder / work)]
    return train.main([*paths, *flags])


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    assert run(folder, "whole", "--model", MODEL) == 0
    return folder / "whole" / "own.model"


def test_it_trains_and_says_where_it_came_from(trained: Path) -> None:
    content = read_model_file(trained)
    assert content.config["type"] == "MyModel"
    assert content.config["smearing"] == 0.7
    assert content.plugins == [str(EXAMPLE)]
    records = (trained.parent / "own_metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train"]["loss"] for line in records]
    assert losses[-1] < losses[0]


def test_from_yaml_and_resumed_it_is_the_same(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(content | {"model": yaml.safe_load(MODEL)}))
    save, saved = CheckpointStore.save, []

    def interrupted(self, *arguments, **options):
        found = save(self, *arguments, **options)
        saved.append(found)
        if len(saved) == 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(CheckpointStore, "save", interrupted)
    assert run(folder, "cut") == 130
    monkeypatch.undo()
    assert run(folder, "cut", "--restart_latest") == 0
    first, second = (read_model_file(folder / name / "own.model") for name in ("whole", "cut"))
    assert first.config == second.config
    for name, value in first.state_dict.items():
        assert torch.equal(value, second.state_dict[name]), name


def test_elsewhere_it_needs_its_plugin(trained: Path, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fpmace.cli.evaluate", "--model", str(trained)]
    command += ["--configs", str(folder / "train.xyz"), "--output", "out.xyz"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    missing = subprocess.run(command, check=False, **options)
    assert missing.returncode == 2
    assert f"needs the model 'MyModel' from the plugin '{EXAMPLE}'" in missing.stderr
    done = subprocess.run([*command, "--plugins", str(EXAMPLE)], check=False, **options)
    assert done.returncode == 0, done.stderr
    assert "dipole" in done.stdout
    for atoms in read(tmp_path / "out.xyz", index=":"):
        atoms.calc = MACECalculator(trained, plugins=[str(EXAMPLE)])
        assert atoms.get_potential_energy() == pytest.approx(atoms.info["MACE_energy"], abs=1e-6)
        np.testing.assert_allclose(atoms.get_dipole_moment(), atoms.info["MACE_dipole"], atol=1e-6)
        np.testing.assert_allclose(atoms.get_charges(), atoms.arrays["MACE_charges"], atol=1e-6)
        assert atoms.get_charges().sum() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{type: MyModel, smearring: 0.7}", "MyModel has no option 'smearring'; did you mean"),
        ("{type: MyModel, smearing: -1}", "model.smearing"),
        ("{type: MyModle}", "did you mean 'MyModel'"),
    ],
)
def test_wrong_options_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    assert run(folder, "bad", "--model", model) == 2
    assert message in capsys.readouterr().err


def test_it_has_no_use_for_modes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = "{0: {start: 0, end: 3, fixed_point_training_options: {mode: direct}}}"
    assert run(folder, "bad", "--model", MODEL, "--train_schedule", schedule) == 2
    assert "only for models that solve a self-consistency" in capsys.readouterr().err
