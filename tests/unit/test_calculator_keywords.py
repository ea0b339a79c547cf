"""What a calculator is told: keywords, names of other codes, charges that stand elsewhere."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from calculator_cases import affine_model, local_model, water_row

from fpmace.calculators import FixedPointSCFCalculator, GTOCoulombCalculator, MACECalculator
from fpmace.errors import ConfigError
from fpmace.models.io import save_model
from fpmace.observables.response import ResponseProperties
from fpmace.observables.vibrations import Vibrations

RESPONSE_PAGE = Path(__file__).resolve().parents[2] / "docs" / "response.md"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"foo": 1}, r"foo: MACECalculator has no such option .*known: .*model_path"),
        ({"skinn": 0.1}, r"skinn: .*did you mean 'skin'"),
        ({"dtype": "float32", "default_dtype": "float64"}, r"default_dtype: is another name of"),
        ({"model_paths": ["a", "b"]}, r"model_paths: (is another name|2 models given)"),
    ],
)
def test_unknown_keywords_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MACECalculator(local_model(), **given)
    with pytest.raises(ConfigError, match=message.replace("MACECalc", "FixedPointSCFCalc")):
        FixedPointSCFCalculator(affine_model(), **given)


def test_the_coulomb_calculator_refuses_them_too() -> None:
    with pytest.raises(ConfigError, match=r"width: GTOCoulombCalculator has no such option"):
        GTOCoulombCalculator(width=1.0)


def test_names_of_mace_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    save_model(path, local_model())
    for given in (str(path), [str(path)]):
        calculator = MACECalculator(model_paths=given, default_dtype="float32", label="water")
        assert calculator.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"model_paths: 2 models given"):
        MACECalculator(model_paths=["a", "b"])
    with pytest.raises(ConfigError, match=r"model_path: missing"):
        MACECalculator()


def test_charges_that_are_not_read_draw_one_warning() -> None:
    def charged(**info: float) -> Any:
        atoms = water_row(1)
        atoms.info.update(info)
        atoms.set_initial_charges([1.0, 0.0, 0.0])
        return atoms

    calculator = FixedPointSCFCalculator(affine_model())
    with pytest.warns(RuntimeWarning, match=r"sum 1 e\) are not read: 0 is used"):
        calculator.get_property("energy", charged())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = charged()
        moved.positions += 0.1
        calculator.get_property("energy", moved)
        FixedPointSCFCalculator(affine_model()).get_property("energy", charged(total_charge=1.0))
        asked = FixedPointSCFCalculator(affine_model(), charge_key="charge")
        asked.get_property("energy", charged(charge=1.0))
        assert asked.results["total_charge"] == pytest.approx(1.0)
        MACECalculator(local_model()).get_property("energy", charged())
    with pytest.warns(RuntimeWarning, match=r"atoms.info\['charge'\] is not read"):
        FixedPointSCFCalculator(affine_model()).get_property("energy", charged(charge=1.0))


def test_the_page_lists_fields_that_a_response_has() -> None:
    rows = [line.split("|") for line in RESPONSE_PAGE.read_text().splitlines() if "|" in line]
    table = [row[2] for row in rows if len(row) == 7][2:]
    listed = [name for cell in table for name in re.findall(r"`(\w+)`", cell)]
    own = {item.name for item in dataclasses.fields(ResponseProperties)}
    nested = {item.name for item in dataclasses.fields(Vibrations)}
    assert len(listed) > 10
    assert set(listed) - nested <= own
