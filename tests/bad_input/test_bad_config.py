"""Wrong configurations and command lines: one clear line each, exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from fpmace.cli.train import main

STAGE = "{name: %s, start: %d, end: %d, loss: {forces: 1.0}, lr: 0.01}"


def schedule(*stages: str) -> str:
    return "train_schedule:\n" + "".join(f"  {i}: {text}\n" for i, text in enumerate(stages))


def stage(options: str) -> str:
    head = "name: a, start: 0, end: 9, loss: {forces: 1.0}, lr: 0.01"
    return schedule(f"{{{head}, fixed_point_training_options: {options}}}")


YAML_CASES: dict[str, tuple[str, list[str]]] = {
    "unknown key": (
        "hiden_irreps: 8x0e\n",
        ["hiden_irreps", "config.yaml:2", "unknown option", "did you mean 'hidden_irreps'"],
    ),
    "wrong type": ("r_max: five\n", ["r_max", "config.yaml:2", "expects number", "'five'"]),
    "number for text": ("name: 12\n", ["name", "expects text", "put it in quotes: '12'"]),
    "schedule that is a list": (
        "train_schedule: [{name: a, start: 0, end: 9, loss: {forces: 1.0}, lr: 0.01, x: 12}]\n",
        ["train_schedule", "expects mapping", "..."],
    ),
    "number out of range": ("r_max: -1\n", ["r_max", "above 0", "-1"]),
    "not finite": ("lr: .nan\n", ["lr", "nan"]),
    "true or false": ("ema: maybe\n", ["ema", "true or false", "'maybe'"]),
    "wrong choice": (
        "electrostatic_pbc_method: slabb\n",
        ["electrostatic_pbc_method", "'slabb'", "did you mean 'slab'", "molecule_in_box"],
    ),
    "part that is not registered": (
        "field_readout_config:\n  type: StrictQuadraticReadout\n",
        ["field_readout_config.type", "config.yaml:3", "StrictQuadraticFieldEnergyReadout"],
    ),
    "part without type": (
        "field_readout_config: {n_channels: 3}\n",
        ["field_readout_config.type", "missing", "NullFieldReadout"],
    ),
    "option that a part does not have": (
        "fixedpoint_update_config: {type: OneBodyVariableUpdate, num_layer: 2}\n",
        ["fixedpoint_update_config.num_layer", "no option 'num_layer'", "nonlinearity_cls"],
    ),
    "nested part": (
        "fixedpoint_update_config: {type: OneBodyVariableUpdate, nonlinearity_cls: MLP}\n",
        ["fixedpoint_update_config.nonlinearity_cls.type", "no nonlinearity named 'MLP'"],
    ),
    "unknown model": ("model: MACEE\n", ["model", "no model named 'MACEE'", "'MACE'"]),
    "option of another model": (
        "model: MACE\nfield_feature_widths: [1.0]\n",
        ["field_feature_widths", "no meaning for model 'MACE'"],
    ),
    "contradicting irreps": (
        "hidden_irreps: 8x0e+8x1o\nnum_channels: 16\n",
        ["num_channels", "contradicts hidden_irreps '8x0e+8x1o'"],
    ),
    "not irreps": ("hidden_irreps: 8xx0e\n", ["hidden_irreps", "8xx0e", "32x0e+32x1o"]),
    "odd scalars": ("hidden_irreps: 8x0o\n", ["hidden_irreps", "8x0o"]),
    "length of norms": (
        "field_feature_norms: [1.0, 2.0]\n",
        ["field_feature_norms", "expects 4 numbers", "got 2"],
    ),
    "negative width": (
        "field_feature_widths: [1.5, -3.0]\n",
        ["field_feature_widths", "above 0"],
    ),
    "E0s": ("E0s: isolated\n", ["E0s", "IsolatedAtom", "average", "'isolated'"]),
    "unknown property in heads": (
        "heads: {a: {info_keys: {enrgy: REF_energy}}}\n",
        ["heads.a.info_keys.enrgy", "unknown property", "'energy'"],
    ),
    "valid_file and valid_fraction": (
        "valid_file: b.xyz\nvalid_fraction: 0.1\n",
        ["valid_fraction", "valid_file is given too"],
    ),
    "device": ("device: gpu\n", ["device", "cpu, cuda or cuda:N", "'gpu'"]),
    "amsgrad of an optimizer without it": (
        "optimizer: schedulefree\namsgrad: true\n",
        ["amsgrad", "schedulefree"],
    ),
    "epochs against schedule": (
        "max_num_epochs: 5\n" + schedule(STAGE % ("a", 0, 9)),
        ["max_num_epochs", "5 contradicts train_schedule", "10 epochs"],
    ),
    "gap between stages": (
        schedule(STAGE % ("a", 0, 9), STAGE % ("b", 11, 20)),
        ["train_schedule.1.start", "leaves a gap after stage 0", "expected start: 10"],
    ),
    "overlapping stages": (
        schedule(STAGE % ("a", 0, 9), STAGE % ("b", 9, 20)),
        ["train_schedule.1.start", "overlaps stage 0", "expected start: 10"],
    ),
    "first stage": (schedule(STAGE % ("a", 1, 9)), ["train_schedule.0.start", "epoch 0, got 1"]),
    "stage that ends early": (
        schedule(STAGE % ("a", 0, -1)),
        ["train_schedule.0.end", "-1 is before the first, 0"],
    ),
    "two stages of one name": (
        schedule(STAGE % ("a", 0, 1), STAGE % ("a", 2, 3)),
        ["train_schedule.1.name", "'a' is that of stage 0"],
    ),
    "unknown key of a stage": (
        schedule("{name: a, start: 0, ende: 9, loss: {forces: 1.0}, lr: 0.01, end: 9}"),
        ["train_schedule.0.ende", "did you mean 'end'"],
    ),
    "stage numbers": (
        "train_schedule:\n  1: {name: a, start: 0, end: 9}\n",
        ["train_schedule.1", "expected 0, got 1"],
    ),
    "unknown loss": (
        schedule("{start: 0, end: 9, loss: {force: 1.0}}"),
        ["train_schedule.0.loss.force", "no loss named 'force'", "'forces'"],
    ),
    "negative weight": (
        schedule("{start: 0, end: 9, loss: {forces: -1.0}}"),
        ["train_schedule.0.loss.forces", "weight >= 0", "-1.0"],
    ),
    "direct with scf": (
        stage("{mode: direct, scf: {num_scf_steps: 10}}"),
        ["train_schedule.0.fixed_point_training_options.scf", "'direct' does not run an SCF loop"],
    ),
    "unroll without steps": (
        stage("{mode: unroll_scf, scf: {constant_charge: true}}"),
        ["fixed_point_training_options.scf", "needs num_scf_steps and mixing_parameter"],
    ),
    "implicit without scf": (
        stage("{mode: implicit}"),
        ["fixed_point_training_options.scf", "needs num_scf_steps and mixing_parameter"],
    ),
    "unknown scf key": (
        stage("{mode: unroll_scf, scf: {num_scf_steps: 10, mixing_paramter: 0.3}}"),
        ["scf.mixing_paramter", "did you mean 'mixing_parameter'", "initial_density"],
    ),
    "initial density": (
        stage("{mode: unroll_scf, scf: {num_scf_steps: 9, mixing_parameter: 0.3, "
              "initial_density: data}}"),
        ["scf.initial_density", "'from_data'", "'local_guess'", "'zero'", "'data'"],
    ),
    "mixing out of range": (
        stage("{mode: unroll_scf, scf: {num_scf_steps: 10, mixing_parameter: 3}}"),
        ["scf.mixing_parameter", "number above 0 and at most 1", "3"],
    ),
    "history of a solver": (
        stage("{mode: implicit, scf: {solver: {type: anderson, history: 0}}}"),
        ["scf.solver", "history", "whole number at least 1", "0"],
    ),
    "tolerance of a solver": (
        stage("{mode: implicit, scf: {solver: {type: cg, linear_tolerance: 2}}}"),
        ["scf.solver", "linear_tolerance", "number above 0 and at most 0.5", "2"],
    ),
    "unknown mode": (
        stage("{mode: unrolled}"),
        ["fixed_point_training_options.mode", "'unrolled'", "did you mean 'unroll_scf'"],
    ),
    "no mode": (stage("{scf: {}}"), ["fixed_point_training_options", "'mode'", "direct"]),
    "tolerance of float32": (
        "default_dtype: float32\nscf_options: {scf_tolerance: 1.0e-9}\n",
        ["scf_options.scf_tolerance", "1e-09", "float32", "float64"],
    ),
    "plugin that does not exist": (
        "plugins: [nowhere.py]\n",
        ["plugins", "config.yaml:2", "no such file 'nowhere.py'"],
    ),
}  # fmt: skip

FLAG_CASES: dict[str, tuple[list[str], list[str]]] = {
    "unknown flag": (
        ["--train_file", "a.xyz", "--hiden_irreps", "8x0e"],
        ["--hiden_irreps", "unknown flag", "did you mean '--hidden_irreps'"],
    ),
    "flag without value": (["--r_max"], ["--r_max", "expected one argument"]),
    "loose word": (["--train_file", "a.xyz", "b.xyz"], ["unexpected argument 'b.xyz'"]),
    "no training data": ([], ["train_file", "missing", ".xyz, .h5 or a folder"]),
    "not YAML": (
        ["--train_file", "a", "--E0s", "{1: -13.6"],
        ["E0s (--E0s)", "is not a YAML value"],
    ),
    "config that does not exist": (
        ["--config", "nowhere.yaml"],
        ["nowhere.yaml", "cannot read the configuration file"],
    ),
}

FILE_CASES: dict[str, tuple[str, list[str]]] = {
    "broken YAML": ("r_max: [1, 2\nseed: 3\n", ["config.yaml", "line 2"]),
    "a list": ("- r_max\n- seed\n", ["config.yaml", "'name: value' lines"]),
    "a key twice": ("r_max: 4\nr_max: 5\n", ["config.yaml", "line 2", "'r_max' is given twice"]),
}


def check(arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1, captured.err
    for part in parts:
        assert part in captured.err


@pytest.mark.parametrize("case", YAML_CASES)
def test_wrong_yaml(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, parts = YAML_CASES[case]
    path = tmp_path / "config.yaml"
    path.write_text("train_file: a.xyz\n" + text)
    check(["--config", str(path)], parts, capsys)


@pytest.mark.parametrize("case", FLAG_CASES)
def test_wrong_flags(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(*FLAG_CASES[case], capsys)


@pytest.mark.parametrize("case", FILE_CASES)
def test_wrong_file(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, parts = FILE_CASES[case]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    check(["--config", str(path)], parts, capsys)
