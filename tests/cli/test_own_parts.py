"""Losses and a field readout of the documentation: values, contract, and a training with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy_training import toy_batch

from fpmace import registry
from fpmace.cli import train
from fpmace.errors import ConfigError
from fpmace.observables.types import Observables
from fpmace.testing.block_contract import check_field_readout

ROOT = Path(__file__).parents[2]
PLUGINS = [str(ROOT / "docs" / "examples" / f"my_{name}.py") for name in ("loss", "field_readout")]
CONFIG = f"""\
name: own
plugins: {PLUGINS}
train_file: {ROOT}/data/quickstart/valid.xyz
valid_file: {ROOT}/data/quickstart/valid.xyz
E0s: average
r_max: 3.0
hidden_irreps: 2x0e+2x1o
MLP_irreps: 2x0e
max_ell: 1
num_radial_basis: 4
radial_MLP: [4]
correlation: 1
num_interactions: 1
batch_size: 16
max_num_epochs: 2
num_threads: 1
report: false
field_readout_config: {{type: HardnessReadout, hardness: 2.0}}
loss: {{forces: 1.0, charge_size: 0.1, dipole_length: 10.0, log_cosh_charges: {{weight: 1.0}}}}
fixed_point_training_options: {{mode: direct}}
"""


@pytest.fixture(autouse=True, scope="module")
def plugins() -> None:
    registry.load_plugins(PLUGINS)


def test_the_readout_keeps_its_contract() -> None:
    check_field_readout({"type": "HardnessReadout", "hardness": 2.0})
    with pytest.raises(ConfigError, match="hardness"):
        registry.build("field_readout", {"type": "HardnessReadout", "hardness": 0.0}, n_elements=1)


def test_labels_count_by_their_weights() -> None:
    batch = toy_batch([3, 2], seed=1)
    batch.weights["dipole"][1] = 0.0
    found = Observables(
        energy=torch.zeros(2),
        density=torch.randn(5, 4).double(),
        dipole=torch.randn(2, 3).double(),
    )
    length = registry.build("loss", "dipole_length")(batch, found)
    error = found.dipole[0].norm() - batch.labels["dipole"][0].norm()
    assert length == pytest.approx(float(error**2) / 2)
    small = registry.build("loss", {"type": "log_cosh_charges", "scale": 1e3})(batch, found)
    square = registry.build("loss", "charges")(batch, found)
    assert float(small) == pytest.approx(float(square) / 2, rel=1e-5)


def test_a_training_with_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CONFIG)
    assert train.main(["--config", f"{tmp_path}/a.yaml", "--work_dir", f"{tmp_path}"]) == 0
    records = [json.loads(x) for x in (tmp_path / "own_metrics.jsonl").read_text().splitlines()]
    names = {"forces", "charge_size", "dipole_length", "log_cosh_charges"}
    assert set(records[-1]["train"]["terms"]) == names
    assert records[-1]["train"]["loss"] < records[0]["train"]["loss"]
