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
        ({"num_scf_steps": 1}, "scf.num_scf_steps: expects whole number at least 2, got 1"),
        ({"scf_tolerance": 0.0}, "scf.scf_tolerance: expects number above 0, got 0.0"),
        (
            {"residual_tolerance": -1.0},
            "residual_tolerance: expects number above 0 or None, got -1.0",
        ),
        ({"mixing_parameter": 1.5}, "expects number above 0 and at most 1 or None, got 1.5"),
        (
            {"initial_density": "guess"},
            "'local_guess' or 'from_data' or 'zero', got 'guess'",
        ),
        ({"initial_fermi_level": "guess"}, "expects 'zero' or 'from_data' or number, got 'guess'"),
        ({"on_failure": "cry"}, "expects 'raise' or 'warn' or 'ignore', got 'cry'"),
        ({"on_unconverged": "cry"}, "expects 'skip' or 'unroll' or 'raise' or 'use', got 'cry'"),
        ({"unroll_steps": 1}, "scf.unroll_steps: expects whole number at least 2, got 1"),
        ({"history": "all"}, "expects 'none' or 'absolute_change' or 'full_history', got 'all'"),
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
