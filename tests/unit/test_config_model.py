"""The model of a configuration: an option under all its names, and options of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml

from fpmace import registry
from fpmace.annotations import Bounds, Doc, Unit
from fpmace.config.aliases import ALIASES, flattened
from fpmace.config.load import ConfigProblems, load_config, resolve
from fpmace.config.reference import reference_page
from fpmace.config.schema import OPTIONS
from fpmace.errors import ConfigError
from fpmace.models.mace import MACE
from fpmace.registry import register_model
from fpmace.testing.systems import random_model

SEED_PAGE = (
    "atomic_multipoles_max_l",
    "atomic_multipoles_smearing_width",
    "kspace_cutoff_factor",
    "electrostatic_pbc_method",
    "include_electrostatic_self_interaction",
    "field_feature_max_l",
    "field_feature_widths",
    "field_feature_norms",
    "include_field_si",
    "fixedpoint_update_config",
    "use_linear_local_charges",
    "atom_density_scaling",
    "field_readout_config",
)


def write(folder: Path, text: str, name: str = "config.yaml") -> str:
    path = folder / name
    path.write_text("train_file: a.xyz\n" + text)
    return str(path)


def problem(*argv: str) -> str:
    with pytest.raises(ConfigProblems) as caught:
        load_config(["--train_file", "a.xyz", *argv])
    assert len(caught.value.problems) == 1
    return str(caught.value)


@pytest.fixture
def own_model() -> Iterator[type]:
    """A model of a user's own, with an option that no other has."""

    @register_model("OwnModel")
    class OwnModel(MACE):
        """MACE with a number."""

        def __init__(
            self,
            *,
            smearing: Annotated[float, Bounds(above=0), Unit("Angstrom"), Doc("charge width")],
            taper: float | None = None,
            **backbone: Any,
        ) -> None:
            super().__init__(**backbone)
            self.smearing, self.taper = smearing, taper

        @staticmethod
        def complete_options(given: dict[str, Any]) -> dict[str, Any]:
            if given.get("taper", 1.0) > 10.0 * given.get("smearing", 1.0):
                raise ConfigError("is above ten times smearing", where="taper")
            return {"taper": 2.0 * given["smearing"], **given} if "smearing" in given else given

    yield OwnModel
    registry.unregister("model", "OwnModel")


@pytest.mark.parametrize("flat", ALIASES)
def test_every_flat_name_is_an_option_of_the_model(flat: str) -> None:
    option = registry.get("model", "FixedPoint").option(ALIASES[flat])
    assert option is not None
    assert option.meaning
    assert OPTIONS[flat].meaning == option.meaning
    resolved = resolve({"train_file": "a"}).config
    assert getattr(resolved, flat) == resolved.model_options.get(option.name)
    value = OPTIONS[flat].default
    assert getattr(resolve({"train_file": "a", flat: value}).config, flat) == getattr(
        resolved, flat
    )


def test_names_of_the_first_page_are_flat_names() -> None:
    assert set(SEED_PAGE) <= set(ALIASES)
    with pytest.raises(AttributeError, match="no option 'r_mix'"):
        _ = resolve({"train_file": "a"}).config.r_mix


def test_an_option_is_declared_once(tmp_path: Path) -> None:
    """Its range and meaning in the constructor, in YAML, in a flag and on the page."""
    expected = "expects number above 0, got -1"
    with pytest.raises(ConfigError, match=f"atomic_multipoles_smearing_width: .*{expected}"):
        random_model(atomic_multipoles_smearing_width=-1.0)
    for text in (
        "atomic_multipoles_smearing_width: -1\n",
        "model: {type: FixedPoint, atomic_multipoles_smearing_width: -1}\n",
    ):
        assert expected in problem("--config", write(tmp_path, text))
    assert problem("--atomic_multipoles_smearing_width", "-1") == (
        "atomic_multipoles_smearing_width (--atomic_multipoles_smearing_width): " + expected
    )
    row = r"\| `atomic_multipoles_smearing_width` \| number above 0 \| `1.5` \| Width of the .*"
    assert len(re.findall(row + "Angstrom", reference_page())) >= 2


def test_model_block_and_flat_names_say_the_same(tmp_path: Path) -> None:
    flat = "r_max: 4\ninclude_field_si: true\nelectrostatic_pbc_method: slab\nmax_L: 0\n"
    block = (
        "model: {type: FixedPoint, r_max: 4.0, field_si: true, pbc_handling: slab, "
        "hidden_irreps: 32x0e}\n"
    )
    first = load_config(["--config", write(tmp_path, flat)])
    second = load_config(["--config", write(tmp_path, block, "b.yaml")])
    assert first.config == second.config
    assert first.origins["model.field_si"].endswith("config.yaml:3")
    assert second.origins["include_field_si"].endswith("b.yaml:2")
    assert resolve({"train_file": "a", "model": "MACE"}).config.model_name == "MACE"
    names = flattened(yaml.safe_load(block))
    assert names["electrostatic_pbc_method"] == "slab"
    assert names["r_max"] == 4.0


