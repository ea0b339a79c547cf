"""Settings of a solve: what is refused, and in which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fpmace.errors import ConfigError
from fpmace.scf.options import ScfOptions, check_precision
from fpmace.testing.toy_maps import random_toy, run, toy_problem


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_scf_steps": 1}, "scf.num_scf_steps: expected a value at least 2, got 1"),
        ({"scf_tolerance": 0.0}, "scf.scf_tolerance: expected a value above 0"),
        ({"residual_tolerance": -1.0}, "scf.residual_tolerance: expected a value above 0"),
        ({"mixing_parameter": 1.5}, r"expected a number in \(0, 1\], got 1.5"),
        ({"initial_density": "guess"}, "allowed: local_guess, from_data, zero"),
        ({"initial_fermi_level": "guess"}, "allowed: zero, from_data"),
        ({"on_failure": "cry"}, "allowed: raise, warn, ignore"),
        ({"on_unconverged": "cry"}, "allowed: skip, unroll, raise, use"),
        ({"unroll_steps": 1}, "scf.unroll_steps: expected a value at least 2, got 1"),
        ({"history": "all"}, "allowed: none, absolute_change, full_history"),
    ],
)
def test_wrong_values_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScfOptions(**options)


def test_tolerances_below_the_precision_are_refused() -> None:
    check_precision(ScfOptions(scf_tolerance=1e-6), torch.float32)
    check_precision(ScfOptions(scf_tolerance=1e-12), torch.float64)
    with pytest.raises(ConfigError, match="1e-09 is below what float32 resolves"):
        check_precision(ScfOptions(scf_tolerance=1e-9), torch.float32)
    with pytest.raises(ConfigError, match="residual_tolerance"):
        check_precision(ScfOptions(residual_tolerance=1e-9), torch.float32)


def test_a_solve_refuses_them_before_it_starts() -> None:
    problem = toy_problem([random_toy()], None)
    single = replace(problem, local_density=problem.local_density.float())
    with pytest.raises(ConfigError, match="float32"):
        run(single, "linear", scf_tolerance=1e-9)
