"""Every pair of blocks trains in both modes from YAML, is saved, loaded and evaluated.

What every combination computes is checked in ``property/test_block_matrix.py``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase.io import read, write
from block_factors import EMBEDDINGS, MIXERS, NONLINEARITIES, READOUTS, RULES

from fpmace.config.load import load_config, resolve
from fpmace.data.dataset import make_loader
from fpmace.kernels.choice import use_kernels
from fpmace.metrics.errors import measurable
from fpmace.models.io import load_model
from fpmace.observables.predict import predict
from fpmace.testing.covering import Row, every_pair
from fpmace.training.data import open_datasets
from fpmace.training.evaluate import evaluate
from fpmace.training.run import run_training
from fpmace.training.setup import evaluation_mode

REPOSITORY = Path(__file__).parents[2]
ROWS = every_pair(
    {
        "rule": RULES,
        "embedding": EMBEDDINGS,
        "nonlinearity": NONLINEARITIES,
        "readout": READOUTS,
        "mixer": MIXERS,
        "use_sc": (True, False),
        "correlation": (1, 2),
        "local": (False, True, {"type": "GatedLocalDensity", "hidden_irreps": "2x0e+2x1o"}),
    },
    lambda row: row["use_sc"] or row["mixer"] != "NoMixer",
)

BASE = """\
name: tiny
train_file: train.xyz
valid_file: valid.xyz
E0s: IsolatedAtom
r_max: 3.0
hidden_irreps: 2x0e+2x1o
max_ell: 1
correlation: 1
num_interactions: 1
num_radial_basis: 3
radial_MLP: [4]
MLP_irreps: 2x0e
batch_size: 4
eval_interval: 2
scf_options: {num_scf_steps: 8}
train_schedule:
  0:
    name: direct
    start: 0
    end: 1
    loss: {atomic_multipoles: 100.0, energy_per_atom: 1.0, forces: 10.0}
    lr: 0.005
    fixed_point_training_options: {mode: direct}
  1:
    name: unroll
    start: 2
    end: 3
    loss: {atomic_multipoles: 100.0, energy_per_atom: 1.0, forces: 10.0}
    lr: 0.0005
    fixed_point_training_options:
      mode: unroll_scf
      scf: {num_scf_steps: 3, mixing_parameter: 0.3, initial_density: from_data,
            initial_fermi_level: from_data}
"""


def blocks(row: Row) -> dict[str, Any]:
    """The part of the YAML file that chooses the blocks."""
    chain = {
        "field_mixer_cls": row["mixer"],
        "use_sc": row["use_sc"],
        "correlation": row["correlation"],
    }
    update = {
        **row["rule"],
        "potential_embedding_cls": row["embedding"],
        "nonlinearity_cls": row["nonlinearity"],
    }
    if row["rule"]["type"] == "ManyBodyUpdate":
        update |= chain
    readout = row["readout"]
    if "ManyBody" in readout["type"]:
        readout = {**readout, **chain, "nonlinearity_cls": row["nonlinearity"]}
    local = {"local_density_config": row["local"]}
    if isinstance(row["local"], bool):
        local = {"use_linear_local_charges": row["local"]}
    return {"fixedpoint_update_config": update, "field_readout_config": readout, **local}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a handful of tiny molecules, neutral and charged."""
    folder = tmp_path_factory.mktemp("matrix")
    frames = read(REPOSITORY / "data" / "quickstart" / "train.xyz", ":")
    atoms = [
        item
        for item in frames
        if item.info["config_type"] == "IsolatedAtom" and item.symbols[0] in "HO"
    ]
    names = ("water_w1", "water_w2", "oh_w0", "h3o_w0")
    small = [item for name in names for item in frames if item.info["config_type"] == name]
    write(folder / "train.xyz", [*atoms, small[0], small[38], small[46]])
    write(folder / "valid.xyz", small[1:2])
    return folder


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_trains_saves_loads_and_evaluates(
    row: Row, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    (tmp_path / "blocks.yaml").write_text(BASE + yaml.safe_dump(blocks(row)))
    resolved = load_config(
        ["--config", str(tmp_path / "blocks.yaml"), "--work_dir", str(tmp_path / "run")]
    )
    result = run_training(resolved)
    assert result.model_path is not None
    lines = (tmp_path / "run" / "tiny_metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [item["stage_name"] for item in records] == ["direct"] * 2 + ["unroll"] * 2
    assert all(math.isfinite(item["train"]["loss"]) for item in records)
    assert all(math.isfinite(item["valid"]["loss"]) for item in records[1::2])
    model = load_model(result.model_path)
    config = resolved.config
    use_kernels(model, config.kernels)
    valid = open_datasets(config).valid
    again = evaluate(
        model,
        make_loader(valid, 4, shuffle=False, seed=0, num_workers=0, dtype=torch.float64),
        predict=predict,
        mode=evaluation_mode(config),
        device=torch.device("cpu"),
        quantities=measurable(valid.info.properties, frozenset({"energy", "forces", "density"})),
        groups=valid.config_types(),
    )
    first = result.evaluations["valid"]
    for name, errors in again.errors.items():
        assert math.isfinite(errors.rmse)
        assert errors.rmse == pytest.approx(first.errors[name].rmse, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_quadrupoles_train(
    dtype: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for name in ("train.xyz", "valid.xyz"):
        frames = read(data / name, ":")
        for atoms in frames:
            multipoles = atoms.arrays["REF_atomic_multipoles"]
            quadrupoles = 0.02 * rng.normal(size=(len(atoms), 5))
            atoms.arrays["REF_atomic_multipoles"] = np.hstack([multipoles, quadrupoles])
        write(tmp_path / name, frames)
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(BASE) | {
        "hidden_irreps": "2x0e+2x1o+2x2e",
        "max_ell": 2,
        "atomic_multipoles_max_l": 2,
        "field_feature_max_l": 2,
        "default_dtype": dtype,
        "scf_options": {"num_scf_steps": 20, "scf_tolerance": 1e-5},
    }
    result = run_training(resolve(values))
    assert result.model_path is not None
    model = load_model(result.model_path)
    assert model.electrostatics.n_density == 9
    assert len(model.config["field_feature_norms"]) == 6
    assert result.evaluations["valid"].scf.n_converged == 1
