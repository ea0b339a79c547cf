"""Tiny fixed-point models and systems for the tests of solvers and derivatives."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from ase import Atoms

from fpmace.data.batch import Batch
from fpmace.density_modes.base import DensityMode, initial_state
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.models.geometry import element_index, make_geometry
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.parts import import_builtin_parts
from fpmace.registry import build
from fpmace.scf.driver import solve
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult, ScfState
from fpmace.testing.systems import atoms_batch, random_model, scale_response, water_box

import_builtin_parts()

BOUNDARIES = ("pbc", "slab", "molecule_in_box", "realspace")
R_MAX = 4.0

RULES: dict[str, dict[str, Any]] = {
    "affine": {"type": "OneBodyVariableUpdate"},
    "mlp": {
        "type": "OneBodyVariableUpdate",
        "nonlinearity_cls": {"type": "MLPNonLinearity", "hidden_sizes": [8]},
    },
    "skip_mlp": {
        "type": "OneBodyVariableUpdate",
        "nonlinearity_cls": {"type": "SkipMLPNonLinearity", "hidden_sizes": [8]},
    },
    "many_body": {
        "type": "ManyBodyUpdate",
        "nonlinearity_cls": {"type": "MLPNonLinearity", "hidden_sizes": [8]},
        "correlation": 2,
        "max_ell": 1,
        "radial_sizes": [8],
    },
}
SMALL: dict[str, Any] = {
    "r_max": R_MAX,
    "num_bessel": 4,
    "max_ell": 2,
    "hidden_irreps": "4x0e+4x1o",
    "MLP_irreps": "4x0e",
    "avg_num_neighbors": 8.0,
    "correlation": 2,
    "radial_MLP": [8],
    "kspace_cutoff_factor": 0.7,
    "field_feature_norms": [8.0, 8.0, 1.0, 1.0],
    "include_electrostatic_self_interaction": True,
    "fermi_level_offset": 0.1,
}


def scaled_model(
    rule: str = "affine",
    boundary: str = "pbc",
    *,
    eigenvalue: float | None = -0.8,
    seed: int = 0,
    **options: Any,
) -> FixedPointCore:
    """A model whose response on :func:`structure` has the extreme eigenvalue given."""
    settings = {**SMALL, "fixedpoint_update_config": RULES[rule], "pbc_handling": boundary}
    model = random_model(seed=seed, **{**settings, **options})
    with torch.no_grad():
        # Random readouts of the local density give fractions of an electron, as in real systems.
        for weight in model.lr_source_maps.parameters():
            weight.mul_(0.3)
    if eigenvalue is not None:
        scale_response(model, atoms_batch([structure(boundary)], R_MAX), eigenvalue)
    return model


@cache
def _box(n_molecules: int, seed: int) -> Atoms:
    return water_box((n_molecules, 1, 1), seed=seed)


def structure(
    boundary: str = "pbc",
    *,
    n_molecules: int = 2,
    seed: int = 3,
    charge: float = 0.0,
    field: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Atoms:
    """A few molecules in a cell that fits the boundary conditions."""
    atoms = _box(n_molecules, seed).copy()
    length = {"pbc": 6.0, "slab": 6.0, "molecule_in_box": 12.0, "realspace": 12.0}[boundary]
    cell = np.diag([max(length, 3.1 * n_molecules), length, length])
    if boundary == "pbc":
        cell[0, 1] = 0.7
    if boundary == "slab":
        cell[2, 2] = 14.0
    if boundary == "molecule_in_box":
        cell = np.eye(3) * max(length, 3.1 * n_molecules + 6.0)
    atoms.set_cell(cell)
    atoms.pbc = {"pbc": True, "slab": [True, True, False]}.get(boundary, False)
    atoms.info.update(total_charge=charge, external_field=field)
    return atoms


def batch_of(*structures: Atoms) -> Batch:
    return atoms_batch(list(structures), R_MAX)


def with_reference(batch: Batch, seed: int = 5) -> Batch:
    """Add small random reference multipoles."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch.n_atoms, 4)
    density = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return replace(batch, labels={**batch.labels, "atomic_multipoles": density})


def make_problem(
    model: FixedPointCore, batch: Batch, *, constant_charge: bool = True
) -> FixedPointProblem:
    geometry = make_geometry(batch, element_index(model.atomic_numbers, batch))
    local = model.local_part(geometry, batch.external_field)
    charge = batch.total_charge if constant_charge else None
    return model.problem(local, charge, batch.atoms_per_graph)


def run_solver(
    model: FixedPointCore, batch: Batch, *, constant_charge: bool = True, **options: Any
) -> ScfResult:
    """Solve from the local guess and Fermi level 0 without an autograd graph."""
    settings = {"scf_tolerance": 1e-10, "num_scf_steps": 400, "on_failure": "ignore", **options}
    scf = ScfOptions(constant_charge=constant_charge, **settings)
    with torch.no_grad():
        problem = make_problem(model, batch, constant_charge=constant_charge)
        density = torch.zeros_like(problem.local_density)
        start = ScfState(density, torch.zeros_like(batch.total_charge))
        return solve(problem, initial_state(problem, start, scf), scf)


def make_mode(name: str, /, **options: Any) -> DensityMode:
    """A training mode; keywords of the mode in ``mode``, all others are SCF options."""
    mode = {"type": name, **options.pop("mode", {})}
    if name == "direct":
        return build("training_mode", mode)
    settings = {"scf_tolerance": 1e-12, "num_scf_steps": 600, "on_failure": "raise", **options}
    return build("training_mode", mode, scf=ScfOptions(**settings))


def observe(
    model: FixedPointCore,
    batch: Batch,
    mode: DensityMode,
    outputs: tuple[str, ...] = ("energy", "forces"),
    **options: Any,
) -> Observables:
    return predict(model, batch, mode=mode, outputs=outputs, **options)
