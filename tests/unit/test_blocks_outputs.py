"""Settings that switch outputs and terms, precision, and torch's default dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from fixed_point_cases import make_mode

from fpmace.config.load import resolve
from fpmace.data.batch import Batch
from fpmace.data.statistics import DatasetStatistics
from fpmace.density_modes.base import DensityMode
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.models.geometry import element_index, make_geometry
from fpmace.models.io import load_model, save_model
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.testing.block_contract import molecule, tiny_model
from fpmace.testing.covering import every_pair
from fpmace.testing.systems import atoms_batch
from fpmace.training.setup import model_config

QUADRATIC = {"type": "StrictQuadraticFieldEnergyReadout", "n_channels": 2}
MODES = ("direct", "unroll_scf", "scf", "implicit", "linearize_solve")


def loose_mode(name: str, **options: Any) -> DensityMode:
    """A mode at constant level whose unrolled loop is short."""
    settings = {"num_scf_steps": 40, "scf_tolerance": 1e-10, "constant_charge": False, **options}
    if name == "unroll_scf":
        settings = {**settings, "mixing_parameter": 0.8, "on_failure": "ignore"}
    return make_mode(name, **settings)


def make_batch(model: FixedPointCore, n_lm: int = 4) -> Batch:
    atoms = molecule()
    atoms.info["external_field"] = (0.02, -0.01, 0.03)
    batch = atoms_batch([atoms, molecule()], model.r_max)
    density = torch.randn(8, n_lm, generator=torch.Generator().manual_seed(1)).double()
    return replace(batch, labels={"atomic_multipoles": 0.1 * density})


@pytest.mark.parametrize("mode", MODES)
def test_local_electron_energy_can_be_switched_off_in_every_output(mode: str) -> None:
    on = tiny_model(field_readout_config=QUADRATIC)
    off = tiny_model(field_readout_config=QUADRATIC, add_local_electron_energy=False)
    null = tiny_model(field_readout_config="NullFieldReadout")
    null.load_state_dict(
        {key: value for key, value in off.state_dict().items() if key in null.state_dict()}
    )
    batch = make_batch(on)
    outputs = ("energy", "forces", "stress", "virials", "polarizability")
    found = [
        predict(model, batch, mode=loose_mode(mode), outputs=outputs) for model in (on, off, null)
    ]
    for item in fields(Observables):
        values = [getattr(result, item.name) for result in found]
        if isinstance(values[0], torch.Tensor):
            assert torch.equal(values[1], values[2]), item.name
    assert not bool(found[1].electron_energy.any())
    for name in ("energy", "forces", "stress", "virials"):
        change = (getattr(found[0], name) - getattr(found[1], name)).abs()
        assert float(change.max()) > 1e-7 * float(getattr(found[0], name).abs().max())
    total = found[0].energy - found[0].electron_energy
    torch.testing.assert_close(total, found[1].energy)


def test_energy_is_the_sum_of_its_terms() -> None:
    model = tiny_model(field_readout_config=QUADRATIC)
    found = predict(model, make_batch(model), mode=loose_mode("scf"))
    assert found.contributions is not None
    assert found.electrostatic_energy is not None
    assert found.field_energy is not None
    assert found.electron_energy is not None
    total = found.contributions.sum(-1) + found.electrostatic_energy
    total = total + found.field_energy + found.electron_energy
    torch.testing.assert_close(total, found.energy)


def test_potentials_are_returned_if_asked_for() -> None:
    plain = tiny_model()
    always = tiny_model(return_electrostatic_potentials=True)
    batch, mode = make_batch(plain), loose_mode("scf")
    assert predict(plain, batch, mode=mode).electrostatic_potentials is None
    asked = predict(plain, batch, mode=mode, outputs=("electrostatic_potentials",))
    given = predict(always, batch, mode=mode)
    assert asked.electrostatic_potentials is not None
    assert given.electrostatic_potentials is not None
    torch.testing.assert_close(asked.electrostatic_potentials, given.electrostatic_potentials)
    field = (batch.external_field[batch.batch] * batch.positions).sum(-1)
    assert asked.density is not None
    geometry = make_geometry(batch, element_index(plain.atomic_numbers, batch))
    plan = plain.local_part(geometry, batch.external_field).plan
    own = plan.potential_at_atoms(asked.density)
    torch.testing.assert_close(asked.electrostatic_potentials, own + field)


def test_own_potential_of_an_atom_enters_the_features_with_field_si() -> None:
    without, with_si = (tiny_model(field_si=value, eigenvalue=1e9) for value in (False, True))
    with_si.load_state_dict(without.state_dict())
    batch, mode = make_batch(without), loose_mode("direct")
    features = []
    for model in (without, with_si):
        found = predict(model, batch, mode=mode)
        assert found.electrostatic_features is not None
        features.append(found.electrostatic_features * model.field_feature_norms)
    density = batch.labels["atomic_multipoles"]
    own = density @ without.electrostatics.self_features
    torch.testing.assert_close(features[1] - features[0], own)


COMBINATIONS = every_pair(
    {
        "rule": ("OneBodyVariableUpdate", "ManyBodyUpdate"),
        "embedding": (
            "LinearPotentialEmbedding",
            "BiasedLinearPotentialEmbedding",
            "TanhPotentialEmbedding",
        ),
        "nonlinearity": ("NoNonLinearity", "MLPNonLinearity", "SkipMLPNonLinearity"),
        "readout": (
            "NullFieldReadout",
            "StrictQuadraticFieldEnergyReadout",
            "OneBodyMLPFieldReadout",
            "ManyBodyChargesReadout",
            "ManyBodyChargesFieldReadout",
        ),
        "local": ("GatedLocalDensity", "ScaledLinearLocalDensity"),
    }
)


def model_of(row: dict[str, Any]) -> FixedPointCore:
    return tiny_model(
        use_linear_local_charges=False,
        local_density_config=row["local"],
        fixedpoint_update_config={
            "type": row["rule"],
            "potential_embedding_cls": row["embedding"],
            "nonlinearity_cls": row["nonlinearity"],
        },
        field_readout_config=row["readout"],
    )


@pytest.fixture
def hostile_default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("row", COMBINATIONS, ids=range(len(COMBINATIONS)))
@pytest.mark.usefixtures("hostile_default_dtype")
def test_precision_comes_from_the_model(row: dict[str, Any]) -> None:
    double = model_of(row)
    assert {value.dtype for value in double.parameters()} == {torch.float64}
    single = model_of(row).to(dtype=torch.float32)
    batch = make_batch(double)
    exact = predict(double, batch, mode=loose_mode("scf"))
    scf = {"scf_tolerance": 1e-6}
    rough = predict(single, batch.to(dtype=torch.float32), mode=loose_mode("scf", **scf))
    assert exact.scf is not None
    assert rough.scf is not None
    assert bool(exact.scf.converged.all())
    assert bool(rough.scf.converged.all())
    for name in ("energy", "forces", "density", "dipole", "electrostatic_features"):
        wanted, value = getattr(exact, name), getattr(rough, name)
        assert wanted.dtype == torch.float64
        assert value.dtype == torch.float32
        scale = max(float(wanted.abs().max()), 0.1)
        assert float((value - wanted).abs().max()) / scale < 1e-4, name


@pytest.mark.parametrize("row", COMBINATIONS[::3], ids=range(len(COMBINATIONS[::3])))
def test_a_saved_model_is_the_same_model(row: dict[str, Any], tmp_path: Any) -> None:
    model = model_of(row)
    save_model(tmp_path / "block.model", model, {})
    loaded = load_model(tmp_path / "block.model")
    assert loaded.config == model.config
    batch, mode = make_batch(model), loose_mode("scf")
    first, second = predict(model, batch, mode=mode), predict(loaded, batch, mode=mode)
    assert torch.equal(first.energy, second.energy)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("include_local_electron_energy", False, "add_local_electron_energy"),
        ("include_field_si", True, "field_si"),
        ("return_electrostatic_potentials", True, "return_electrostatic_potentials"),
        ("include_electrostatic_self_interaction", True, "include_electrostatic_self_interaction"),
        ("quadrupole_feature_corrections", True, "quadrupole_feature_corrections"),
    ],
)
def test_switches_of_a_configuration_reach_the_model(option: str, value: bool, name: str) -> None:
    statistics = DatasetStatistics((1, 8), {1: 0.0, 8: 0.0}, 5.0, 1.0, 0.0, 1.0, 1.0, 1, 1)
    common = {"train_file": "water.xyz", "field_feature_norms": "None"}
    chosen = model_config(resolve({**common, option: value}).config, statistics)
    default = model_config(resolve(common).config, statistics)
    assert chosen[name] is value
    assert default[name] is not value
