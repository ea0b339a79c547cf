"""EnergyFunctionalSCF is FixedPoint with the passive parts, under a name of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixed_point_cases import batch_of, make_mode, observe
from passive_cases import passive_model, structures

from fpmace.config.load import resolve
from fpmace.errors import ConfigError
from fpmace.models.io import load_model, save_model
from fpmace.registry import build


def test_it_is_the_fixed_point_model_with_the_two_parts(tmp_path: Path) -> None:
    model = passive_model()
    parts = ("type", "fixedpoint_update_config", "field_readout_config")
    options = {name: value for name, value in model.config.items() if name not in parts}
    rule = {"type": "OneBodyPassiveUpdate", "n_vectors": 4}
    other = build(
        "model", {"type": "EnergyFunctionalSCF", "fixedpoint_update_config": rule, **options}
    )
    other.load_state_dict(model.state_dict())
    assert other.config == {**model.config, "type": "EnergyFunctionalSCF"}
    save_model(tmp_path / "functional.model", other)
    loaded = load_model(tmp_path / "functional.model")
    assert loaded.config["type"] == "EnergyFunctionalSCF"
    batch, mode = batch_of(*structures()), make_mode("scf", scf_tolerance=1e-10)
    expected = observe(model.eval(), batch, mode)
    found = observe(loaded, batch, mode)
    assert found.forces is not None
    assert expected.forces is not None
    torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=0)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=0)


def test_a_configuration_names_it() -> None:
    found = resolve({"model": "EnergyFunctionalSCF", "train_file": "train.xyz"}).config
    options = found.model_options
    assert options["fixedpoint_update_config"]["type"] == "OneBodyPassiveUpdate"
    assert options["field_readout_config"]["type"] == "VariationalFieldReadout"
    assert options["field_feature_norms"] == "conjugate"
    assert options["anchor_isolated_atoms"] is True


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fixedpoint_update_config", "OneBodyVariableUpdate"),
        ("field_readout_config", "NullFieldReadout"),
        ("include_local_electron_energy", False),
    ],
)
def test_other_parts_are_refused(option: str, value: object) -> None:
    given = {"model": "EnergyFunctionalSCF", "train_file": "train.xyz", option: value}
    with pytest.raises(ConfigError, match="EnergyFunctionalSCF"):
        resolve(given)
