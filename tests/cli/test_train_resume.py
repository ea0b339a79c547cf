"""Training as a user runs it: killed at any moment and restarted, it ends as if never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.io import write

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = {
    "name": "toy",
    "model": "FixedPoint",
    "train_file": "train.xyz",
    "valid_file": "valid.xyz",
    "E0s": "average",
    "r_max": 3.0,
    "hidden_irreps": "4x0e+4x1o",
    "max_ell": 1,
    "correlation": 2,
    "MLP_irreps": "4x0e",
    "radial_MLP": [8],
    "batch_size": 2,
    "use_linear_local_charges": True,
    "error_table": "EnergyDensityDipoleRMSE",
    "electrostatic_pbc_method": "realspace",
    "train_schedule": {
        0: {
            "name": "direct",
            "start": 0,
            "end": 7,
            "loss": {"atomic_multipoles": 100.0, "energy_per_atom": 10.0, "forces": 100.0},
            "lr": 0.01,
            "fixed_point_training_options": {"mode": "direct"},
        },
        1: {
            "name": "unroll",
            "start": 8,
            "end": 13,
            "loss": {"atomic_multipoles": 100.0, "energy_per_atom": 10.0, "forces": 100.0},
            "lr": 0.001,
            "fixed_point_training_options": {
                "mode": "unroll_scf",
                "scf": {
                    "num_scf_steps": 4,
                    "mixing_parameter": 0.3,
                    "initial_density": "from_data",
                    "initial_fermi_level": "from_data",
                },
            },
        },
    },
}


def water(rng: np.random.Generator) -> Atoms:
    """A distorted water molecule with labels of the right shape."""
    positions = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    atoms = Atoms("OHH", positions + 0.05 * rng.normal(size=(3, 3)))
    multipoles = 0.05 * rng.normal(size=(3, 4))
    multipoles[:, 0] += [-0.6, 0.3, 0.3]
    multipoles[:, 0] -= multipoles[:, 0].mean()
    atoms.arrays["REF_forces"] = rng.normal(size=(3, 3))
    atoms.arrays["REF_atomic_multipoles"] = multipoles
    atoms.info.update(REF_energy=-100 + rng.normal(), REF_fermi_level=-5 + rng.normal())
    atoms.info["total_charge"] = 0.0
    return atoms


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    for name, count in (("train", 6), ("valid", 2)):
        write(tmp_path / f"{name}.xyz", [water(rng) for _ in range(count)], format="extxyz")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def start(folder: Path, run: str, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "fpmace.cli.train", "--config", "config.yaml"]
    return subprocess.Popen(
        [*command, "--work_dir", run, *flags],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def epochs_done(folder: Path) -> int:
    path = folder / "toy_metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def kill_after(process: subprocess.Popen, folder: Path, n_epochs: int) -> None:
    """SIGKILL somewhere in the epoch after ``n_epochs`` are recorded."""
    while epochs_done(folder) < n_epochs and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    content = torch.load(folder / name, weights_only=True)
    return content.get("state_dict", content.get("model"))


def metrics(folder: Path) -> list[dict]:
    records = [
        json.loads(line) for line in (folder / "toy_metrics.jsonl").read_text().splitlines()
    ]
    for record in records:
        del record["seconds"]
    return records


def test_killed_in_either_stage_and_restarted(folder):
    text = finish(start(folder, "whole"))
    assert text.splitlines()[-1] == "saved model: whole/toy.model"
    kill_after(start(folder, "cut"), folder / "cut", 3)
    assert 3 <= epochs_done(folder / "cut") < 8
    kill_after(start(folder, "cut", "--restart_latest"), folder / "cut", 10)
    assert 10 <= epochs_done(folder / "cut") < 14
    text = finish(start(folder, "cut", "--restart_latest"))
    assert "resuming after epoch" in text
    for name in ("toy.model", "checkpoints/toy_epoch-13.pt"):
        first, second = weights(folder / "whole", name), weights(folder / "cut", name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert metrics(folder / "whole") == metrics(folder / "cut")
    assert not list((folder / "cut" / "checkpoints").glob(".*"))


def test_dry_run_reports_and_leaves_nothing_behind(folder):
    text = finish(start(folder, "dry", "--dry_run"))
    assert "trainable parameters" in text
    assert "MiB" in text
    assert "stage 1 'unroll', one step" in text
    assert not (folder / "dry" / "toy.model").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--error_table", "PerAtomRMSEE"), "did you mean 'PerAtomRMSE'"),
        (
            ("--train_schedule", "{}", "--loss", "{dipole: 1.0}"),
            "needs label 'dipole'; 0 of 6 training configurations have it",
        ),
    ],
)
def test_what_cannot_be_served_is_said_before_training(folder, flags, message):
    process = start(folder, "bad", *flags)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 2, text
    assert message in text
    assert "Traceback" not in text
