"""Model files: round trip, checksum, plugins, and every way in which a file can be unusable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fpmace import registry
from fpmace.errors import ModelFileError
from fpmace.models.io import load_model, read_model_file, save_model, weights_checksum
from fpmace.registry import build, load_plugins

TINY = {
    "r_max": 3.0,
    "atomic_numbers": [1, 8],
    "atomic_energies": [-1.0, -2.0],
    "avg_num_neighbors": 2.0,
    "hidden_irreps": "2x0e+2x1o",
    "MLP_irreps": "4x0e",
    "num_interactions": 1,
    "max_ell": 1,
    "correlation": 1,
    "radial_MLP": [4],
}


def make(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = build("model", {"type": name, **TINY, **options})
    return model


@pytest.mark.parametrize("name", ["MACE", "ScaleShiftMACE", "FixedPoint"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = make(name)
    save_model(tmp_path / "a.model", model, {"data": {"train_file": "a.xyz"}})
    again = load_model(tmp_path / "a.model")
    assert type(again) is type(model)
    assert again.config == model.config
    assert not again.training
    assert weights_checksum(again.state_dict()) == weights_checksum(model.state_dict())
    content = read_model_file(tmp_path / "a.model")
    assert content.metadata["data"] == {"train_file": "a.xyz"}
    assert {"kind": "model", "name": name, "source": None} in content.metadata["parts"]
    assert content.plugins == []


def test_precision_of_the_file_and_on_request(tmp_path: Path) -> None:
    save_model(tmp_path / "a.model", make("MACE").to(torch.float32))
    assert next(load_model(tmp_path / "a.model").parameters()).dtype == torch.float32
    wide = load_model(tmp_path / "a.model", dtype=torch.float64)
    assert next(wide.parameters()).dtype == torch.float64


def test_checksum_sees_values_names_shapes_and_types() -> None:
    a = {"x": torch.zeros(2, 3)}
    variants = [
        {"y": torch.zeros(2, 3)},
        {"x": torch.zeros(3, 2)},
        {"x": torch.zeros(2, 3, dtype=torch.float64)},
        {"x": torch.zeros(2, 3) + torch.tensor([0.0, 0.0, 1e-30])},
    ]
    assert weights_checksum(a) == weights_checksum({"x": torch.zeros(2, 3)})
    assert len({weights_checksum(item) for item in [a, *variants]}) == 5


def fails(path: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(ModelFileError) as excinfo:
        load_model(path, **options)
    text = str(excinfo.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    for part in parts:
        assert part in text, text


def changed(path: Path, **content: Any) -> Path:
    """A file of before the checksum over everything, so that what else is wrong is looked at."""
    original = torch.load(path, weights_only=True)
    del original["checksum"]
    torch.save(original | content, path)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.model"
    save_model(path, make("MACE"))
    return path


def test_missing_file(tmp_path: Path) -> None:
    fails(tmp_path / "no.model", "no such file")


def test_truncated_file(saved: Path) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) // 2])
    fails(saved, "is damaged or not a file of fpmace")


def test_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_text("not a model\n")
    fails(tmp_path / "a.model", "is damaged or not a file of fpmace")


def test_pickled_module_is_refused_without_running_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "a.model")
    fails(tmp_path / "a.model", "holds pickled objects", "fpmace-convert")


def test_other_dictionary(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, tmp_path / "a.model")
    fails(tmp_path / "a.model", "is not a model file of fpmace")


def test_newer_format(saved: Path) -> None:
    fails(changed(saved, format_version=99), "has format version 99", "install a newer fpmace")


def test_incomplete_file(saved: Path) -> None:
    fails(changed(saved, config="{"), "is damaged")


def test_changed_weights(saved: Path) -> None:
    state = torch.load(saved, weights_only=True)["state_dict"]
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name] = state[name] + 1.0
    fails(changed(saved, state_dict=state), "weights do not match their checksum")


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit(saved: Path, fault: str) -> None:
    content = torch.load(saved, weights_only=True)
    state = dict(content["state_dict"])
    name = "atomic_energies_fn.atomic_energies"
    if fault == "missing":
        del state[name]
    elif fault == "extra":
        state[name + "_2"] = state[name]
    else:
        state[name] = torch.zeros(7)
    path = changed(saved, state_dict=state, metadata="{}")
    fails(path, name, {"missing": "has no", "extra": "unknown", "shape": "[7]"}[fault])


def test_part_that_this_version_does_not_have(saved: Path) -> None:
    metadata = read_model_file(saved).metadata
    metadata["parts"].append({"kind": "update_rule", "name": "Future", "source": None})
    fails(changed(saved, metadata=json.dumps(metadata)), "needs the update_rule 'Future'")


def test_plugin_that_replaced_a_part_of_fpmace_is_missed(saved: Path) -> None:
    metadata = read_model_file(saved).metadata
    metadata["parts"] = [{"kind": "radial_basis", "name": "bessel", "source": "my_radial"}]
    fails(changed(saved, metadata=json.dumps(metadata)), "'bessel' from the plugin 'my_radial'")


def test_config_that_cannot_be_stored(tmp_path: Path) -> None:
    model = make("MACE")
    with pytest.raises(ModelFileError, match="metadata cannot be stored as JSON"):
        save_model(tmp_path / "a.model", model, {"data": {1, 2}})
    assert list(tmp_path.iterdir()) == []


RULE = """
from fpmace.blocks.update_rule import OneBodyVariableUpdate
from fpmace.registry import register_nonlinearity
import torch
from torch import nn

