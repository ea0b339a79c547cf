"""What every model has to do, as functions that tests call.

A model of one's own (kind ``model``) is checked by :func:`check_model`, or by the checks of
:data:`MODEL_CHECKS` one at a time; the models of the package run exactly these. Give a small model
with random weights, in float64. Structures are made of the model's own elements, in the boundary
conditions that its electrostatics takes; a self-consistent model is solved to the last digits.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from fpmace.boundaries import PBC_CLASSES
from fpmace.data.batch import Batch
from fpmace.density_modes.base import DensityMode
from fpmace.errors import ConfigError, DataError
from fpmace.models.base import Model
from fpmace.models.io import load_model, save_model
from fpmace.observables.predict import DERIVATIVES, predict
from fpmace.observables.response import compute_response, offered_properties
from fpmace.observables.types import OUTPUTS, Observables
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.block_contract import density_rotation, orthogonal_matrix
from fpmace.testing.systems import atoms_batch

POINTS = ((-2.0, 1.0 / 12.0), (-1.0, -8.0 / 12.0), (1.0, 8.0 / 12.0), (2.0, -1.0 / 12.0))
"""Places and weights of a first derivative of fourth order."""

POSITIONS = ((0.0, 0.1, 0.0), (0.95, 0.0, 0.1), (1.3, 1.35, -0.2), (1.6, 1.7, 0.75))
"""Angstrom; hydrogen peroxide, distorted: chiral, so that inversion makes another molecule."""


def check_model(model: Model) -> None:
    """Run all checks on a model.

    Raises:
        AssertionError: saying what is wrong.
    """
    for check in MODEL_CHECKS:
        check(model)


def check_facts(model: Model) -> None:
    """What the model says of itself is true, and every output that it declares is there."""
    name = type(model).__name__
    assert model.outputs <= OUTPUTS, f"{name}.outputs: unknown {set(model.outputs) - OUTPUTS}"
    assert (model.density is not None) == model.has_density, f"{name}.density and has_density"
    assert not model.solves_self_consistency or model.has_density, "solved, but no density"
    atoms = structure(model, charge=0.2)
    asked = model.outputs - {"stress", "virials"}
    found = _predict(model, [atoms], asked)
    for output in asked - {"scf"}:
        assert getattr(found, output) is not None, f"{name}: declares '{output}', gives None"
    assert found.energy.shape == (1,), f"energy has shape {tuple(found.energy.shape)}"
    if model.density is not None:
        assert found.density is not None, f"{name} has a density, but gives none"
        assert found.density.shape == (len(atoms), model.density.n_components)
    members = [id(item) for group in model.parameter_groups() for item in group.parameters]
    trained = [item for item in model.parameters() if item.requires_grad and item.numel()]
    assert sorted(members) == sorted(map(id, trained)), "parameter_groups: not each exactly once"


def check_refusals(model: Model) -> None:
    """Outputs, modes and elements that the model cannot handle are refused by name."""
    batch = atoms_batch([structure(model)], model.r_max)
    mode = _mode(model)
    _refused(lambda: predict(model, batch, mode=mode, outputs=("nonsense",)), "nonsense")
    for output in sorted(OUTPUTS - model.outputs):
        _refused(partial(predict, model, batch, mode=mode, outputs=(output,)), output)
    other = None if model.solves_self_consistency else _scf()
    _refused(lambda: predict(model, batch, mode=other), "mode")
    unknown = replace(batch, atomic_numbers=torch.full_like(batch.atomic_numbers, 118))
    _refused(lambda: predict(model, unknown, mode=mode), "Z=118")


def check_symmetry(model: Model) -> None:
    """Rotation with inversion, translation and relabelling, all in one batch."""
    plain = structure(model, charge=0.2, field=True)
    matrix = orthogonal_matrix(3)
    turned = _with_positions(plain, plain.positions @ matrix.T)
    turned.info["external_field"] = tuple(matrix @ np.array(plain.info["external_field"]))
    order = [2, 0, 3, 1]
    relabelled = plain[order]
    relabelled.info.update(plain.info)
    neutral = structure(model)
    shifted = _with_positions(neutral, neutral.positions + np.array([0.3, -0.4, 0.5]))
    found = _predict(model, [plain, turned, relabelled, neutral, shifted], _basic(model))
    forces = _split(found.forces, 5)
    turn = torch.from_numpy(matrix)
    _close(found.energy[1], found.energy[0], "energy under rotation and inversion")
    _close(found.energy[2], found.energy[0], "energy under relabelling")
    _close(found.energy[4], found.energy[3], "energy under translation")
    _close(forces[1], forces[0] @ turn.T, "forces under rotation and inversion")
    _close(forces[2], forces[0][order], "forces under relabelling")
    _close(forces[4], forces[3], "forces under translation")
    _close(forces[3].sum(0), torch.zeros(3, dtype=torch.float64), "sum of forces")
    if found.density is not None and model.density is not None:
        density = _split(found.density, 5)
        wigner = density_rotation(matrix, model.density.max_l)
        _close(density[1], density[0] @ wigner.T, "density under rotation and inversion")
        _close(density[2], density[0][order], "density under relabelling")
        _close(density[4], density[3], "density under translation")
    if found.dipole is not None:
        _close(found.dipole[1], turn @ found.dipole[0], "dipole under rotation and inversion")


def check_forces(model: Model) -> None:
    """Forces are minus the derivative of the energy, also of a charged molecule in a field."""
    for atoms in _structures(model):
        forces = _predict(model, [atoms], ("forces",)).forces
        assert forces is not None
        direction = np.random.default_rng(0).normal(size=(len(atoms), 3))
        slope = _slope(model, partial(_displaced, atoms, direction))
        expected = -float((forces.numpy() * direction).sum())
        _agree(expected, slope, f"forces with pbc {atoms.pbc}")


def check_stress(model: Model) -> None:
    """Stress is the derivative by strain over the volume, symmetric; virials = -V stress."""
    for atoms in _structures(model):
        if not atoms.pbc.any():
            continue
        found = _predict(model, [atoms], ("stress", "virials"))
        assert found.stress is not None
        assert found.virials is not None
        volume = atoms.get_volume()
        _close(found.stress, found.stress.mT, "symmetry of the stress")
        _close(found.virials, -volume * found.stress, "virials")
        generator = np.random.default_rng(1).normal(size=(3, 3))
        strain = 0.5 * (generator + generator.T)
        if not atoms.pbc.all():
            strain[2] = strain[:, 2] = 0.0  # a slab stays perpendicular to z
        slope = _slope(model, partial(_strained, atoms, strain))
        expected = volume * float((found.stress[0].numpy() * strain).sum())
        _agree(expected, slope, f"stress with pbc {atoms.pbc}")


def check_batch_independence(model: Model) -> None:
    """A structure in a batch gets the answer that it gets alone."""
    structures = [*_structures(model), structure(model, n_atoms=1)]
    together = _predict(model, structures, _basic(model))
    start = 0
    for graph, atoms in enumerate(structures):
        alone = _predict(model, [atoms], _basic(model))
        part = slice(start, start + len(atoms))
        start = part.stop
        _close(together.energy[graph], alone.energy[0], "energy of a structure in a batch")
        assert together.forces is not None
        assert alone.forces is not None
        _close(together.forces[part], alone.forces, "forces of a structure in a batch")
        if alone.density is not None and together.density is not None:
            _close(together.density[part], alone.density, "density of a structure in a batch")


def check_precision(model: Model) -> None:
    """The dtype is that of model and batch, not the default one; float32 agrees with float64."""
    atoms = structure(model, charge=0.2)
    exact = _predict(model, [atoms], _basic(model))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        low = copy.deepcopy(model).to(torch.float32)
        found = _predict(low, [atoms], _basic(model))
        again = _predict(model, [atoms], _basic(model))
    finally:
        torch.set_default_dtype(before)
    _close(again.energy, exact.energy, "energy under another default dtype")
    assert exact.forces is not None
    assert found.forces is not None
    assert found.energy.dtype == found.forces.dtype == torch.float32, "float32 was not kept"
    scale = 1.0 + float(exact.energy.abs().max())
    assert float((found.energy.double() - exact.energy).abs().max()) < 1e-5 * scale, "energy"
    scale = 1.0 + float(exact.forces.abs().max())
    assert float((found.forces.double() - exact.forces).abs().max()) < 1e-4 * scale, "forces"


def check_saving(model: Model) -> None:
    """A saved model opens again from its file and predicts the same numbers."""
    batch = atoms_batch([structure(model, charge=0.2)], model.r_max)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.model"
        save_model(path, model)
        again = load_model(path)
    assert type(again) is type(model), f"saved a {type(model)}, opened a {type(again)}"
    assert again.config == model.config, "the configuration changed"
    first = predict(model, batch, mode=_mode(model), outputs=("energy",)).energy
    second = predict(again, batch, mode=_mode(model), outputs=("energy",)).energy
    assert torch.equal(first, second), "the energy changed in the file"


def check_training(model: Model) -> None:
    """The gradient of a loss on energy and forces by the parameters agrees with differences."""
    model = copy.deepcopy(model)
    batch = atoms_batch([structure(model, charge=0.2)], model.r_max)
    mode = _scf("implicit") if model.solves_self_consistency else None
    target = torch.linspace(-1.0, 1.0, 3 * batch.n_atoms, dtype=torch.float64).view(-1, 3)

    def loss() -> Tensor:
        found = predict(model, batch, mode=mode, outputs=("forces",), create_graph=True)
        assert found.forces is not None
        return 0.1 * found.energy.sum() + (found.forces - target).square().sum()

    own = [item for item in model.parameters() if item.requires_grad and item.numel()]
    gradients = torch.autograd.grad(loss(), own, materialize_grads=True)
    generator = torch.Generator().manual_seed(0)
    ways = [torch.randn(item.shape, generator=generator, dtype=item.dtype) for item in own]
    slope = 0.0
    with torch.no_grad():
        for point, weight in POINTS:
            for item, way in zip(own, ways, strict=True):
                item.add_(way, alpha=1e-4 * point)
            with torch.enable_grad():
                slope += weight * float(loss().detach()) / 1e-4
            for item, way in zip(own, ways, strict=True):
                item.sub_(way, alpha=1e-4 * point)
    expected = sum(float((grad * way).sum()) for grad, way in zip(gradients, ways, strict=True))
    _agree(expected, slope, "gradient of a loss by the parameters", tolerance=1e-5)


def check_responses(model: Model) -> None:
    """Hessian, Born charges and polarizability are derivatives of forces and dipole."""
    atoms = structure(model, charge=0.2, field=True)
    batch = atoms_batch([atoms], model.r_max)
    found = compute_response(model, batch, offered_properties(model))
    way = np.random.default_rng(2).normal(size=(len(atoms), 3))
    outputs = {"forces", "dipole"} & model.outputs
    along = [_predict(model, [_displaced(atoms, way, 1e-3 * s)], outputs) for s, _ in POINTS]
    assert found.hessian is not None
    pushed = found.hessian[0] @ torch.from_numpy(way).flatten()
    _close(pushed, -_difference([item.forces for item in along]).flatten(), "hessian", 1e-6)
    if found.born_charges is not None:
        moved = torch.einsum("iab,ia->b", found.born_charges, torch.from_numpy(way))
        _close(moved, _difference([item.dipole for item in along])[0], "Born charges", 1e-6)
    if found.polarizability is not None:
        unit = np.array([0.6, -0.8, 0.3])
        fields = [_predict(model, [_in_field(atoms, 1e-3 * s * unit)], outputs) for s, _ in POINTS]
        answer = found.polarizability[0] @ torch.from_numpy(unit)
        _close(answer, -_difference([item.dipole for item in fields])[0], "polarizability", 1e-6)


MODEL_CHECKS: tuple[Callable[[Model], None], ...] = (
    check_facts,
    check_refusals,
    check_symmetry,
    check_forces,
    check_stress,
    check_batch_independence,
    check_precision,
    check_saving,
    check_training,
    check_responses,
)
"""Everything that is asked of a model."""


def structure(
    model: Model, *, charge: float = 0.0, field: bool = False, pbc: str = "FFF", n_atoms: int = 4
) -> Atoms:
    """A few atoms of the model's elements.

    Args:
        charge: e.
        field: put an external field on, if the model takes one.
        pbc: ``FFF``; ``TTT`` in a triclinic cell; ``TTF``, a slab across z.
    """
    numbers = [int(z) for z in model.atomic_numbers]
    cell = 12.0 * np.eye(3)
    if pbc != "FFF":
        cell = np.diag([4.6, 4.9, 5.3 if pbc == "TTT" else 12.0])
    if pbc == "TTT":
        cell += np.array([[0.0, 0.3, -0.2], [0.5, 0.0, 0.4], [-0.3, 0.6, 0.0]])
    atoms = Atoms(
        numbers=[numbers[i % len(numbers)] for i in range(n_atoms)],
        positions=np.array(POSITIONS[:n_atoms]) + 1.0,
        cell=cell,
        pbc=[flag == "T" for flag in pbc],
    )
    if "total_charge" in model.inputs:
        atoms.info["total_charge"] = charge
    with_field = field and "external_field" in model.inputs
    atoms.info["external_field"] = (0.02, -0.01, 0.03) if with_field else (0.0, 0.0, 0.0)
    return atoms


def _structures(model: Model) -> list[Atoms]:
    """One structure of every periodicity that the model takes."""
    classes = ("FFF", "TTF", "TTT")
    if model.electrostatics is not None:
        classes = PBC_CLASSES[model.electrostatics.options.pbc_handling]  # type: ignore[assignment]
    return [structure(model, charge=0.2, field=True, pbc=pbc) for pbc in classes]


def _mode(model: Model) -> DensityMode | None:
    return _scf() if model.solves_self_consistency else None


def _scf(name: str = "scf", *, single: bool = False) -> DensityMode:
    scf = ScfOptions(
        scf_tolerance=1e-6 if single else 1e-12,
        charge_tolerance=1e-5 if single else 1e-11,
        num_scf_steps=300,
        on_failure="raise",
    )
    mode: DensityMode = build("training_mode", name, scf=scf)
    return mode


def _basic(model: Model) -> frozenset[str]:
    return frozenset({"energy", "forces", "density", "dipole"}) & model.outputs


def _predict(model: Model, structures: list[Atoms], outputs: Iterable[str]) -> Observables:
    dtype = next(item.dtype for item in model.parameters())
    batch: Batch = atoms_batch(structures, model.r_max).to(dtype=dtype)
    mode = _mode(model)
    if mode is not None and dtype == torch.float32:
        mode = _scf(single=True)
    wanted = set(outputs)
    with torch.set_grad_enabled(bool(wanted & set(DERIVATIVES))):
        return predict(model, batch, mode=mode, outputs=wanted)


def _slope(model: Model, at: Callable[[float], Atoms], step: float = 5e-4) -> float:
    """Derivative of the energy along a path of structures, by fourth-order differences."""
    energies = _predict(model, [at(step * point) for point, _ in POINTS], ("energy",)).energy
    weights = torch.tensor([weight for _, weight in POINTS], dtype=energies.dtype)
    return float((energies * weights).sum()) / step


def _difference(values: list[Tensor | None], step: float = 1e-3) -> Tensor:
    """Fourth-order derivative of values at :data:`POINTS` times ``step``."""
    total: Tensor | None = None
    for value, (_, weight) in zip(values, POINTS, strict=True):
        assert value is not None
        total = weight * value if total is None else total + weight * value
    assert total is not None
    return total / step


def _in_field(atoms: Atoms, change: np.ndarray) -> Atoms:
    other = atoms.copy()
    other.info["external_field"] = tuple(np.array(atoms.info["external_field"]) + change)
    return other


def _with_positions(atoms: Atoms, positions: np.ndarray) -> Atoms:
    moved = atoms.copy()
    moved.positions = positions
    return moved


def _displaced(atoms: Atoms, direction: np.ndarray, step: float) -> Atoms:
    return _with_positions(atoms, atoms.positions + step * direction)


def _strained(atoms: Atoms, strain: np.ndarray, step: float) -> Atoms:
    change = np.eye(3) + step * strain
    moved = _with_positions(atoms, atoms.positions @ change)
    moved.set_cell(atoms.cell.array @ change, scale_atoms=False)
    return moved


def _split(values: Tensor | None, n_graphs: int) -> list[Tensor]:
    assert values is not None
    return list(values.chunk(n_graphs))


def _close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-8) -> None:
    error = float((found - expected).abs().max())
    assert error < tolerance * (1.0 + float(expected.abs().max())), f"{what}: off by {error:.1e}"


def _agree(found: float, slope: float, what: str, tolerance: float = 1e-6) -> None:
    assert abs(found - slope) < tolerance * (1.0 + abs(slope)), (
        f"{what}: {found:.9g}, by finite differences {slope:.9g}"
    )


def _refused(call: Callable[[], object], word: str) -> None:
    message = ""
    try:
        call()
    except (ConfigError, DataError) as error:
        message = str(error)
    assert message, f"'{word}' was not refused"
    assert word in message, f"the message does not name '{word}': {message}"
