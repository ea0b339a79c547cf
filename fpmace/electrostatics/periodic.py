"""The maps of a :class:`PeriodicPart`: a few matrix products each, in padded tensors.

``own`` is the self-interaction to remove (features: [n_density, n_features]; energy:
[n_density]), or None to keep it. Padded densities are [g, n_max, n_density].
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpmace.electrostatics.corrections import project, slab_matrix
from fpmace.electrostatics.kspace import sum_over_atoms, sum_over_vectors
from fpmace.electrostatics.plan import PeriodicPart


def structure_factor(part: PeriodicPart, padded: Tensor) -> Tensor:
    """Conjugate structure factor, complex [g, n_k]."""
    return (sum_over_atoms(padded, part.phases) * part.source).sum(1)


def features(part: PeriodicPart, padded: Tensor, own: Tensor | None) -> Tensor:
    """Field features, [g, n_max, n_features]."""
    structure = structure_factor(part, padded)
    values = sum_over_vectors(structure[:, None] * part.receiver, part.phases)
    if own is not None:
        values = values - padded @ own
    if part.correction is not None:
        flat = padded.flatten(1)[:, None]
        moments = torch.bmm(flat, part.correction.source_for_features)
        extra = torch.bmm(part.correction.receiver, moments.transpose(1, 2))
        values = values + extra.view_as(values)
    return values


def transpose(part: PeriodicPart, padded: Tensor, own: Tensor | None) -> Tensor:
    """Adjoint of :func:`features`: [g, n_max, n_features] -> [g, n_max, n_density]."""
    received = sum_over_atoms(padded, part.phases)
    collected = (received * part.receiver.conj()).sum(1)
    values = sum_over_vectors(collected[:, None] * part.source.conj(), part.phases)
    if own is not None:
        values = values - padded @ own.T
    if part.correction is not None:
        flat = padded.flatten(1)[:, None]
        moments = torch.bmm(flat, part.correction.receiver)
        extra = torch.bmm(part.correction.source_for_features, moments.transpose(1, 2))
        values = values + extra.view_as(values)
    return values


def energy(part: PeriodicPart, padded: Tensor, own: Tensor | None) -> Tensor:
    """Energy, [g] eV."""
    square = torch.view_as_real(structure_factor(part, padded)).square().sum(-1)
    value = 0.5 * (part.k.weight * square).sum(1)
    if own is not None:
        value = value - 0.5 * (padded.square() * own).sum((1, 2))
    if part.correction is not None:
        moments = torch.bmm(padded.flatten(1)[:, None], part.correction.source)
        response = torch.bmm(moments, part.correction.matrix)
        value = value + 0.5 * (moments * response).sum((1, 2))
    return value


def conjugate(part: PeriodicPart, padded: Tensor, own: Tensor | None) -> Tensor:
    """Derivative of :func:`energy` by the density, [g, n_max, n_density]."""
    structure = structure_factor(part, padded) * part.k.weight
    values = sum_over_vectors(structure[:, None] * part.source.conj(), part.phases)
    if own is not None:
        values = values - padded * own
    if part.correction is not None:
        source = part.correction.source
        moments = torch.bmm(padded.flatten(1)[:, None], source)
        response = torch.bmm(moments, part.correction.matrix)
        values = values + torch.bmm(source, response.transpose(1, 2)).view_as(values)
    return values


def potential(part: PeriodicPart, padded: Tensor, positions: Tensor, pbc: Tensor) -> Tensor:
    """Potential at the atoms with the slab term for graphs with pbc TTF, [g, n_max] V.

    Args:
        positions: [g, n_max, 3], padded.
        pbc: [g, 3].
    """
    amplitudes = structure_factor(part, padded) * part.k.weight
    values = sum_over_vectors(amplitudes[:, None], part.phases).squeeze(-1)
    slab = (pbc == torch.tensor([True, True, False], device=pbc.device)).all(1)
    if not bool(slab.any()):
        return values
    max_l = round(padded.shape[-1] ** 0.5) - 1
    source = project(positions, max_l).flatten(1, 2)
    moments = torch.bmm(padded.flatten(1)[:, None], source)
    response = torch.bmm(moments, slab_matrix(part.k.volume) * slab[:, None, None])
    basis = project(positions, 0).squeeze(2)
    return values + torch.bmm(basis, response.transpose(1, 2)).squeeze(-1)


def operator(part: PeriodicPart, own: Tensor | None) -> Tensor:
    """:func:`features` as matrices, [g, n_max * n_features, n_max * n_density]."""
    left, right = _waves(part, part.receiver.conj()), _waves(part, part.source)
    matrix = torch.bmm(left, right.transpose(1, 2))
    if own is not None:
        matrix = matrix - _on_diagonal(part, own.T)
    if part.correction is not None:
        source = part.correction.source_for_features
        matrix = matrix + torch.bmm(part.correction.receiver, source.transpose(1, 2))
    return matrix


def conjugate_operator(part: PeriodicPart, own: Tensor | None) -> Tensor:
    """:func:`conjugate` as symmetric matrices, [g, n_max * n_density, n_max * n_density]."""
    waves = _waves(part, part.source)
    weight = part.k.weight.repeat_interleave(2, dim=1)[:, None]
    matrix = torch.bmm(waves * weight, waves.transpose(1, 2))
    if own is not None:
        matrix = matrix - _on_diagonal(part, torch.diag(own))
    if part.correction is not None:
        source = part.correction.source
        response = torch.bmm(source, part.correction.matrix)
        matrix = matrix + torch.bmm(response, source.transpose(1, 2))
    return matrix


def _waves(part: PeriodicPart, factors: Tensor) -> Tensor:
    """factors_n(k) exp(i k.R_i), real and imaginary parts as columns: [g, n_max * n, 2 n_k]."""
    unit = torch.view_as_complex(part.phases.unflatten(-1, (-1, 2)))[:, :, None]
    return torch.view_as_real(unit * factors[:, None]).flatten(-2).flatten(1, 2)


def _on_diagonal(part: PeriodicPart, block: Tensor) -> Tensor:
    eye = torch.eye(part.padding.n_max, dtype=block.dtype, device=block.device)
    return (eye[:, None, :, None] * block[:, None]).flatten(2).flatten(0, 1)
