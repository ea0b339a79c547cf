"""What every electrostatics has to do, as functions that tests call.

:func:`check_electrostatics` builds a registered electrostatics in every boundary method that it
declares and checks what has to hold whatever the summation: energies against potentials, the
adjoint, batches, symmetries, the choice of the cell, known limits, derivatives by finite
differences up to the declared order, precisions, and that the rest is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from fpmace.annotations import Options
from fpmace.boundaries import FFF, MOLECULE, OPEN, PERIODIC, SLAB, TTF, TTT, boundaries_of
from fpmace.boundaries import PbcMethod as Method
from fpmace.electrostatics import (
    Capabilities,
    Electrostatics,
    ElectrostaticsOptions,
    Plan,
    build_electrostatics,
)
from fpmace.electrostatics.gaussian import degree_of_components, double_factorial
from fpmace.electrostatics.padding import Padding
from fpmace.errors import ConfigError
from fpmace.registry import PartConfig, get
from fpmace.testing.electrostatics_systems import (
    System,
    make_density,
    make_system,
    neutral,
    one_graph,
)
from fpmace.units import COULOMB_C

STEP = 1e-4
"""Angstrom; displacement of the finite differences (fourth order)."""

ROCK_SALT = 1.7475645946331822
"""Madelung constant of rock salt, for the distance of neighbours."""


@dataclass(frozen=True)
class Subject:
    """An electrostatics under test.

    Attributes:
        config: its name, or a mapping with ``type`` and options.
        accuracy: relative error of its sums: how well energies agree that are equal in theory,
            but are summed in other cells. Exact identities are checked to rounding.
        closed_form: how well it agrees with closed forms in the open.
    """

    config: PartConfig
    accuracy: float = 1e-7
    closed_form: float = 1e-10

    @property
    def capabilities(self) -> Capabilities:
        """What it declares."""
        name = self.config if isinstance(self.config, str) else self.config["type"]
        found: Capabilities = get("electrostatics", name).target.capabilities  # type: ignore[attr-defined]
        return found

    def make(self, method: str, **options: Any) -> Electrostatics:
        """Build it for a boundary method, with the highest degrees it declares."""
        max_l = self.capabilities.max_l
        settings: Options = {
            "density_max_l": max_l,
            "feature_max_l": max_l,
            "smearing_width": 1.0,
            "feature_widths": (1.0, 1.7),
            "kspace_window": 0.2,
            "kspace_cutoff_factor": 1.0,
            "pbc_handling": method,
            **options,
        }
        return build_electrostatics(self.config, ElectrostaticsOptions(**settings))


def check_electrostatics(config: PartConfig, *, accuracy: float = 1e-7) -> None:
    """Check all of the contract.

    Args:
        config: the electrostatics, as the option ``electrostatics`` names it.
        accuracy: see :class:`Subject`.

    Raises:
        AssertionError: naming the check, the boundary method and the error.
    """
    subject = Subject(config, accuracy)
    check_refusals(subject)
    for method in subject.capabilities.methods():
        check_method(subject, method)


def check_method(subject: Subject, method: str) -> None:
    """Check one boundary method."""
    for own in (False, True):
        check_energy_and_potentials(subject, method, own=own)
    for check in (*EVERYWHERE, *LIMITS.get(boundaries_of(method), ())):
        check(subject, method)


def check_refusals(subject: Subject) -> None:
    """What is not declared is refused when it is built."""
    able = subject.capabilities
    assert able.methods(), f"{subject.config}: no boundary method fits {able.boundaries}"
    for method in set(get_args(Method)) - set(able.methods()):
        try:
            subject.make(method)
        except ConfigError:
            continue
        raise AssertionError(f"{method}: is not declared, but was built")


def check_energy_and_potentials(subject: Subject, method: str, *, own: bool) -> None:
    """Energy, its derivative by multipoles, and features of the density's own width agree."""
    model = subject.make(
        method,
        feature_widths=(1.0,),
        include_energy_self_interaction=own,
        include_field_self_interaction=own,
    )
    system = make_system(method)
    density = make_density(model, len(system.batch)).requires_grad_()
    plan = system.plan(model)
    energy, potential = plan.energy(density), plan.conjugate_potential(density)
    half = torch.zeros_like(energy).index_add(0, system.batch, 0.5 * (density * potential).sum(1))
    close("energy = half the density times its potential", method, half, energy)
    (derivative,) = torch.autograd.grad(energy.sum(), density)
    close("derivative of the energy by the multipoles = potential", method, potential, derivative)
    degrees = degree_of_components(model.options.density_max_l)
    scale = model.feature_scale.new_tensor([double_factorial(2 * ell - 1) for ell in degrees])
    features = plan.potential_features(density) / (model.feature_scale * scale)
    close("features of the density's own width = potential", method, features, potential)


