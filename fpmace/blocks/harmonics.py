"""Real spherical harmonics of the edge directions, by recursion over l."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from fpmace.blocks.coupling import wigner_3j


class SphericalHarmonics(nn.Module):
    """Real harmonics l = 0 .. max_ell with component normalisation, ``sum_m Y_lm^2 = 2l + 1``.

    ``Y_{l+1}`` is the (l+1) part of ``Y_l x Y_1``, so any l comes from the 3j tensors alone. The
    order of components is that of e3nn for the vector (x, y, z): l = 1 is (x, y, z) itself. A
    caller who wants the order (y, z, x) passes permuted vectors.
    """

    def __init__(self, max_ell: int) -> None:
        super().__init__()
        self.max_ell = max_ell
        for l in range(1, max_ell):  # noqa: E741
            tensor = torch.from_numpy(wigner_3j(l, 1, l + 1).copy())
            scale = sqrt(2 * l + 3) / _recursion_norm(l)
            step = tensor.reshape(3 * (2 * l + 1), 2 * l + 3) * scale
            self.register_buffer(f"step{l}", step, persistent=False)

    def forward(self, directions: Tensor) -> Tensor:
        """Map unit vectors [..., 3] to [..., (max_ell + 1)^2]."""
        parts = [torch.ones_like(directions[..., :1])]
        if self.max_ell >= 1:
            first = directions * sqrt(3.0)
            parts.append(first)
            for l in range(1, self.max_ell):  # noqa: E741
                product = parts[l].unsqueeze(-1) * first.unsqueeze(-2)
                parts.append(product.flatten(-2) @ getattr(self, f"step{l}"))
        return torch.cat(parts, dim=-1)


def _recursion_norm(l: int) -> float:  # noqa: E741
    """Norm of the coupled ``Y_l x Y_1 -> l+1``, the same for every direction."""
    direction = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    first = direction * sqrt(3.0)
    current = first
    for step in range(1, l + 1):
        tensor = torch.from_numpy(wigner_3j(step, 1, step + 1).copy())
        current = torch.einsum("i,j,ijk->k", current, first, tensor)
        norm = float(current.norm())
        current = current * (sqrt(2 * step + 3) / norm)
    return norm