def test_two_names_with_two_values_are_refused(tmp_path: Path) -> None:
    text = "include_field_si: false\nmodel: {type: FixedPoint, field_si: true}\n"
    message = problem("--config", write(tmp_path, text))
    assert message.startswith("include_field_si (")
    assert "is False, but model.field_si, another name for it, is True; leave one out" in message
    same = "include_field_si: true\nmodel: {type: FixedPoint, field_si: true}\n"
    assert load_config(["--config", write(tmp_path, same)]).config.include_field_si is True


def test_what_is_given_later_wins_under_either_name(tmp_path: Path) -> None:
    block = write(tmp_path, "model: {type: FixedPoint, r_max: 4.0, max_ell: 2}\n", "a.yaml")
    flat = write(tmp_path, "r_max: 3.0\n", "b.yaml")
    config = load_config(["--config", block, flat]).config
    assert (config.r_max, config.max_ell) == (3.0, 2)
    assert load_config(["--config", flat, block]).config.r_max == 4.0
    config = load_config(["--config", block, "--r_max", "3.5"]).config
    assert (config.r_max, config.max_ell) == (3.5, 2)
    config = load_config(["--config", flat, "--model", "MACE"]).config
    assert (config.model_name, config.r_max) == ("MACE", 3.0)


def test_option_of_a_model_of_ones_own(own_model: type, tmp_path: Path) -> None:
    text = "model: {type: OwnModel, smearing: 0.7, r_max: 4.0}\n"
    by_file = load_config(["--config", write(tmp_path, text)])
    by_flag = load_config(
        ["--train_file", "a.xyz", "--model", "{type: OwnModel, smearing: 0.7}", "--r_max=4"]
    )
    assert by_file.config == by_flag.config
    model = by_file.config.model_options
    assert (model["smearing"], model["taper"], model["r_max"]) == (0.7, 1.4, 4.0)
    assert "atomic_numbers" not in model
    again = load_config(
        ["--config", write(tmp_path, by_file.to_yaml().replace("\ntrain_file", "\n#"))]
    )
    assert again.config == by_file.config


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("smearing: -1", "model.smearing (--model): expects number above 0, got -1"),
        ("smearing: wide", "model.smearing (--model): expects number, got 'wide'"),
        ("smering: 0.7", "OwnModel has no option 'smering'; did you mean 'smearing'? (accepts: "),
        ("r_max: 4", "model.smearing (--model): OwnModel needs the option 'smearing'"),
        ("smearing: 1, taper: 11", "model.taper (--model): is above ten times smearing"),
        ("smearing: 1, correlation: [1]", "model.correlation (--model): expects one order for"),
        ("smearing: 1, atomic_numbers: [1]", "comes from the training data; leave it out"),
        ("smearing: 1, include_field_si: true", "OwnModel has no option 'include_field_si'"),
    ],
)
def test_wrong_options_of_ones_own_model(own_model: type, options: str, text: str) -> None:
    assert text in problem("--model", f"{{type: OwnModel, {options}}}")


def test_a_flat_name_without_a_meaning_for_the_model_is_refused(own_model: type) -> None:
    given = ("--model", "{type: OwnModel, smearing: 1}")
    assert "include_field_si (--include_field_si): has no meaning for model 'OwnModel'" in problem(
        *given, "--include_field_si"
    )
    load_config(["--train_file", "a", *given, "--include_field_si", "false"])


def test_quotes_of_flags_work_in_files(tmp_path: Path) -> None:
    text = (
        "field_feature_norms: '[25.0,25.0,1.0,1.0]'\n"
        "field_readout_config: \"{'type': 'NullFieldReadout'}\"\n"
        "E0s: '{1: -13.6, 8: -2040}'\nlr: '1e-3'\nsplit_by: None\ngate: None\n"
    )
    config = load_config(["--config", write(tmp_path, text)]).config
    assert config.field_feature_norms == (25.0, 25.0, 1.0, 1.0)
    assert config.field_readout_config == {"type": "NullFieldReadout"}
    assert config.E0s == {1: -13.6, 8: -2040.0}
    assert (config.lr, config.split_by, config.gate) == (1e-3, None, None)


def test_resolved_configuration_of_the_first_format_opens() -> None:
    path = Path(__file__).parents[1] / "golden" / "data" / "config_v1.yaml"
    config = load_config(["--config", str(path)]).config
    assert config.model_options["pbc_handling"] == config.electrostatic_pbc_method == "slab"
    assert config.model_options["num_bessel"] == 6
    assert config.model_options["avg_num_neighbors"] == 12.0
    assert (config.gate, config.num_channels, config.include_field_si) == (None, 8, True)
    assert config.field_feature_norms == (1.0, 2.0, 3.0, 4.0)
    assert config.max_num_epochs == 100
