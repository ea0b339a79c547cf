"""Options, errors, external features and dipoles of the electrostatics."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import pytest
import torch

from fpmace.electrostatics import ElectrostaticsOptions, GTOElectrostatics, Plan
from fpmace.errors import ConfigError, DataError

CUBE = 8.0 * torch.eye(3, dtype=torch.float64)


def plan_with(mode: str, cell: torch.Tensor, pbc: list[bool]) -> Plan:
    model = GTOElectrostatics(ElectrostaticsOptions(pbc_handling=mode))
    positions = torch.rand(2, 3, dtype=torch.float64)
    batch, ptr = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2])
    return model.plan(positions, cell[None], torch.tensor([pbc]), batch, ptr)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density_max_l": 3}, ["density_max_l", "0 to 2", "3"]),
        ({"feature_max_l": -1}, ["feature_max_l", "-1"]),
        ({"smearing_width": 0.0}, ["smearing_width", "above 0", "0.0"]),
        ({"feature_widths": (1.0, -2.0)}, ["feature_widths", "-2.0"]),
        ({"feature_widths": ()}, ["feature_widths", "non-empty", "()"]),
        ({"kspace_cutoff_factor": float("nan")}, ["kspace_cutoff_factor", "nan"]),
        ({"kspace_window": -0.1}, ["kspace_window", "-0.1"]),
        ({"pbc_handling": "slabs"}, ["slabs", "did you mean 'slab'", "realspace"]),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ElectrostaticsOptions(**options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


TILTED = CUBE + torch.tensor([[0.0, 0, 0], [0, 0, 0], [2.0, 0, 0]]).double()
LONG = CUBE * torch.tensor([1.0, 1.0, 2.0]).double()


@pytest.mark.parametrize(
    ("mode", "cell", "pbc", "words"),
    [
        ("pbc", 0 * CUBE, "TTT", ["graph 0", "volume", "realspace"]),
        ("pbc", torch.ones(3, 3).double(), "TTT", ["graph 0", "volume"]),
        ("auto", 0 * CUBE, "TTF", ["graph 0", "volume"]),
        ("slab", TILTED, "TTF", ["graph 0", "along z", "'slab'"]),
        ("auto", TILTED, "TTF", ["graph 0", "along z", "'auto'"]),
        ("molecule_in_box", LONG, "FFF", ["graph 0", "cubic"]),
        ("mixed_periodic", LONG, "FFF", ["graph 0", "cubic"]),
        ("auto", CUBE, "TFF", ["graph 0", "pbc TFF", "FFF, TTF or TTT"]),
    ],
)
def test_bad_geometry_is_one_clear_line(
    mode: str, cell: torch.Tensor, pbc: str, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        plan_with(mode, cell, [flag == "T" for flag in pbc])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("mode", ["realspace", "auto"])
def test_open_boundaries_need_no_cell(mode: str) -> None:
    plan_with(mode, 0 * CUBE, [False] * 3)


def test_unusual_periodicity_is_plain_periodic_in_mixed_mode() -> None:
    torch.manual_seed(0)
    mixed = plan_with("mixed_periodic", LONG, [True, False, False])
    torch.manual_seed(0)
    bare = plan_with("pbc", LONG, [True, False, False])
    density = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(mixed.energy(density), bare.energy(density))


def test_external_and_fermi_features() -> None:
    model = GTOElectrostatics(ElectrostaticsOptions(feature_max_l=2, feature_widths=(1.0, 2.0)))
    assert model.n_features == 18
    assert str(model.field_irreps) == "2x0e+2x1o+2x2e"
    assert str(model.density_irreps) == "1x0e+1x1o"
    positions = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, 0.0]]).double()
    batch = torch.tensor([0, 1])
    field = torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.0, 1.0]]).double()
    constant = torch.tensor([0.5, -1.0]).double()
    found = model.external_features(positions, batch, field, constant)
    assert found.shape == (2, 18)
    assert found[0, 0] == pytest.approx(sqrt(4 * pi) * (0.5 + 1.4))
    expected = pi * sqrt(1.5) * 2.0 * torch.tensor([0.2, 0.3, 0.1]).double()
    torch.testing.assert_close(found[0, 5:8], expected)
    assert (found[:, 8:] == 0).all()
    level = model.fermi_features(constant)
    torch.testing.assert_close(
        level, model.external_features(positions, batch, 0 * field, constant)
    )


@pytest.mark.parametrize("max_l", [0, 1, 2])
def test_dipole(max_l: int) -> None:
    model = GTOElectrostatics(ElectrostaticsOptions(density_max_l=max_l))
    positions = torch.randn(3, 3, dtype=torch.float64)
    density = torch.randn(3, model.n_density, dtype=torch.float64)
    found = model.dipole(positions, density, torch.tensor([0, 0, 1]), 2)
    expected = density[2, 0] * positions[2]
    if max_l:
        expected = expected + density[2, [3, 1, 2]]
    torch.testing.assert_close(found[1], expected)


def test_no_state_and_detached_plan() -> None:
    model = GTOElectrostatics(ElectrostaticsOptions())
    assert not model.state_dict()
    assert not list(model.parameters())
    positions = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    batch, ptr = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2])
    plan = model.plan(positions, CUBE[None], torch.ones(1, 3, dtype=torch.bool), batch, ptr)
    density = torch.randn(2, 4, dtype=torch.float64)
    assert plan.energy(density).requires_grad
    assert not plan.detach().energy(density).requires_grad
