"""Parts of a model that are not trained: which, when, and how it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import water, write_xyz
from small_models import ELEMENTS, SMALL

from fpmace.config.load import ConfigProblems, resolve
from fpmace.errors import ConfigError
from fpmace.models.base import ParameterGroup
from fpmace.models.io import load_model, save_model
from fpmace.registry import build
from fpmace.training.freezing import frozen_parameters
from fpmace.training.parameter_groups import WeightDecays
from fpmace.training.run import run_training


def small() -> Any:
    torch.manual_seed(1)
    return build("model", {"type": "MACE", **SMALL, **ELEMENTS, "avg_num_neighbors": 2.0})


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (["embedding"], ("backbone.node_embedding", "backbone.radial_embedding")),
        (["backbone"], ("backbone.",)),
        (["layer.1"], ("backbone.interactions.1.", "backbone.products.1.")),
        (["interactions.0", "readouts.1"], ("backbone.interactions.0.", "readouts.1.")),
        (["backbone.products.0"], ("backbone.products.0.",)),
        (["readouts"], ("readouts.",)),
        (["readouts.1.linear_2.weight"], ("readouts.1.linear_2.weight",)),
    ],
)
def test_names_of_parts(freeze: list[str], expected: tuple[str, ...]) -> None:
    model = small()
    trained = {name for name, item in model.named_parameters() if item.numel()}
    assert set(frozen_parameters(model, freeze)) == {n for n in trained if n.startswith(expected)}


def test_unknown_parts_and_nothing_left_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"freeze: .*no part 'interaction.0'; did you mean 'int"):
        frozen_parameters(small(), ["interaction.0"])
    with pytest.raises(ConfigError, match="freeze: backbone, readouts leave nothing to train"):
        frozen_parameters(small(), ["backbone", "readouts"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_xyz(tmp_path / "train.xyz", [water(seed=seed) for seed in range(4)])
    save_model(tmp_path / "start.model", small())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(**options: Any) -> Any:
    values = {
        "train_file": "train.xyz",
        "valid_file": "train.xyz",
        "init_from": "start.model",
        "loss": {"energy_per_atom": 1.0, "forces": 1.0},
        "products_lr": 0.001,
        "batch_size": 2,
        "max_num_epochs": 2,
    }
    return run_training(resolve({**values, **options})).model_path


def moved(path: Any) -> set[str]:
    """Blocks whose weights differ from those of the start."""
    first, last = load_model("start.model").state_dict(), load_model(path).state_dict()
    return {
        ".".join(name.removeprefix("backbone.").split(".")[:2])
        for name in first
        if not torch.equal(first[name], last[name])
    }


def test_what_is_frozen_stays_to_the_last_bit(folder: Path) -> None:
    found = moved(train(freeze=["backbone"]))
    assert found == {"readouts.0", "readouts.1"}
    log = (folder / "fpmace.log").read_text()
    rows = [line.split() for line in log.splitlines() if line.startswith("| ")]
    rates = {row[1]: row[-2] for row in rows if row[1] in ("interactions.0", "readouts.0")}
    assert rates == {"interactions.0": "frozen", "readouts.0": "0.01"}


def test_a_later_stage_trains_what_an_earlier_one_froze(folder: Path) -> None:
    loss = {"energy_per_atom": 1.0, "forces": 1.0}
    stages = [
        {"start": 0, "end": 1, "lr": 0.01, "loss": loss, "freeze": ["backbone"]},
        {"start": 2, "end": 3, "lr": 0.01, "loss": loss},
    ]
    schedule = {"train_schedule": dict(enumerate(stages)), "max_num_epochs": 4}
    found = moved(train(**schedule, name="whole"))
    assert {"interactions.0", "products.1", "readouts.0"} <= found
    first = load_model("checkpoints/whole_stage-0_best.model").state_dict()
    start = load_model("start.model").state_dict()
    kept = [name for name in first if name.startswith("backbone.")]
    assert all(torch.equal(first[name], start[name]) for name in kept)
    stages[1]["freeze"] = ["everything"]
    with pytest.raises(ConfigError, match="freeze: the model has no part 'everything'"):
        train(**schedule)
    stages[1]["freeze"] = 3
    with pytest.raises(ConfigProblems, match=r"train_schedule\.1\.freeze"):
        train(**schedule)


def test_weight_decays_of_groups() -> None:
    decays = WeightDecays(groups={"readouts": 0.1, "interactions": 0.2})
    found = {(g.name, g.decays): decays.of(g) for g in small().parameter_groups()}
    assert found[("readouts", False)] == 0.1
    assert found[("interactions", True)] == 0.2
    assert found[("interactions", False)] == 0.0
    assert found[("products", True)] == decays.weight_decay
    assert WeightDecays().of(ParameterGroup("embedding", (), False)) == 0.0
