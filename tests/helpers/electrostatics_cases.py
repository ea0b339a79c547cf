"""Small random systems and models for the tests of the electrostatics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fpmace.electrostatics import ElectrostaticsOptions, GTOElectrostatics
from fpmace.testing.electrostatics_systems import System

MODES = ("pbc", "slab", "molecule_in_box", "realspace", "mixed_periodic", "auto")


def make_model(mode: str = "pbc", max_l: int = 1, **options: Any) -> GTOElectrostatics:
    settings: dict[str, Any] = {
        "density_max_l": max_l,
        "feature_max_l": max_l,
        "smearing_width": 1.0,
        "feature_widths": (1.0, 1.7),
        "kspace_cutoff_factor": 1.0,
        "pbc_handling": mode,
        **options,
    }
    return GTOElectrostatics(ElectrostaticsOptions(**settings))


def features(model: GTOElectrostatics, system: System, density: Tensor) -> Tensor:
    return system.plan(model).potential_features(density)


def energy(model: GTOElectrostatics, system: System, density: Tensor) -> Tensor:
    return system.plan(model).energy(density)
