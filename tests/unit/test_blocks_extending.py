"""The example of an update rule of one's own, and the code in the pages on the family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from ase.io import read, write

from fpmace import registry
from fpmace.config.load import load_config, resolve
from fpmace.config.reference import reference_page
from fpmace.errors import ConfigError
from fpmace.models.io import load_model, read_model_file
from fpmace.testing.block_contract import (
    check_field_readout,
    check_symmetry_and_forces,
    check_update_rule,
    tiny_model,
)
from fpmace.training.run import run_training
from fpmace.training.setup import check_model

DOCS = Path(__file__).parents[2] / "docs"
PLUGIN = DOCS / "examples" / "my_update_rule.py"
DATA = Path(__file__).parents[2] / "data" / "quickstart" / "train.xyz"
PAGES = (
    "model.md",
    "field_features.md",
    "update_rules.md",
    "field_readouts.md",
    "stage_options.md",
    "extending.md",
)
RULE = {"type": "DielectricUpdate"}
SMALL = {"r_max": 3.0, "num_channels": 2, "max_L": 1, "max_ell": 2, "radial_MLP": [4]}


@pytest.fixture(autouse=True)
def plugin() -> None:
    registry.load_plugins([str(PLUGIN)])


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_example_rule_keeps_its_promises() -> None:
    check_update_rule(RULE)
    check_update_rule(RULE, atomic_multipoles_max_l=0)


def test_example_rule_takes_degrees_as_they_come() -> None:
    for density_l, feature_l in ((2, 2), (2, 1), (1, 2)):
        model = tiny_model(
            fixedpoint_update_config=RULE,
            atomic_multipoles_max_l=density_l,
            field_feature_max_l=feature_l,
            field_feature_norms=None,
        )
        check_symmetry_and_forces(model)


def test_charge_of_the_example_falls_when_the_level_rises() -> None:
    model = tiny_model(fixedpoint_update_config=RULE)
    features = model.electrostatics.fermi_features(torch.ones(3, dtype=torch.float64))
    prepared = type("Prepared", (), {"per_degree": torch.ones(3, 2, dtype=torch.float64)})
    assert bool((model.update_rule(features, prepared)[:, 0] < 0).all())


def test_example_refuses_a_wrong_option() -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_model(fixedpoint_update_config={**RULE, "strength": 0.0})
    expected = "fixedpoint_update_config.strength: expected a number above 0, got 0.0"
    assert str(caught.value) == expected


def test_example_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    frames = read(DATA, ":")
    atoms = [item for item in frames if item.info["config_type"] == "IsolatedAtom"]
    waters = [item for item in frames if item.info["config_type"] == "water_w1"]
    write(tmp_path / "train.xyz", [*atoms, *waters[:3]])
    write(tmp_path / "valid.xyz", waters[3:4])
    (config,) = [text for text in blocks("extending.md", "yaml") if "train_schedule" in text]
    values = {**yaml.safe_load(config), **SMALL, "plugins": [str(PLUGIN)], "E0s": "IsolatedAtom"}
    values |= {"train_file": "train.xyz", "valid_file": "valid.xyz"}
    for name in ("train_file", "valid_file"):
        values[name] = str(tmp_path / values[name])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    resolved = load_config(
        ["--config", str(tmp_path / "config.yaml"), "--work_dir", str(tmp_path / "run")]
    )
    result = run_training(resolved)
    assert result.model_path is not None
    metadata = read_model_file(result.model_path).metadata
    assert metadata["plugins"] == [str(PLUGIN)]
    model = load_model(result.model_path)
    assert type(model.update_rule).__name__ == "DielectricUpdate"
    assert result.evaluations["valid"].scf.n_converged == 1


def test_example_file_is_the_one_shown() -> None:
    assert blocks("extending.md", "python")[0] == PLUGIN.read_text()


CODE = [text for page in PAGES for text in blocks(page, "python")]


@pytest.mark.parametrize("code", [text for text in CODE if "@register" not in text])
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "docs", "exec"), {})


@pytest.mark.parametrize("text", [item for page in PAGES for item in blocks(page, "yaml")])
def test_yaml_blocks_are_valid_and_build(text: str) -> None:
    values = {"train_file": "water.xyz", **SMALL, **yaml.safe_load(text)}
    if "hidden_irreps" in values:
        del values["num_channels"], values["max_L"]
    check_model(resolve(values).config)


@pytest.mark.parametrize(
    ("page", "kinds"),
    [
        (
            "update_rules.md",
            ("update_rule", "potential_embedding", "nonlinearity", "field_mixer"),
        ),
        ("field_readouts.md", ("field_readout",)),
        ("model.md", ("local_density_readout",)),
        ("stage_options.md", ("training_mode",)),
    ],
)
def test_pages_name_every_built_in_part_and_option(page: str, kinds: tuple[str, ...]) -> None:
    text = (DOCS / page).read_text()
    for kind in kinds:
        for entry in registry.describe(kind):
            if entry.source is None:
                assert f"`{entry.name}`" in text, entry.name
                missing = [item.name for item in entry.options if f"`{item.name}" not in text]
                assert not missing, (entry.name, missing)


def test_options_of_blocks_are_described_in_the_reference() -> None:
    page = reference_page()
    for kind in ("update_rule", "potential_embedding", "nonlinearity", "field_readout"):
        for entry in registry.describe(kind):
            section = page.partition(f"#### {entry.name}\n")[2].partition("####")[0]
            for option in entry.options:
                if entry.source is None:
                    (line,) = re.findall(rf"\| `{option.name}` .*", section)
                    assert len(line.split(" | ")) == 4, line


def test_first_lines_for_the_list_of_blocks() -> None:
    for kind in registry.kinds():
        for entry in registry.describe(kind.name):
            if entry.source is None:
                assert entry.summary.endswith("."), entry.name
                assert len(entry.summary) < 100, entry.name


def test_a_readout_can_be_checked_too() -> None:
    check_field_readout({"type": "StrictQuadraticFieldEnergyReadout", "n_channels": 2})