def check_linear_maps(subject: Subject, method: str) -> None:
    """The transpose is the adjoint; matrices give what the maps give and C is symmetric."""
    model, system = subject.make(method), make_system(method)
    plan = system.plan(model)
    density = make_density(model, len(system.batch))
    features = plan.potential_features(density)
    probe = torch.randn(features.shape, generator=torch.Generator().manual_seed(3)).double()
    adjoint = (plan.potential_features_transpose(probe) * density).sum()
    close("transpose = adjoint of the features", method, adjoint, (probe * features).sum())
    matrix = plan.conjugate_dense()
    close("matrix of the energy is symmetric", method, matrix, matrix.transpose(1, 2))
    potential = plan.conjugate_potential(density)
    for what, dense, values in (
        ("features", plan.dense_features(), features),
        ("potential", matrix, potential),
    ):
        found = _apply(dense, plan.padding, density)
        close(f"matrix of the {what}", method, found, values)


def _apply(dense: Tensor, padding: Padding, density: Tensor) -> Tensor:
    product = torch.bmm(dense, padding.pad(density).flatten(1)[..., None])
    return padding.unpad(product.view(padding.n_graphs, padding.n_max, -1))


def check_batch(subject: Subject, method: str) -> None:
    """A structure does not see the others of its batch."""
    model, system = subject.make(method), make_system(method)
    density = make_density(model, len(system.batch))
    together = _everything(system.plan(model), density)
    for graph in range(len(system.cell)):
        chosen = system.batch == graph
        alone = _everything(system.graph(graph).plan(model), density[chosen])
        expected = (together[0][graph : graph + 1], *(item[chosen] for item in together[1:]))
        for one, many in zip(alone, expected, strict=True):
            close("a structure alone = in a batch", method, one, many)


def _everything(plan: Plan, density: Tensor) -> tuple[Tensor, ...]:
    return (
        plan.energy(density),
        plan.potential_features(density),
        plan.conjugate_potential(density),
        plan.potential_at_atoms(density),
    )


def check_symmetry(subject: Subject, method: str) -> None:
    """Permutation of atoms, and translation of neutral structures."""
    model, system = subject.make(method), make_system(method)
    density = neutral(system, make_density(model, len(system.batch)))
    energy = system.plan(model).energy(density)
    shift = torch.tensor([1.0, -2.0, 0.7]).to(system.positions)
    moved = replace(system, positions=system.positions + shift)
    close("energy after a translation", method, moved.plan(model).energy(density), energy, subject)
    order = torch.cat([torch.arange(a, b).flip(0) for a, b in _ranges(system)])
    shuffled = replace(system, positions=system.positions[order])
    features = shuffled.plan(model).potential_features(density[order])
    expected = system.plan(model).potential_features(density)[order]
    close("features after a permutation", method, features, expected)


def _ranges(system: System) -> list[tuple[int, int]]:
    offsets = system.ptr.tolist()
    return list(pairwise(offsets))


