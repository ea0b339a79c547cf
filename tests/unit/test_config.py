"""Configuration: defaults, files and flags become one checked, reproducible whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fpmace.config.flags import make_parser
from fpmace.config.load import ConfigProblems, load_config, resolve
from fpmace.config.reference import reference_page
from fpmace.config.schema import OPTIONS, TrainConfig
from fpmace.config.yaml_file import parse_value, read_yaml
from fpmace.training.parameter_groups import GROUPS

REPOSITORY = Path(__file__).parents[2]

SCHEDULE = """\
train_schedule:
  0:
    name: direct
    start: 0
    end: 99
    loss: {atomic_multipoles: 100.0, total_charge_per_atom: 1000.0, dipole_per_atom: 1000000.0,
           energy_per_atom: 10.0, forces: 100.0}
    lr: 0.01
    fixed_point_training_options: {mode: direct}
  1:
    name: unroll
    start: 100
    end: 110
    loss: {atomic_multipoles: 100.0, energy_per_atom: {weight: 1000.0}, forces: 100.0}
    lr: 0.001
    field_block_lr: 0.0001
    fixed_point_training_options:
      mode: unroll_scf
      scf: {num_scf_steps: 10, constant_charge: true, mixing_parameter: 0.3,
            initial_density: from_data, initial_fermi_level: from_data, use_autograd_forces: true}
