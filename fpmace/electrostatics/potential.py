"""Potential and charge density of the smeared multipoles at arbitrary points (lines, grids)."""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor

from fpmace.electrostatics import gaussian
from fpmace.electrostatics.corrections import project
from fpmace.electrostatics.gto import GTOElectrostatics
from fpmace.electrostatics.harmonics import solid_harmonics
from fpmace.electrostatics.kspace import phases, sum_over_atoms, sum_over_vectors
from fpmace.electrostatics.plan import OpenPart, PeriodicPart, Plan
from fpmace.electrostatics.realspace import pair_kernel
from fpmace.units import COULOMB_K

_CHUNK = 4096


def potential_at_points(
    model: GTOElectrostatics, plan: Plan, density: Tensor, points: Tensor, graph: int = 0
) -> Tensor:
    """Electrostatic potential of one graph's density, with the correction of its mode.

    Closed form for open boundaries, the sum over reciprocal vectors otherwise (its average over
    the cell is zero but for the correction). An external field is not included.

    Args:
        model, plan: the electrostatics and its plan of the batch.
        density: [n_atoms, n_density] of the batch.
        points: [n_points, 3] Angstrom.
        graph: which structure of the batch.

    Returns:
        [n_points] V, positive where a positive charge is repelled.
    """
    part, row = _find(plan, graph)
    padded = part.padding.pad(density)[row : row + 1]
    if isinstance(part, OpenPart):
        chosen = plan.batch == graph
        return _open_potential(model, plan.positions[chosen], density[chosen], points)
    values = _periodic(part, row, padded, points, part.k.weight[row])
    if part.correction is None:
        return values
    moments = torch.bmm(padded.flatten(1)[:, None], part.correction.source[row : row + 1])
    coefficients = torch.bmm(moments, part.correction.matrix[row : row + 1])
    return values + project(points[None], 0)[0, :, 0] @ coefficients[0, 0]


def density_at_points(
    model: GTOElectrostatics, plan: Plan, density: Tensor, points: Tensor, graph: int = 0
) -> Tensor:
    """Smeared charge density of one graph at points.

    Periodic graphs use the same reciprocal vectors as the potential, plus the mean Q/V, so the
    two obey Poisson's equation up to that background.

    Args:
        model, plan, density, points, graph: as for :func:`potential_at_points`.

    Returns:
        [n_points] e/Angstrom^3.
    """
    part, row = _find(plan, graph)
    chosen = plan.batch == graph
    if isinstance(part, OpenPart):
        return _open_density(model, plan.positions[chosen], density[chosen], points)
    padded = part.padding.pad(density)[row : row + 1]
    weight = part.k.weight[row] * part.k.square[row] / COULOMB_K
    mean = density[chosen, 0].sum() / part.k.volume[row]
    return _periodic(part, row, padded, points, weight) + mean


def _find(plan: Plan, graph: int) -> tuple[PeriodicPart | OpenPart, int]:
    for part in plan.parts:
        graphs = range(plan.n_graphs)
        members = list(graphs) if part.padding.graphs is None else part.padding.graphs.tolist()
        if graph in members:
            return part, members.index(graph)
    raise IndexError(f"graph {graph} is not in a batch of {plan.n_graphs}")


def _periodic(
    part: PeriodicPart, row: int, padded: Tensor, points: Tensor, weight: Tensor
) -> Tensor:
    summed = sum_over_atoms(padded, part.phases[row : row + 1]) * part.source[row : row + 1]
    amplitudes = (summed.sum(1) * weight)[:, None]
    vectors = part.k.vectors[row : row + 1]
    pieces = [
        sum_over_vectors(amplitudes, phases(vectors, chunk[None]))[0, :, 0]
        for chunk in points.split(_CHUNK)
    ]
    return torch.cat(pieces) if pieces else points.new_zeros(0)


def _open_potential(
    model: GTOElectrostatics, positions: Tensor, density: Tensor, points: Tensor
) -> Tensor:
    options = model.options
    variances = [options.smearing_width**2]
    pieces = [
        torch.einsum(
            "pnb,nb->p",
            pair_kernel(
                chunk[:, None] - positions[None], variances, 0, options.density_max_l
            ).flatten(-3),
            density,
        )
        for chunk in points.split(_CHUNK)
    ]
    return torch.cat(pieces) if pieces else points.new_zeros(0)


def _open_density(
    model: GTOElectrostatics, positions: Tensor, density: Tensor, points: Tensor
) -> Tensor:
    sigma, max_l = model.options.smearing_width, model.options.density_max_l
    norms = [
        gaussian.multipole_norm(ell, sigma) * sqrt((2 * ell + 1) / (4.0 * pi))
        for ell in gaussian.degree_of_components(max_l)
    ]
    vectors = points[:, None] - positions[None]
    decay = torch.exp(-0.5 * vectors.square().sum(-1, keepdim=True) / sigma**2)
    shapes = solid_harmonics(vectors, max_l) * decay * points.new_tensor(norms)
    return torch.einsum("pnb,nb->p", shapes, density)
