"""What every block of the fixed-point family has to do, as functions that tests call.

Tests of blocks of one's own can call them too: :func:`check_update_rule` and
:func:`check_field_readout` build a tiny model around the block and check symmetries, forces and
what the block says of itself.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from ase import Atoms
from e3nn.o3 import Irreps
from numpy.typing import NDArray
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.density_modes.base import DensityMode
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.models.geometry import element_index, make_geometry
from fpmace.models.local_state import LocalState
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.parts import import_builtin_parts
from fpmace.registry import PartConfig, build
from fpmace.scf.options import ScfOptions
from fpmace.testing.systems import atoms_batch, density_response, random_model

R_MAX = 3.0
TINY: dict[str, object] = {
    "r_max": R_MAX,
    "atomic_energies": [0.0, 0.0],
    "num_bessel": 4,
    "max_ell": 1,
    "num_interactions": 1,
    "hidden_irreps": "2x0e+2x1o",
    "MLP_irreps": "2x0e",
    "avg_num_neighbors": 3.0,
    "correlation": 1,
    "radial_MLP": [4],
    "field_feature_norms": [8.0, 8.0, 1.0, 1.0],
    "fermi_level_offset": 0.1,
    "pbc_handling": "realspace",
}
"""Options of the models that contracts are checked on; override any by keyword."""

STEP = 5e-4
"""Angstrom; displacement of the finite differences (fourth order)."""


def molecule() -> Atoms:
    """Hydrogen peroxide, distorted: chiral, so that inversion makes another molecule."""
    positions = [[0.0, 0.1, 0.0], [0.95, 0.0, 0.1], [1.3, 1.35, -0.2], [1.6, 1.7, 0.75]]
    return Atoms(numbers=[1, 8, 8, 1], positions=positions, cell=np.eye(3) * 12.0, pbc=False)


def tiny_model(*, seed: int = 0, eigenvalue: float = -0.3, **options: Any) -> FixedPointCore:
    """A random model of tiny size whose response to a change of the density is moderate.

    Args:
        eigenvalue: size of the largest eigenvalue of the map on :func:`molecule`.
        options: of :class:`FixedPointCore`, over :data:`TINY`.
    """
    import_builtin_parts()
    model = random_model(seed=seed, **{**TINY, **options})
    with torch.no_grad():
        for weight in model.lr_source_maps.parameters():
            weight.mul_(0.3)
    _limit_response(model, abs(eigenvalue))
    return model


def _limit_response(model: FixedPointCore, size: float) -> None:
    """Scale the last parameter of the update rule that changes the response until it is small."""
    batch = atoms_batch([molecule()], model.r_max)
    for _ in range(30):
        response = torch.linalg.eigvals(density_response(model, batch)).abs().max()
        if float(response) <= size:
            return
        with torch.no_grad():
            for weight in model.update_rule.parameters():
                weight.mul_(0.8)


def solved(*, constant_charge: bool) -> DensityMode:
    """The mode of the checks: self-consistent to the last digits."""
    scf = ScfOptions(
        scf_tolerance=1e-12,
        num_scf_steps=300,
        constant_charge=constant_charge,
        on_failure="raise",
    )
    mode: DensityMode = build("training_mode", "scf", scf=scf)
    return mode


def orthogonal_matrix(seed: int, *, improper: bool = True) -> NDArray[np.float64]:
    """A random rotation, followed by an inversion if ``improper``."""
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    proper = matrix * np.sign(np.linalg.det(matrix))
    return -proper if improper else proper


def density_rotation(matrix: NDArray[np.float64], max_l: int) -> Tensor:
    """[n_lm, n_lm] that turns multipoles when positions turn by ``matrix`` (x' = x matrix^T)."""
    order = [1, 2, 0]
    permuted = torch.as_tensor(matrix)[order][:, order]
    irreps = Irreps([(1, (degree, (-1) ** degree)) for degree in range(max_l + 1)])
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return irreps.D_from_matrix(permuted)
    finally:
        torch.set_default_dtype(default)


def _moved(atoms: Atoms, positions: NDArray[np.float64], **info: Any) -> Atoms:
    copy = atoms.copy()
    copy.positions = positions
    copy.info.update(info)
    return copy


def check_symmetry_and_forces(
    model: FixedPointCore,
    *,
    mode: DensityMode | None = None,
    tolerance: float = 1e-9,
    force_tolerance: float = 1e-6,
    seed: int = 1,
) -> Observables:
    """Check rotation with inversion, translation, permutation, and forces by finite differences.

    All in one batch of small molecules, which checks that structures of a batch do not see each
    other, too. The forces are those of a charged molecule in a field, self-consistent.

    Raises:
        AssertionError: naming the symmetry or the force that is wrong.
    """
    rng = np.random.default_rng(seed)
    base, matrix, order = molecule(), orthogonal_matrix(seed), rng.permutation(4)
    direction = rng.normal(size=(4, 3))
    field = np.array([0.02, -0.03, 0.01])
    charged = {"total_charge": 1.0, "external_field": field}
    turned = {**charged, "external_field": matrix @ field}
    structures = [
        base,
        _moved(base, base.positions @ matrix.T + np.array([0.3, -0.5, 0.7]))[order],
        _moved(base, base.positions, **charged),
        _moved(base, base.positions @ matrix.T, **turned)[order],
    ]
    steps = (-2, -1, 1, 2)
    structures += [
        _moved(base, base.positions + step * STEP * direction, **charged) for step in steps
    ]
    batch = _with_reference(atoms_batch(structures, model.r_max), model)
    # A random non-linear rule need not be able to reach a given charge.
    mode = mode or solved(constant_charge=model.update_rule.is_affine)
    found = predict(model, batch, mode=mode)
    rotation = density_rotation(matrix, model.electrostatics.options.density_max_l)
    for first, what in ((0, "translated"), (2, "in a field")):
        _check_pair(found, first, matrix, rotation, order, tolerance, f"turned and {what}")
    energy = found.energy[4:]
    slope = (energy[0] - 8.0 * energy[1] + 8.0 * energy[2] - energy[3]) / (12.0 * STEP)
    assert found.forces is not None
    analytic = -(found.forces[8:12] * torch.as_tensor(direction)).sum()
    scale = (found.forces[8:12].abs() * torch.as_tensor(np.abs(direction))).sum()
    _close("forces", analytic, slope, force_tolerance, scale)
    return found


def gradient_error(
    model: FixedPointCore,
    batch: Batch,
    mode: DensityMode,
    *,
    step: float = 2e-5,
    seed: int = 0,
) -> float:
    """Compare parameter derivatives with finite differences along a random direction.

    The loss is the energy plus a random combination of the forces, so that second derivatives of
    the density take part.

    Returns:
        The error relative to the largest contribution of a parameter tensor.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = batch.positions.dtype
    weights = torch.randn(batch.n_atoms, 3, generator=generator, dtype=torch.float64).to(dtype)
    parameters = [item for item in model.parameters() if item.requires_grad]
    direction = [
        torch.randn(item.shape, generator=generator, dtype=torch.float64).to(dtype)
        for item in parameters
    ]

    def loss(shift: float) -> Tensor:
        _move(parameters, direction, shift)
        found = predict(model, batch, mode=mode, outputs=("forces",), create_graph=True)
        assert found.forces is not None
        return found.energy.sum() + (weights * found.forces).sum()

    gradients = torch.autograd.grad(loss(0.0), parameters, allow_unused=True)
    parts = [
        (gradient * change).sum()
        for gradient, change in zip(gradients, direction, strict=True)
        if gradient is not None
    ]
    values = []
    for before, shift in pairwise((0.0, -2.0, -1.0, 1.0, 2.0)):
        values.append(loss((shift - before) * step).detach())
    _move(parameters, direction, -2.0 * step)
    numerical = (values[0] - 8.0 * values[1] + 8.0 * values[2] - values[3]) / (12.0 * step)
    scale = max(float(part.detach().abs()) for part in parts)
    return float((torch.stack(parts).sum().detach() - numerical).abs()) / max(scale, 1e-6)


@torch.no_grad()
def _move(parameters: list[nn.Parameter], direction: list[Tensor], shift: float) -> None:
    if shift == 0.0:
        return
    for parameter, change in zip(parameters, direction, strict=True):
        parameter.add_(change, alpha=shift)


def _with_reference(batch: Batch, model: FixedPointCore) -> Batch:
    """Zero reference multipoles, so that modes that start from the data can be checked."""
    shape = (batch.n_atoms, model.electrostatics.n_density)
    labels = {"atomic_multipoles": batch.positions.new_zeros(shape)}
    return replace(batch, labels={**batch.labels, **labels})


def _check_pair(
    found: Observables,
    first: int,
    matrix: NDArray[np.float64],
    rotation: Tensor,
    order: NDArray[np.int64],
    tolerance: float,
    what: str,
) -> None:
    """Compare structure ``first`` with the next one, which is its turned and permuted copy."""
    turn = torch.as_tensor(matrix)
    atoms = [slice(4 * index, 4 * index + 4) for index in (first, first + 1)]
    assert found.forces is not None
    assert found.density is not None
    assert found.fermi_level is not None
    _close(f"{what}: energy", found.energy[first + 1], found.energy[first], tolerance)
    level = found.fermi_level
    _close(f"{what}: Fermi level", level[first + 1], level[first], tolerance)
    forces = (found.forces[atoms[0]] @ turn.T)[order]
    _close(f"{what}: forces", found.forces[atoms[1]], forces, tolerance)
    density = (found.density[atoms[0]] @ rotation.T)[order]
    _close(f"{what}: density", found.density[atoms[1]], density, tolerance)


def _close(
    what: str, value: Tensor, expected: Tensor, tolerance: float, scale: Tensor | float = 0.0
) -> None:
    size = max(1e-3, float(expected.abs().max()), float(scale))
    error = float((value - expected).abs().max()) / size
    assert error <= tolerance, f"{what}: relative error {error:.1e} exceeds {tolerance:.0e}"


def local_state(model: FixedPointCore) -> LocalState:
    """The geometry-dependent part of the model on :func:`molecule`."""
    batch = atoms_batch([molecule()], model.r_max)
    batch = batch.to(dtype=next(model.parameters()).dtype)
    geometry = make_geometry(batch, element_index(model.get_buffer("atomic_numbers"), batch))
    with torch.no_grad():
        return model.local_part(geometry, batch.external_field)


def affine_error(model: FixedPointCore, *, seed: int = 0) -> float:
    """Size of u(a+b) - u(a) - u(b) + u(0) for random features, relative to that of u.

    0 (to rounding) for an update rule that is affine in the field features.
    """
    local = local_state(model)
    a, b = _random_features(model, seed), _random_features(model, seed + 1)
    with torch.no_grad():
        u = [model.update_rule(x, local.prepared) for x in (a + b, a, b, torch.zeros_like(a))]
    return float((u[0] - u[1] - u[2] + u[3]).abs().max() / max(item.abs().max() for item in u))


def coupling_error(model: FixedPointCore, *, seed: int = 0) -> float:
    """How much u of other atoms changes when the features of one do, relative to its own change.

    0 for an update rule that sees the features of its own atom only.
    """
    local = local_state(model)
    a = _random_features(model, seed)
    b = a.clone()
    b[1] = -b[1]
    with torch.no_grad():
        change = (
            model.update_rule(a, local.prepared) - model.update_rule(b, local.prepared)
        ).abs()
    return float(change[[0, 2, 3]].max() / change[1].max())


def _random_features(model: FixedPointCore, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(molecule()), model.electrostatics.n_features)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def check_update_rule(config: PartConfig, **options: Any) -> None:
    """Check an update rule: symmetries, forces, ``is_affine`` and ``is_one_body``.

    Args:
        config: the rule, as ``fixedpoint_update_config`` names it.
        options: of the model around it, over :data:`TINY`.

    Raises:
        AssertionError: saying what is wrong.

    Example:
        >>> check_update_rule("OneBodyVariableUpdate")
    """
    model = tiny_model(fixedpoint_update_config=config, **options)
    rule = model.update_rule
    error = affine_error(model)
    assert error < 1e-10 or not rule.is_affine, (
        f"is_affine is true, but u(a+b) - u(a) - u(b) + u(0) is {error:.1e} of u"
    )
    error = coupling_error(model)
    assert error == 0.0 or not rule.is_one_body, (
        f"is_one_body is true, but another atom's field changes u by {error:.1e}"
    )
    check_symmetry_and_forces(model)


def check_field_readout(config: PartConfig, **options: Any) -> None:
    """Check a field-energy readout: symmetries and forces.

    Args:
        config: the readout, as ``field_readout_config`` names it.
        options: of the model around it, over :data:`TINY`.

    Raises:
        AssertionError: saying what is wrong.

    Example:
        >>> check_field_readout("NullFieldReadout")
    """
    check_symmetry_and_forces(tiny_model(field_readout_config=config, **options))
