"""Random numbers per structure: the same whichever batch or process a structure is in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fpmace.data.batch import Batch

_STEP = -7046029254386353131
_FACTORS = ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1))


def structure_noise(batch: Batch, like: Tensor) -> Tensor:
    """Standard normal numbers of the shape of ``like`` [n_atoms, n_components].

    They follow from one draw of torch's generator, the position of the structure in its data set,
    and atom and component, by a counter through SplitMix64 (G. Steele, D. Lea, C. Flood, OOPSLA
    2014) and the Box-Muller transform.
    """
    draw = torch.randint(2**62, ()).to(batch.index.device)
    atom = torch.arange(batch.n_atoms, device=batch.batch.device) - batch.ptr[batch.batch]
    keys = _mixed(_mixed(draw + batch.index * _STEP)[batch.batch] + atom * _STEP)
    component = torch.arange(like.shape[1], device=keys.device)
    first = _mixed(keys.unsqueeze(1) + (2 * component + 1) * _STEP)
    second = _mixed(keys.unsqueeze(1) + (2 * component + 2) * _STEP)
    radius = (-2.0 * torch.log1p(-_uniform(first))).sqrt()
    return (radius * torch.cos(2 * math.pi * _uniform(second))).to(like)


def _mixed(values: Tensor) -> Tensor:
    """SplitMix64 of int64 numbers, which wrap around."""
    for bits, factor in _FACTORS:
        values = (values ^ _shifted(values, bits)) * factor
    return values


def _shifted(values: Tensor, bits: int) -> Tensor:
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _uniform(values: Tensor) -> Tensor:
    """Numbers in [0, 1) of the upper 53 bits."""
    return _shifted(values, 11).double() * 2.0**-53
