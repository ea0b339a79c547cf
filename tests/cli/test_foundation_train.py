"""``--foundation_model``: a training that starts from the backbone of another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase.io import read, write

from fpmace.cli.train import main
from fpmace.models.io import load_model, save_model
from fpmace.registry import build

DATA = Path(__file__).parents[2] / "data" / "quickstart" / "valid.xyz"
BACKBONE = {
    "r_max": 3.0,
    "hidden_irreps": "2x0e+2x1o",
    "max_ell": 1,
    "correlation": 1,
    "num_bessel": 4,
    "radial_MLP": [4],
    "MLP_irreps": "4x0e",
}
CONFIG = """\
name: tuned
train_file: train.xyz
valid_file: train.xyz
r_max: 3.0
hidden_irreps: 2x0e+2x1o
max_ell: 1
correlation: 1
num_radial_basis: 4
radial_MLP: [4]
MLP_irreps: 4x0e
ema: false
train_schedule:
  0:
    name: direct
    start: 0
    end: 0
    loss: {energy_per_atom: 1.0}
    lr: 1.0e-12
    fixed_point_training_options: {mode: direct}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    frames = [atoms for atoms in read(DATA, ":") if set(atoms.numbers) == {1, 8}][:3]
    write(tmp_path / "train.xyz", frames, format="extxyz")
    (tmp_path / "config.yaml").write_text(CONFIG)
    torch.manual_seed(3)
    model = build(
        "model",
        {
            "type": "MACE",
            "atomic_numbers": [1, 6, 8],
            "atomic_energies": [-10.0, -50.0, -100.0],
            "avg_num_neighbors": 5.0,
            **BACKBONE,
        },
    )
    save_model(tmp_path / "base.model", model, {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_backbone_and_energies_come_from_the_foundation(folder):
    arguments = ["--config", "config.yaml", "--foundation_model", "base.model"]
    assert main([*arguments, "--E0s", "foundation"]) == 0
    base, tuned = load_model("base.model"), load_model("tuned.model")
    name = "backbone.interactions.0.conv_tp_weights.layer0.weight"
    torch.testing.assert_close(tuned.state_dict()[name], base.state_dict()[name])
    assert tuned.config["atomic_energies"] == [-10.0, -100.0]


def test_another_backbone_is_one_clear_line(folder, capsys):
    arguments = ["--config", "config.yaml", "--foundation_model", "base.model", "--r_max", "4.0"]
    assert main([*arguments, "--E0s", "average"]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert "r_max 3.0 (here 4.0)" in message


def test_energies_of_a_foundation_need_one(folder, capsys):
    assert main(["--config", "config.yaml", "--E0s", "foundation"]) == 2
    assert "foundation_model" in capsys.readouterr().err
