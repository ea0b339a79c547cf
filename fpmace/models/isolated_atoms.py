"""What a free atom has: its energy E0, no charge of its own, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from fpmace.blocks.radial import polynomial_cutoff
from fpmace.models.geometry import Geometry


def bonded(geometry: Geometry, r_max: float, num_polynomial_cutoff: int) -> Tensor:
    """How far each atom is from being free, [n_atoms]: ``tanh(2 n_i)``.

    n_i counts its neighbours with the smooth cutoff of the backbone: 0 for an atom by itself, 1
    but for some percent for one with a neighbour at the distance of a bond, and smooth between.
    """
    near = polynomial_cutoff(geometry.edge_lengths, r_max, num_polynomial_cutoff)
    count = torch.zeros_like(geometry.positions[:, 0])
    return torch.tanh(2.0 * count.index_add(0, geometry.edge_index[1], near))
