"""``--foundation_model``: a training that starts from the backbone of another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase.io import read, write

from fpmace.annotations import plain
from fpmace.cli.train import main
from fpmace.config.load import ConfigProblems, resolve
from fpmace.data.atomic_data import collate
from fpmace.errors import ConfigError, DataError
from fpmace.models.heads import of_one_head, with_heads
from fpmace.models.io import load_model, save_model
from fpmace.observables.predict import predict
from fpmace.registry import build
from fpmace.training.data import open_datasets
from fpmace.training.foundation import foundation_energies
from fpmace.training.run import run_training

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
    assert "r_max (--r_max): 4.0 is given, but base.model has 3.0; leave it out" in message


def test_energies_of_a_foundation_need_one(folder, capsys):
    assert main(["--config", "config.yaml", "--E0s", "foundation"]) == 2
    assert "foundation_model" in capsys.readouterr().err


def short(**options):
    """A training of no learning whose backbone is left to the file."""
    values = {
        "train_file": "train.xyz",
        "valid_file": "train.xyz",
        "ema": False,
        "foundation_model": "base.model",
        "loss": {"energy_per_atom": 1.0},
        "max_num_epochs": 1,
        "lr": 1e-12,
    }
    return resolve({**values, **options})


def test_what_the_file_fixes_is_taken_from_it(folder):
    base = load_model("base.model")
    resolved = short()
    model = resolved.config.model_options
    assert model["type"] == "MACE"
    for name in (*BACKBONE, "avg_num_neighbors"):
        assert plain(model[name]) == plain(base.config[name]), name
        assert resolved.origins[f"model.{name}"] == "base.model"
    assert "atomic_numbers" not in model
    fixed_point = short(model="FixedPoint", field_feature_widths=[1.0]).config
    assert (fixed_point.r_max, fixed_point.field_feature_widths) == (3.0, (1.0,))
    assert short(fixed_point_training_options={"mode": "direct"}).config.model_name == "FixedPoint"
    assert short(num_channels=2, avg_num_neighbors=7.0).config.avg_num_neighbors == 7.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r_max": 4.0}, ["r_max", "4.0 is given", "base.model has 3.0"]),
        ({"model": {"type": "MACE", "max_ell": 2}}, ["model.max_ell", "2 is", "has 1"]),
        ({"num_channels": 4}, ["num_channels", "4x0e+4x1o", "2x0e+2x1o"]),
        ({"E0s": "estimatd"}, ["E0s", "estimated"]),
        ({"foundation_model": None, "foundation_head": "a"}, ["foundation_head", "no foundation"]),
        ({"foundation_model": "none.model"}, ["foundation_model", "none.model"]),
    ],
)
def test_contradictions_are_named(folder, options, words):
    with pytest.raises(ConfigProblems) as caught:
        short(**options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_first_model_is_the_foundation_with_the_elements_of_the_data(folder):
    base = load_model("base.model")
    tuned = load_model(run_training(short(E0s="foundation")).model_path)
    assert tuned.config["atomic_numbers"] == [1, 8]
    dataset = open_datasets(short().config).train
    batch = collate([dataset[i] for i in range(3)])
    first, second = (predict(model, batch, outputs=("forces",)) for model in (base, tuned))
    torch.testing.assert_close(first.energy, second.energy, rtol=0, atol=1e-7)
    torch.testing.assert_close(first.forces, second.forces, rtol=0, atol=1e-7)
    log = (folder / "fpmace.log").read_text()
    assert "started from base.model (MACE): elements H, O" in log
    assert "adapted: backbone.node_embedding (1 tensors), elements selected" in log


def test_estimated_energies_are_what_the_foundation_leaves(folder):
    config = short().config
    assert config.E0s == "estimated"
    base, data = load_model("base.model"), open_datasets(config).train
    shifts = {1: 2.0, 8: -3.0}
    for item in data.items:
        batch = collate([item])
        shift = sum(shifts[int(z)] for z in item.atomic_numbers)
        item.labels["energy"].fill_(float(predict(base, batch).energy) + shift)
    found = foundation_energies(config, "estimated", data)
    known = foundation_energies(config, "foundation", data)
    sizes = {tuple(item.atomic_numbers.tolist()) for item in data.items}
    for numbers in sizes:
        total = sum(found[z] - known[z] for z in numbers)
        assert total == pytest.approx(sum(shifts[z] for z in numbers), abs=1e-8)
    data.items[0].atomic_numbers[0] = 6
    data.info.elements["17"] = 1
    with pytest.raises(DataError, match="atomic number 17, but the model of foundation_model"):
        foundation_energies(config, "foundation", data)


def test_heads_start_from_heads(folder):
    base = with_heads(load_model("base.model"), ["a", "b"], [0, 0])
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.startswith("readouts"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_model("two.model", base, {})
    with pytest.raises(ConfigError, match=r"foundation_head: missing; the model has a, b"):
        run_training(short(foundation_model="two.model"))
    heads = {name: {"train_file": "train.xyz"} for name in ("new", "a")}
    options = {"heads": heads, "train_file": None, "valid_file": None, "valid_fraction": 0.4}
    options |= {"foundation_model": "two.model", "foundation_head": "b", "E0s": "foundation"}
    tuned = load_model(run_training(short(**options)).model_path)
    assert tuned.heads == ("new", "a")
    dataset = open_datasets(short().config).train
    batch = collate([dataset[i] for i in range(3)])
    for mine, theirs in (("new", "b"), ("a", "a")):
        pair = (of_one_head(tuned, mine), of_one_head(base, theirs))
        first, second = (predict(model, batch).energy for model in pair)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-7)
