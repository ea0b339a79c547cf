"""A model knows the inputs and keys it was trained on; calculators and evaluation use them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
from ase import Atoms
from ase.io import write
from calculator_cases import affine_model, local_model, water_row

from fpmace.calculators import FixedPointSCF, MACECalculator
from fpmace.data.configuration import configuration_from_atoms
from fpmace.data.dataset import dataset_from_configurations, make_loader
from fpmace.data.options import DataOptions
from fpmace.data.trained_range import TrainedRange, charge_and_field
from fpmace.evaluation.evaluate import evaluate_file
from fpmace.evaluation.options import EvaluationOptions
from fpmace.models.io import load_model, save_model

RANGE = {"total charge": (-1.0, 1.0), "external field": (0.0, 0.1), "Fermi level": (-6.0, -4.0)}
MAPPING = {"keys": {"energy": "my_energy", "forces": "my_forces"}, "explicit": ["energy"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("range") / "a.model"
    save_model(path, affine_model(), {"trained_range": RANGE, "keys": MAPPING})
    return path


def charged(charge: float, field: float = 0.0, **info: float) -> Atoms:
    atoms = water_row(1)
    atoms.info.update(total_charge=charge, external_field=[0.0, 0.0, field], **info)
    return atoms


def test_range_is_that_of_the_data() -> None:
    frames = [charged(0.0, REF_fermi_level=-5.0), charged(3.0, 0.2), charged(-1.0)]
    options = DataOptions()
    configs = [configuration_from_atoms(atoms, options) for atoms in frames]
    loader = make_loader(dataset_from_configurations(configs, 3.0), 2)
    found = TrainedRange.of(loader).values
    assert found["total charge"] == (-1.0, 3.0)
    assert found["charge per atom"] == pytest.approx((-1 / 3, 1.0))
    assert found["external field"] == pytest.approx((0.0, 0.2))
    assert found["Fermi level"] == (-5.0, -5.0)


def test_only_what_lies_outside_is_told() -> None:
    known = TrainedRange(RANGE)
    assert known.outside(charge_and_field(1.0, (0.06, 0.0, 0.08), 3)) == {}
    assert set(known.outside(charge_and_field(2.0, (0.1, 0.0, 0.1), 3))) == {
        "total charge",
        "external field",
    }
    assert set(known.outside(charge_and_field(9.0, (0.0, 0.0, 0.0), 3, -3.0))) == {"Fermi level"}
    assert set(known.outside(charge_and_field(math.nan, (0.0, 0.0, 0.0), 3))) == {"total charge"}


def test_calculators_warn_once(model: Path) -> None:
    calculator = FixedPointSCF(model)
    with pytest.warns(RuntimeWarning, match=r"total charge 3 e lies outside .*-1 to 1 e"):
        calculator.get_property("energy", charged(3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.get_property("energy", charged(4.0))
        FixedPointSCF(model, pbc_handling="realspace").get_property("energy", charged(1.0))
        MACECalculator(local_model()).get_property("energy", charged(3.0))
    held = FixedPointSCF(model, scf_options={"constant_charge": False, "initial_fermi_level": 0.5})
    with pytest.warns(RuntimeWarning, match=r"Fermi level 0\.5 eV lies outside"):
        held.get_property("energy", charged(0.0))


def test_evaluation_warns_and_reads_the_keys_of_the_training(model: Path, tmp_path: Path) -> None:
    frames = [charged(0.0, my_energy=-1.0), charged(3.0, my_energy=-1.0)]
    write(tmp_path / "a.xyz", frames)
    said: list[str] = []
    names = {"configs": tmp_path / "a.xyz", "model": model, "output": tmp_path / "b.xyz"}
    options = EvaluationOptions(**{name: str(path) for name, path in names.items()})
    report = evaluate_file(options, message=said.append)
    assert report.errors["all"]["energy"].count == 2
    assert "energy is read from my_energy, as in training" in said
    (warning,) = [text for text in said if text.startswith("warning")]
    assert "configuration 1: total charge 3 e lies outside" in warning
    assert load_model(model).metadata["keys"] == MAPPING
