"""Symmetric contraction: equivariant polynomials of the atomic basis, weights per element.

``B_LM = sum_nu sum_k W^nu[z, k, u] sum_t U^nu_L[M, t, k] prod_{eta in t} A[u, eta]``
(I. Batatia et al., NeurIPS 2022, eqs. 10 and 11), summed over distinct monomials t with
coefficients folded over the paths k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fpmace.blocks.coupling import symmetric_coupling


class Contraction(nn.Module):
    """Weights of the polynomials of one output degree L, for every correlation order."""

    def __init__(
        self, max_ell: int, out_l: int, correlation: int, n_elements: int, n_channels: int
    ) -> None:
        super().__init__()
        self.out_l, self.correlation = out_l, correlation
        self.couplings = [
            symmetric_coupling(max_ell, out_l, degree) for degree in range(1, correlation + 1)
        ]

        def weight(degree: int) -> nn.Parameter:
            n_paths = self.couplings[degree - 1].n_paths
            values = torch.randn(n_elements, n_paths, n_channels, dtype=torch.float64)
            return nn.Parameter(values / max(n_paths, 1))

        self.weights_max = weight(correlation)
        self.weights = nn.ParameterList(weight(d) for d in range(correlation - 1, 0, -1))

    def weight(self, degree: int) -> Tensor:
        """[n_elements, n_paths, n_channels] of the polynomials of ``degree``."""
        if degree == self.correlation:
            return self.weights_max
        return self.weights[self.correlation - 1 - degree]


class SymmetricContraction(nn.Module):
    """All output degrees L = 0 .. max_L."""

    def __init__(
        self, max_ell: int, max_L: int, correlation: int, n_elements: int, n_channels: int
    ) -> None:
        super().__init__()
        self.correlation = correlation
        self.contractions = nn.ModuleList(
            Contraction(max_ell, out_l, correlation, n_elements, n_channels)
            for out_l in range(max_L + 1)
        )
        for out_l, contraction in enumerate(self.contractions):
            for degree, coupling in enumerate(contraction.couplings, start=1):
                self.register_buffer(
                    f"monomials_{out_l}_{degree}",
                    torch.from_numpy(coupling.monomials.T.copy()),
                    persistent=False,
                )
                self.register_buffer(
                    f"values_{out_l}_{degree}",
                    torch.from_numpy(coupling.values.copy()),
                    persistent=False,
                )

    def forward(self, basis: Tensor, element: Tensor) -> list[Tensor]:
        """Map A [n_atoms, n_channels, (max_ell+1)^2] to B_L [n_atoms, n_channels, 2L+1] each."""
        out = []
        for out_l, contraction in enumerate(self.contractions):
            total = None
            for degree in range(1, self.correlation + 1):
                monomials = getattr(self, f"monomials_{out_l}_{degree}")
                values = getattr(self, f"values_{out_l}_{degree}")
                product = basis[..., monomials[0]]
                for row in monomials[1:]:
                    product = product * basis[..., row]
                folded = torch.einsum("mtk,zku->zutm", values, contraction.weight(degree))
                term = torch.einsum("aut,autm->aum", product, folded[element])
                total = term if total is None else total + term
            out.append(total)
        return out
