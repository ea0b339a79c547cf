"""Files of PolarMACE against the numbers of mace-torch, and where fpmace departs from them."""

from __future__ import annotations

import dataclasses
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fpmace.conversion.convert import Conversion, convert_file
from fpmace.data.batch import Batch
from fpmace.models.base import Model
from fpmace.models.initial import rebuilt
from fpmace.models.io import load_model, save_model
from fpmace.models.polar import PolarMACE
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.systems import structure_batch
from verification.polar_conventions import use_polar_conventions

DATA = Path(__file__).parent / "data" / "polar"
Arrays = dict[str, NDArray[Any]]
FIELDS = {
    "energy": "energy",
    "forces": "forces",
    "density_coefficients": "density",
    "spin_density": "spin_density",
    "dipole": "dipole",
    "electrostatic_energy": "electrostatic_energy",
    "electron_energy": "electron_energy",
    "stress_fd": "stress",
}
TOLERANCES = {"polar_m": 5e-6, "polar_one_step": 1e-8}
"""Relative to max(1, largest value): constants of a float32 file are recomputed in float64."""
STRESS = 1e-6


@cache
def stored(name: str) -> Arrays:
    with np.load(DATA / f"{name}.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Conversion]:
    folder = tmp_path_factory.mktemp("polar")
    found = {}
    for name in TOLERANCES:
        path = folder / f"{name}.model"
        path.write_bytes(lzma.decompress((DATA / f"{name}.model.xz").read_bytes()))
        found[name] = convert_file(path)
    return found


def batch_of(name: str, case: str, r_max: float, head: int = 0) -> Batch:
    data = stored(name)
    members = [
        {key: data[f"{part}/{key}"] for key in ("positions", "numbers", "cell", "pbc")}
        for part in case.split("+")
    ]

    def stacked(key: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([data[f"{part}/{key}"] for part in case.split("+")]))

    return dataclasses.replace(
        structure_batch(members, r_max),
        total_charge=stacked("total_charge"),
        total_spin=stacked("total_spin"),
        external_field=stacked("external_field"),
        head=torch.full((len(members),), head),
    )


def polar(conversion: Conversion) -> PolarMACE:
    model = rebuilt(conversion.model.double())  # type: ignore[arg-type]
    assert isinstance(model, PolarMACE)
    return model


def compared(name: str, model: Model, case: str, head: int) -> dict[str, float]:
    """Relative differences of every stored quantity of a case."""
    label = f"{case}/{model.heads[head]}/"
    reference = {k.removeprefix(label): v for k, v in stored(name).items() if k.startswith(label)}
    found = predict(
        model, batch_of(name, case, model.r_max, head), outputs=("forces", "stress", "density")
    )
    errors = {}
    for quantity, value in reference.items():
        own = getattr(found, FIELDS[quantity]).numpy().reshape(value.shape)
        known = ~np.isnan(value)
        errors[quantity] = float(
            np.abs(own - value)[known].max() / max(1.0, np.abs(value[known]).max())
        )
    return errors


def cases(name: str) -> list[str]:
    return sorted({key.split("/")[0] for key in stored(name) if key.endswith("/energy")})


@pytest.mark.parametrize(
    ("name", "case", "head"),
    [
        (name, case, head)
        for name in TOLERANCES
        for case in cases(name)
        for head in range(1 + (name == "polar_one_step"))
    ],
)
def test_numbers_of_the_package(
    name: str, case: str, head: int, conversions: dict[str, Conversion]
) -> None:
    model = use_polar_conventions(polar(conversions[name]))
    errors = compared(name, model, case, head)
    assert {"energy", "forces", "density_coefficients", "spin_density"} <= set(errors)
    for quantity, error in errors.items():
        limit = TOLERANCES[name]
        assert error < (max(limit, STRESS) if quantity == "stress_fd" else limit), quantity


@pytest.mark.parametrize("name", TOLERANCES)
def test_own_electrostatics_agrees_where_the_original_has_no_shortcut(
    name: str, conversions: dict[str, Conversion]
) -> None:
    model = polar(conversions[name])
    for case in ("triclinic_charged", "slab"):
        assert max(compared(name, model, case, 0).values()) < max(TOLERANCES[name], STRESS)
    errors = compared(name, model, "molecule_cation", 0)
    assert 1e-6 < errors["energy"] < 0.1


def test_what_differs_is_said(conversions: dict[str, Conversion]) -> None:
    text = "\n".join(conversions["polar_one_step"].notes)
    assert "never adds" in text
    assert "jump" not in text
    assert "jump at r_max" in "\n".join(conversions["polar_m"].notes)
    report = conversions["polar_one_step"].report
    reasons = {entry.name: entry.note for entry in report.entries}
    assert "never added" in reasons["pair_repulsion_fn.a_exp"]
    assert "add_local_electron_energy" in reasons["local_electron_energy.mlp.net.0.weight"]


def solved(model: Model, batch: Batch) -> Observables:
    options = ScfOptions(scf_tolerance=1e-10, num_scf_steps=100, on_failure="raise")
    mode = build("training_mode", "scf", scf=options)
    return predict(model, batch, mode=mode, outputs=("forces", "density", "spin_density"))


@pytest.mark.parametrize("name", TOLERANCES)
def test_a_converted_model_is_iterated_from_its_own_file(
    name: str, conversions: dict[str, Conversion], tmp_path: Path
) -> None:
    model = rebuilt(polar(conversions[name]), recursion="fixed_point")
    save_model(tmp_path / "iterated.model", model)
    again = load_model(tmp_path / "iterated.model")
    batch = batch_of(name, "triclinic_charged", model.r_max)
    found = solved(again, batch)
    assert found.density is not None
    assert found.spin_density is not None
    assert float(found.density[:, 0].sum() - batch.total_charge) == pytest.approx(0.0, abs=1e-10)
    spin = float(found.spin_density[:, 0].sum() - batch.total_spin + 1.0)
    assert spin == pytest.approx(0.0, abs=1e-10)
    assert found.forces is not None
    step, moved = 1e-4, []
    for sign in (1, -1):
        positions = batch.positions.clone()
        positions[2, 1] += sign * step
        moved.append(float(solved(again, dataclasses.replace(batch, positions=positions)).energy))
    slope = (moved[0] - moved[1]) / (2 * step)
    assert float(found.forces[2, 1]) == pytest.approx(-slope, abs=1e-6)