def check_derivatives(subject: Subject, method: str) -> None:
    """Forces and stress by finite differences, and second derivatives if they are declared."""
    order = subject.capabilities.derivatives
    if order == 0:
        return
    model, system = subject.make(method), make_system(method, (2, 1, 2))

    def function(positions: Tensor, strain: Tensor, density: Tensor) -> Tensor:
        plan = replace(system, positions=positions).strained(strain).plan(model)
        features = plan.potential_features(density)
        potential = plan.potential_at_atoms(density) + plan.conjugate_potential(density)[:, 0]
        return plan.energy(density).sum() + 0.01 * features.square().sum() + potential.sin().sum()

    inputs = [system.positions.clone().requires_grad_()]
    inputs.append(torch.zeros(3, 3, 3, dtype=torch.float64, requires_grad=True))
    inputs.append(make_density(model, 5).requires_grad_())
    gradients = torch.autograd.grad(function(*inputs), inputs, materialize_grads=True)
    generator = torch.Generator().manual_seed(2)
    for index, what in enumerate(("positions (forces)", "strain (stress)")):
        direction = torch.randn(inputs[index].shape, generator=generator, dtype=torch.float64)
        direction = direction if index == 0 else 0.1 * (direction + direction.transpose(1, 2))
        ends = []
        for step in (-2, -1, 1, 2):
            moved = [item.detach() for item in inputs]
            moved[index] = moved[index] + step * STEP * direction
            ends.append(function(*moved))
        slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * STEP)
        analytic = (gradients[index] * direction).sum()
        scale = float((gradients[index] * direction).abs().sum())
        close(f"derivative by {what}", method, analytic, slope, 1e-7, scale)
    if order is None or order >= 2:
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True), method


def check_dtypes(subject: Subject, method: str) -> None:
    """Results come in the precision of the input, and single precision follows double."""
    model, system = subject.make(method), make_system(method)
    density = make_density(model, len(system.batch))
    expected = _everything(system.plan(model), density)
    for dtype in subject.capabilities.dtypes:
        cast = replace(system, positions=system.positions.to(dtype), cell=system.cell.to(dtype))
        for value, exact in zip(
            _everything(cast.plan(model), density.to(dtype)), expected, strict=True
        ):
            assert value.dtype == dtype, f"{method}: a result in {value.dtype}, not {dtype}"
            limit = 1e4 * torch.finfo(dtype).eps
            close(f"results in {dtype}", method, value.to(exact), exact, limit)


def check_choice_of_cell(subject: Subject, method: str) -> None:
    """Skewed, left-handed and doubled cells of one crystal, and atoms in other cells."""
    model, system = subject.make(method), make_system(method, (4,))
    cell, density = system.cell[0], make_density(model, 4)
    plan = system.plan(model)
    energy, features = plan.energy(density), plan.potential_features(density)
    skew = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]).double()
    swap = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).double()
    shifts = torch.tensor([[0, 1, 0], [2, 0, -1], [0, 0, 0], [-1, 1, 1]]).double()
    for change in (skew, swap):
        other = one_graph(system.positions + shifts @ cell, change @ cell, TTT)
        found = other.plan(model)
        close("energy in another cell", method, found.energy(density), energy, subject)
        values = found.potential_features(density)
        close("features in another cell", method, values, features, subject)
    double = cell * torch.tensor([1.0, 2.0, 1.0]).double()[:, None]
    twice = one_graph(torch.cat([system.positions, system.positions + cell[1]]), double, TTT)
    pair = twice.plan(model).energy(density.repeat(2, 1))
    close("two cells have twice the energy", method, pair, 2.0 * energy, subject)


def check_madelung(subject: Subject, method: str) -> None:
    """Rock salt of nearly point-like charges."""
    length, width = 5.64, 0.3
    sites = torch.tensor([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]).double()
    positions = torch.cat([sites, (sites + torch.tensor([1.0, 0.0, 0.0])) % 2]) * length / 2
    charges = torch.tensor([1.0] * 4 + [-1.0] * 4).double()[:, None]
    model = subject.make(
        method,
        density_max_l=0,
        feature_max_l=0,
        smearing_width=width,
        feature_widths=(width,),
        kspace_cutoff_factor=2.2,
    )
    energy = one_graph(positions, length, TTT).plan(model).energy(charges)[0] / 4
    expected = torch.tensor(-2.0 * ROCK_SALT / 2.0 * COULOMB_C / (length / 2)).to(energy)
    close("Madelung constant of rock salt", method, energy, expected, subject)


