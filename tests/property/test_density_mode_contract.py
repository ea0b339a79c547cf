"""Every density mode of the package fulfils the contract of modes."""

from __future__ import annotations

import pytest

from fpmace import registry
from fpmace.density_modes.solved import Implicit
from fpmace.testing.density_mode_contract import check_density_mode

MODES = [item.name for item in registry.describe("training_mode") if item.source is None]


@pytest.mark.parametrize("mode", MODES)
def test_modes_fulfil_the_contract(mode: str) -> None:
    check_density_mode(mode)


def test_a_mode_without_derivatives_is_found_out() -> None:
    with pytest.raises(AssertionError, match="attaches no derivatives"):
        check_density_mode({"type": "implicit", "order": 1, "differentiation": "none"})


def test_a_mode_that_does_not_solve_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Implicit, "refuse", lambda self, result: None)
    run = Implicit.run

    def loose(self, problem, reference, **options):
        found = run(self, problem, reference, **options)
        return type(found)(found.density + 1e-4, found.fermi_level, found.features, found.scf)

    monkeypatch.setattr(Implicit, "run", loose)
    with pytest.raises(AssertionError, match="says that it solves"):
        check_density_mode("implicit")