@register_nonlinearity("{name}")
class Sine(nn.Module):
    '''Sine of the scalars.'''
    def __init__(self, *, n_scalars: int, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.factor * x)
"""


def test_plugin_is_remembered_and_missed(tmp_path: Path) -> None:
    plugin = tmp_path / "my_blocks.py"
    base = registry.get_kind("nonlinearity").base
    text = RULE.format(name="SineForModelFile")
    if base is not None:
        text = text.replace(
            "import torch\n", f"import torch\nfrom {base.__module__} import {base.__name__}\n", 1
        ).replace("class Sine(nn.Module)", f"class Sine({base.__name__})")
    plugin.write_text(text)
    load_plugins([str(plugin)])
    update = {
        "type": "OneBodyVariableUpdate",
        "nonlinearity_cls": {"type": "SineForModelFile", "factor": 0.5},
    }
    path = tmp_path / "a.model"
    save_model(path, make("FixedPoint", fixedpoint_update_config=update))
    assert read_model_file(path).plugins == [str(plugin)]
    assert type(load_model(path, plugins=[str(plugin)])) is type(load_model(path))
    registry.unregister("nonlinearity", "SineForModelFile")
    fails(path, "nonlinearity 'SineForModelFile'", f"plugin '{plugin}'", "--plugins")


def test_an_anchored_file_of_an_earlier_version_loads(tmp_path: Path) -> None:
    options = {
        "type": "FixedPoint",
        "atomic_numbers": [1, 8],
        "atomic_energies": [0.0, 0.0],
        "hidden_irreps": "2x0e+2x1o",
        "max_ell": 1,
        "radial_MLP": [4],
        "num_interactions": 1,
        "fixedpoint_update_config": {"type": "OneBodyPassiveUpdate"},
        "field_readout_config": {"type": "VariationalFieldReadout"},
    }
    model = build("model", options)
    save_model(tmp_path / "a.model", model, {})
    content = torch.load(tmp_path / "a.model", weights_only=True)
    state = content["state_dict"]
    if state.pop("electronegativity", None) is None:
        pytest.skip("the model has no electronegativities")
    del content["checksum"]
    content["metadata"] = "{}"
    torch.save(content, tmp_path / "a.model")
    assert torch.equal(load_model(tmp_path / "a.model").electronegativity, torch.zeros(2).double())
