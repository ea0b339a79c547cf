"""The shipped contract of an electrostatics, on the package's own and on the example."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from electrostatics_cases import MODES

from fpmace import registry
from fpmace.config.load import resolve
from fpmace.electrostatics import Capabilities, ElectrostaticsOptions, build_electrostatics
from fpmace.electrostatics.gto import GTOElectrostatics
from fpmace.electrostatics.plan import BatchGeometry
from fpmace.electrostatics.realspace import OpenPart
from fpmace.errors import ConfigError
from fpmace.models.io import load_model, save_model
from fpmace.observables.predict import predict
from fpmace.testing.block_contract import molecule, solved, tiny_model
from fpmace.testing.electrostatics_contract import Subject, check_electrostatics, check_method
from fpmace.testing.systems import atoms_batch
from fpmace.training.setup import check_model

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "my_electrostatics.py"


@pytest.mark.parametrize("method", MODES)
def test_direct_sums_keep_the_contract(method: str) -> None:
    check_method(Subject("direct"), method)


def test_example_keeps_the_contract() -> None:
    registry.load_plugins([str(EXAMPLE)])
    check_electrostatics("pair_loop")


def test_a_model_with_the_example_is_the_model_with_direct_sums(tmp_path: Path) -> None:
    registry.load_plugins([str(EXAMPLE)])
    batch = atoms_batch([molecule()], 3.0)
    found = []
    for name in ("direct", "pair_loop"):
        model = tiny_model(electrostatics=name)
        save_model(tmp_path / "saved.model", model)
        loaded = load_model(tmp_path / "saved.model")
        assert loaded.config["electrostatics"] == {"type": name}
        found.append(predict(loaded, batch, mode=solved(constant_charge=True)))
    torch.testing.assert_close(found[0].energy, found[1].energy)
    torch.testing.assert_close(found[0].forces, found[1].forces)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("pair_loop", {"pbc_handling": "auto"}, ["PairLoop sums open", "use realspace"]),
        ("pair_loop", {"density_max_l": 2}, ["density_max_l", "PairLoop goes up to 1, got 2"]),
        ("direkt", {}, ["electrostatics", "direkt", "did you mean 'direct'"]),
    ],
)
def test_what_is_beyond_the_capabilities_is_refused(
    name: str, changes: dict[str, object], words: list[str]
) -> None:
    registry.load_plugins([str(EXAMPLE)])
    options = replace(ElectrostaticsOptions(pbc_handling="realspace"), **changes)
    with pytest.raises(ConfigError) as caught:
        build_electrostatics(name, options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


class Flawed(GTOElectrostatics):
    """Direct sums in the open of which one piece is wrong."""

    flaw = ""

    def open(self, geometry: BatchGeometry, padding: object) -> OpenPart:
        part = super().open(geometry, padding)  # type: ignore[arg-type]
        skew = torch.arange(part.energy_matrix.shape[-1]).to(part.positions)
        if self.flaw == "not symmetric":
            return replace(part, energy_matrix=part.energy_matrix + 0.01 * skew)
        if self.flaw == "detached":
            return replace(part, energy_matrix=part.energy_matrix.detach())
        return replace(part, feature_matrix=1.01 * part.feature_matrix)


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ("not symmetric", "derivative of the energy by the multipoles"),
        ("detached", "forces"),
        ("scaled", "features of the density's own width"),
    ],
)
def test_the_contract_finds_what_is_wrong(flaw: str, words: str) -> None:
    registry.register("electrostatics", "flawed", override=True)(Flawed)
    Flawed.flaw = flaw
    try:
        with pytest.raises(AssertionError, match=words):
            check_method(Subject("flawed"), "realspace")
    finally:
        registry.unregister("electrostatics", "flawed")


def test_declared_precision_and_order_are_kept() -> None:
    class Double(GTOElectrostatics):
        """In double precision, for forces only."""

        capabilities = Capabilities(dtypes=(torch.float64,), derivatives=1)

    registry.register("electrostatics", "double", override=True)(Double)
    try:
        check_method(Subject("double"), "pbc")
        model, batch = tiny_model(electrostatics="double"), atoms_batch([molecule()], 3.0)
        mode = solved(constant_charge=True)
        assert predict(model, batch, mode=mode).forces is not None
        with pytest.raises(ConfigError, match="2 times are needed"):
            predict(model, batch, mode=mode, create_graph=True)
        options = ElectrostaticsOptions()
        with pytest.raises(ConfigError, match="can be differentiated 1 times"):
            build_electrostatics("double", options, derivatives=2)
        cube = 8.0 * torch.eye(3)
        with pytest.raises(ConfigError, match="Double computes in float64, got float32"):
            build_electrostatics("double", options).plan_structure(
                torch.zeros(1, 3), cube, torch.ones(3, dtype=torch.bool)
            )
    finally:
        registry.unregister("electrostatics", "double")


def test_the_example_is_named_like_any_other_option() -> None:
    values = {
        "train_file": "water.xyz",
        "plugins": [str(EXAMPLE)],
        "electrostatics": "pair_loop",
        "electrostatic_pbc_method": "realspace",
        "num_channels": 2,
        "max_L": 1,
    }
    check_model(resolve(values).config)
    with pytest.raises(ConfigError, match="use realspace"):
        check_model(resolve(values | {"electrostatic_pbc_method": "auto"}).config)
