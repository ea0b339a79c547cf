"""Every model of the package, and one of a user, fulfils the contract of models."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from fpmace import registry
from fpmace.models.base import Model
from fpmace.testing.block_contract import TINY, tiny_model
from fpmace.testing.model_contract import (
    MODEL_CHECKS,
    check_batch_independence,
    check_facts,
    check_forces,
    check_model,
    check_stress,
    check_symmetry,
    check_training,
)

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "my_model.py"
SMOOTH = {"pbc_handling": "auto", "kspace_window": 0.3}
FORMAL = {"atomic_formal_charges": {1: 0.4, 8: -0.8}}
ITERATED = "PolarMACE, recursion: fixed_point"
SPECIAL = {
    "EnergyFunctionalSCF": {"field_feature_norms": "conjugate"},
    "FixedChargeBaselinedMACE": FORMAL,
    "LocalSplitCharges": FORMAL,
    "MyModel": {"smearing": 0.7},
    ITERATED: {"recursion": "fixed_point"},
}
FAMILIES = [item.name for item in registry.describe("model") if item.source is None]
FAMILIES += ["MyModel", ITERATED]


@cache
def case(name: str) -> Model:
    """A tiny model of a family, with random weights."""
    if name == "MyModel":
        registry.load_plugins([str(EXAMPLE)])
    if name == "FixedPoint":
        return tiny_model(**SMOOTH)
    torch.manual_seed(0)
    kind = name.partition(",")[0]
    entry = registry.get("model", kind)
    options = {"atomic_numbers": [1, 8], **TINY, **SMOOTH, **SPECIAL.get(name, {})}
    known = {key: value for key, value in options.items() if entry.option(key)}
    model: Model = registry.build("model", {"type": kind, **known})
    return model


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__[6:])
@pytest.mark.parametrize("name", FAMILIES)
def test_models_fulfil_the_contract(name, check):
    check(case(name))


@pytest.mark.parametrize(
    ("check", "spoil", "message"),
    [
        (
            check_symmetry,
            lambda energy, g: energy + g.sum_over_atoms(g.positions[:, 0]),
            "energy under rotation",
        ),
        (check_forces, lambda energy, g: energy.detach() + 0.0 * g.positions.sum(), "forces with"),
        (
            check_stress,
            lambda energy, g: energy + g.volume - 0.5 * g.volume.detach() ** 2,
            "stress with",
        ),
        (
            check_batch_independence,
            lambda energy, g: energy * g.n_graphs,
            "energy of a structure in a batch",
        ),
        (check_training, lambda energy, g: energy.detach() * energy, "gradient of a loss"),
    ],
)
def test_a_wrong_model_is_found_out(check, spoil, message, monkeypatch):
    model = case("MACE")
    observe = type(model).observe

    def spoilt(self, geometry, batch, request):
        found = observe(self, geometry, batch, request)
        return replace(found, energy=spoil(found.energy, geometry))

    monkeypatch.setattr(type(model), "observe", spoilt)
    with pytest.raises(AssertionError, match=message):
        check(model)


def test_wrong_facts_are_found_out(monkeypatch):
    model = case("MACE")
    monkeypatch.setattr(type(model), "outputs", type(model).outputs | {"dipole"})
    with pytest.raises(AssertionError, match="declares 'dipole', gives None"):
        check_facts(model)
    monkeypatch.undo()
    monkeypatch.setattr(type(model), "has_density", True)
    with pytest.raises(AssertionError, match="density and has_density"):
        check_facts(model)
    monkeypatch.undo()
    check_model(model)