"""


def write(folder: Path, text: str, name: str = "config.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_defaults_files_and_flags_in_this_order(tmp_path: Path) -> None:
    first = write(tmp_path, "train_file: a.xyz\nr_max: 4.0\nmax_ell: 2\nseed: 5\n", "a.yaml")
    second = write(tmp_path, "r_max: 4.5\nmax_ell: 1\n", "b.yaml")
    resolved = load_config(["--config", first, second, "--max_ell", "0"])
    config = resolved.config
    assert (config.train_file, config.r_max, config.max_ell, config.seed) == ("a.xyz", 4.5, 0, 5)
    assert config.correlation == 3
    assert resolved.origins["correlation"] == "default"
    assert resolved.origins["r_max"] == f"{second}:1"
    assert resolved.origins["max_ell"] == "--max_ell"
    assert resolved.origins["seed"] == f"{first}:4"


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--ema"], "ema", True),
        (["--ema", "false"], "ema", False),
        (["--ema=False"], "ema", False),
        (["--plot"], "plot", True),
        (["--E0s", "{1: -13.6, 8: -2040}"], "E0s", {1: -13.6, 8: -2040.0}),
        (["--E0s", "IsolatedAtom"], "E0s", "IsolatedAtom"),
        (["--field_feature_norms", "[25.0,25.0,1.0,1.0]"], "field_feature_norms", (25, 25, 1, 1)),
        (["--field_feature_norms=average"], "field_feature_norms", "average"),
        (["--field_feature_norms", "None"], "field_feature_norms", None),
        (["--atom_density_scaling", "{1: 0.5, 8: 2.0}"], "atom_density_scaling", {1: 0.5, 8: 2}),
        (["--fermi_level_offset", "-4.5"], "fermi_level_offset", -4.5),
        (["--lr", "1e-3"], "lr", 1e-3),
        (["--clip_grad", "None"], "clip_grad", None),
        (["--name", "007"], "name", "007"),
        (["--radial_MLP", "[8, 8]"], "radial_MLP", (8, 8)),
        (["--dry-run"], "dry_run", True),
        (["--config_type_weights", "{'Default': 1, 'rare': 5.0}"], "config_type_weights",
         {"Default": 1.0, "rare": 5.0}),
    ],
)  # fmt: skip
def test_values_of_flags(flags: list[str], name: str, value: Any) -> None:
    config = load_config(["--train_file", "a.xyz", *flags]).config
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


def test_python_quotes_and_yaml_are_one_path(tmp_path: Path) -> None:
    flag = "{'type': 'OneBodyMLPFieldReadout'}"
    path = write(
        tmp_path, "train_file: a\nfield_readout_config:\n  type: OneBodyMLPFieldReadout\n"
    )
    by_flag = load_config(["--train_file", "a", "--field_readout_config", flag]).config
    by_file = load_config(["--config", path]).config
    assert by_flag.field_readout_config == by_file.field_readout_config
    assert by_flag.field_readout_config["type"] == "OneBodyMLPFieldReadout"


def test_schedule(tmp_path: Path) -> None:
    config = load_config(["--config", write(tmp_path, "train_file: a\n" + SCHEDULE)]).config
    direct, unroll = config.stages
    assert (direct.name, direct.start, direct.end, direct.lr) == ("direct", 0, 99, 0.01)
    assert direct.mode == {"type": "direct", "density_noise": 0.0}
    assert direct.scf == {}
    assert direct.loss["dipole_per_atom"] == 1e6
    assert unroll.mode is not None
    assert unroll.mode["type"] == "unroll_scf"
    assert unroll.group_lrs == {"field_block": 1e-4}
    options = unroll.scf_options()
    assert (options.num_scf_steps, options.mixing_parameter) == (10, 0.3)
    assert (options.initial_density, options.initial_fermi_level) == ("from_data", "from_data")
    assert config.max_num_epochs == 111
    assert unroll.n_epochs == 11


def test_one_stage_without_a_schedule() -> None:
    config = resolve(
        {"train_file": "a", "max_num_epochs": 7, "loss": {"forces": 1.0}, "products_lr": 0.5}
    ).config
    (stage,) = config.stages
    assert (stage.start, stage.end, stage.lr) == (0, 6, config.lr)
    assert stage.loss == {"forces": 1.0}
    assert stage.group_lrs == {"products": 0.5}
    assert stage.mode == {"type": "direct", "density_noise": 0.0}


def test_models_without_density_have_no_mode_and_no_density_options() -> None:
    resolved = resolve({"train_file": "a", "model": "MACE"})
    assert resolved.config.stages[0].mode is None
    assert "field_readout_config" not in yaml.safe_load(resolved.to_yaml())


@pytest.mark.parametrize(
    ("given", "irreps", "channels", "max_L"),
    [
        ({}, "32x0e+32x1o", 32, 1),
        ({"num_channels": 16, "max_L": 2}, "16x0e+16x1o+16x2e", 16, 2),
        ({"num_channels": 8}, "8x0e+8x1o", 8, 1),
        ({"max_L": 0}, "32x0e", 32, 0),
        ({"hidden_irreps": "8x0e+8x1o", "num_channels": 8, "max_L": 1}, "8x0e+8x1o", 8, 1),
        ({"hidden_irreps": "16x0e+8x1o"}, "16x0e+8x1o", None, 1),
    ],
)
def test_hidden_irreps(
    given: dict[str, Any], irreps: str, channels: int | None, max_L: int
) -> None:
    config = resolve({"train_file": "a", **given}).config
    assert (config.hidden_irreps, config.num_channels, config.max_L) == (irreps, channels, max_L)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model": "ScaleShiftMACE", "correlation": [2, 3], "E0s": {1: -13.6}},
        {"optimizer": "schedulefree", "lr": 1e-7, "plugins": [], "valid_file": "v.h5"},
        {"optimizer": {"type": "adamw", "beta1": 0.8, "amsgrad": False}},
        {"field_feature_norms": [1.0, 2.0, 3.0, 4.0], "gate": None, "split_by": "traj"},
        {"fixedpoint_update_config": {"type": "OneBodyVariableUpdate",
                                      "nonlinearity_cls": "MLPNonLinearity"}},
        yaml.safe_load(SCHEDULE),
    ],
)  # fmt: skip
def test_resolved_configuration_reproduces_itself(values: dict[str, Any], tmp_path: Path) -> None:
    resolved = resolve({"train_file": "a", **values})
    again = load_config(["--config", write(tmp_path, resolved.to_yaml())])
    assert again.config == resolved.config
    repeated = load_config(["--config", write(tmp_path, again.to_yaml(), "again.yaml")])
    assert repeated.config == resolved.config


def test_resolved_configuration_shows_origins(tmp_path: Path) -> None:
    path = write(tmp_path, "train_file: a.xyz\n")
    text = load_config(["--config", path, "--r_max=4.0"]).to_yaml()
    assert f"train_file: a.xyz  # {path}:1" in text
    assert "r_max: 4.0  # --r_max" in text


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "r_max: five\nhiden_irreps: 8x0e\nfield_readout_config: Nul\n")
    with pytest.raises(ConfigProblems) as excinfo:
        load_config(["--config", path])
    report = str(excinfo.value)
    assert report.startswith(f"{path}: 4 problems, nothing was run\n 1. ")
    assert len(report.splitlines()) == 5
    assert f"hiden_irreps ({path}:2): unknown option; did you mean 'hidden_irreps'?" in report
    assert f"r_max ({path}:1): expects number, got 'five'" in report
    assert f"field_readout_config.type ({path}:3)" in report


def test_every_option_has_help_and_a_flag() -> None:
    text = make_parser().format_help()
    for item in OPTIONS.values():
        assert item.meaning, item.name
        assert f"{item.flag} " in text, item.name


def test_every_parameter_group_has_a_learning_rate() -> None:
    assert {f"{group}_lr" for group in GROUPS} <= set(OPTIONS)


def test_defaults_are_of_their_own_type() -> None:
    resolved = resolve({"train_file": "a"})
    assert isinstance(resolved.config, TrainConfig)


def test_yaml_without_surprises() -> None:
    assert parse_value("1e-3") == 1e-3
    assert parse_value("no") == "no"
    assert parse_value("1:30") == "1:30"
    assert parse_value("2024-01-02") == "2024-01-02"
    assert parse_value("{'a': [1, 2.5, True], 'b': null}") == {"a": [1, 2.5, True], "b": None}


def test_yaml_lines(tmp_path: Path) -> None:
    content = read_yaml(write(tmp_path, "a: 1\nb:\n  c:\n    - x\n    - y\n"))
    assert content.origin("b.c.1").endswith(":5")
    assert content.origin("b.c.unknown").endswith(":3")


def test_reference_page_is_up_to_date() -> None:
    page = (REPOSITORY / "docs" / "reference.md").read_text()
    assert page == reference_page(), "run python scripts/make_reference.py"
