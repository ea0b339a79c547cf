"""Product basis: many-body features from the atomic basis, at the cost of a two-body sum."""

from __future__ import annotations

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.linear import Linear, uniform_multiplicity
from fpmace.blocks.symmetric_contraction import SymmetricContraction


class EquivariantProductBasis(nn.Module):
    """Symmetric contraction followed by a linear map, plus the skip.

    Args:
        node_irreps: of the message, ``n x (0e+1o+...)`` up to max_ell.
        out_irreps: of the result, ``n x (0e+1o+...)`` up to max_L.
        correlation: highest number of factors, at least 1.
        n_elements: number of elements; 1 if all have the same weights.
        reduced: polynomials that are linearly independent only.
    """

    def __init__(
        self,
        *,
        node_irreps: Irreps,
        out_irreps: Irreps,
        correlation: int,
        n_elements: int,
        reduced: bool = False,
    ) -> None:
        super().__init__()
        self.node_irreps, self.out_irreps = Irreps(node_irreps), Irreps(out_irreps)
        self.n_channels = uniform_multiplicity(self.node_irreps)
        uniform_multiplicity(self.out_irreps)
        self.symmetric_contractions = SymmetricContraction(
            self.node_irreps.lmax,
            self.out_irreps.lmax,
            correlation,
            n_elements,
            self.n_channels,
            reduced,
        )
        self.n_elements = n_elements
        self.linear = Linear(self.out_irreps, self.out_irreps)

    def forward(self, message: Tensor, skip: Tensor | None, element: Tensor) -> Tensor:
        """Map messages to features.

        Args:
            message: [n_atoms, node_irreps.dim].
            skip: [n_atoms, out_irreps.dim], added to the result, or None.
            element: [n_atoms] int64.

        Returns:
            [n_atoms, out_irreps.dim].
        """
        n = self.n_channels
        if self.n_elements == 1:
            element = torch.zeros_like(element)
        basis = torch.cat(
            [
                message[:, part].reshape(-1, n, ir.dim)
                for part, (_, ir) in zip(self.node_irreps.slices(), self.node_irreps, strict=True)
            ],
            dim=-1,
        )
        contracted = self.symmetric_contractions(basis, element)
        pieces = [
            contracted[:, :, ir.l**2 : (ir.l + 1) ** 2].flatten(1) for _, ir in self.out_irreps
        ]
        features = self.linear(torch.cat(pieces, dim=-1))
        return features if skip is None else features + skip