def check_two_charges(subject: Subject, method: str) -> None:
    """Two Gaussian charges in the open: C q q' erf(r / 2 sigma) / r."""
    model = subject.make(method, density_max_l=0, feature_max_l=0)
    positions = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, 2.0]], dtype=torch.float64)
    charges = torch.tensor([[1.0], [-0.75]], dtype=torch.float64)
    energy = one_graph(positions, 20.0, FFF).plan(model).energy(charges)[0]
    expected = -0.75 * COULOMB_C * torch.erf(positions[1].norm() / 2.0) / positions[1].norm()
    close("energy of two Gaussian charges", method, energy, expected, subject.closed_form)


def check_large_boxes(subject: Subject, method: str) -> None:
    """What is left of the other boxes falls at least as their volume grows."""
    options = {
        "kspace_cutoff_factor": 1.6,
        "include_energy_self_interaction": True,
        "include_field_self_interaction": True,
    }
    model = subject.make(method, **options)
    free = build_electrostatics("direct", replace(model.options, pbc_handling="realspace"))
    system = make_system("realspace", (3,))
    density = neutral(system, make_density(model, 3))
    exact = _everything(system.plan(free), density)[:2]
    boxes = [
        _everything(one_graph(system.positions, length, FFF).plan(model), density)[:2]
        for length in (16.0, 24.0)
    ]
    for what, small, large, free_value in zip(("energy", "features"), *boxes, exact, strict=True):
        errors = [float((value - free_value).abs().max()) for value in (small, large)]
        limit = max(0.3 * errors[0], subject.accuracy * float(free_value.abs().max()))
        assert errors[1] < limit, f"{method}: {what} of a molecule in 16 and 24 A: error {errors}"


def check_vacuum(subject: Subject, method: str) -> None:
    """The energy of a neutral slab and the fields in it do not depend on the vacuum."""
    model = subject.make(method, kspace_cutoff_factor=1.6)
    system = make_system(method, (3,))
    density = neutral(system, make_density(model, 3))
    found = []
    for height in (24.0, 36.0):
        cell = system.cell[0].clone()
        cell[2] = torch.tensor([0.0, 0.0, height]).to(cell)
        plan = one_graph(system.positions, cell, TTF).plan(model)
        n_scalar = len(model.options.feature_widths)
        found.append((plan.energy(density), plan.potential_features(density)[:, n_scalar:]))
    limit = max(1e-5, subject.accuracy)
    for small, large in zip(*found, strict=True):
        close("a slab in more vacuum", method, small, large, limit)


Check = Callable[[Subject, str], None]
EVERYWHERE: tuple[Check, ...] = (
    check_linear_maps,
    check_batch,
    check_symmetry,
    check_derivatives,
    check_dtypes,
)
"""What holds in every boundary method."""

LIMITS: dict[tuple[str, ...], tuple[Check, ...]] = {
    (OPEN,): (check_two_charges,),
    (PERIODIC,): (check_choice_of_cell, check_madelung),
    (SLAB,): (check_vacuum,),
    (MOLECULE,): (check_large_boxes,),
}
"""Known limits, by what a boundary method leads to."""


def close(
    what: str,
    method: str,
    value: Tensor,
    expected: Tensor,
    tolerance: Subject | float = 1e-10,
    scale: float = 0.0,
) -> None:
    """Compare relative to the largest entry (or ``scale``, if that is larger)."""
    limit = tolerance.accuracy if isinstance(tolerance, Subject) else tolerance
    size = max(float(expected.detach().abs().max()), scale, 1e-6)
    error = float((value - expected).detach().abs().max()) / size
    assert error <= limit, f"{method}: {what}: relative error {error:.1e} exceeds {limit:.0e}"
