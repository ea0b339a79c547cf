"""Radial bases and the smooth cutoff."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import pi, sqrt
from typing import Annotated

import torch
from torch import Tensor, nn

from fpmace.annotations import Doc
from fpmace.errors import ConfigError
from fpmace.registry import register_radial_basis, set_base


class RadialBasis(nn.Module, ABC):
    """Functions of the distance, perhaps a transformed one, before the cutoff is applied.

    The constructor may ask for the context arguments ``r_max`` (Angstrom) and ``n_basis``.
    """

    @abstractmethod
    def forward(self, lengths: Tensor) -> Tensor:
        """Map distances [n_edges] in Angstrom to [n_edges, n_basis]."""


set_base("radial_basis", RadialBasis)


@register_radial_basis("bessel")
class BesselBasis(RadialBasis):
    """Spherical Bessel functions ``sqrt(2/r_max) sin(n pi r/r_max) / r``, n = 1 .. n_basis.

    J. Gasteiger, J. Gross, S. Guennemann, ICLR 2020, eq. 7. With ``trainable`` the roots
    ``n pi/r_max`` are the first values of parameters.
    """

    bessel_weights: Tensor

    def __init__(
        self,
        *,
        trainable: Annotated[bool, Doc("train the roots")] = False,
        r_max: float,
        n_basis: int,
    ) -> None:
        super().__init__()
        orders = torch.arange(1, n_basis + 1, dtype=torch.float64)
        roots = orders * (pi / r_max)
        if trainable:
            self.bessel_weights = nn.Parameter(roots)
        else:
            self.register_buffer("bessel_weights", roots, persistent=False)
        self.prefactor = sqrt(2.0 / r_max)

    def forward(self, lengths: Tensor) -> Tensor:
        r = lengths.unsqueeze(-1)
        return torch.sin(r * self.bessel_weights) * (self.prefactor / r)


@register_radial_basis("gaussian")
class GaussianBasis(RadialBasis):
    """Gaussians of width ``r_max/(n_basis - 1)`` centred on a regular grid from 0 to r_max."""

    gaussian_weights: Tensor

    def __init__(self, *, r_max: float, n_basis: int) -> None:
        super().__init__()
        if n_basis < 2:
            raise ConfigError(
                f"num_bessel: the gaussian radial basis needs at least 2 functions, got {n_basis}"
            )
        centres = torch.linspace(0.0, r_max, n_basis, dtype=torch.float64)
        self.register_buffer("gaussian_weights", centres, persistent=False)
        self.exponent = -0.5 / (r_max / (n_basis - 1)) ** 2

    def forward(self, lengths: Tensor) -> Tensor:
        return torch.exp(self.exponent * (lengths.unsqueeze(-1) - self.gaussian_weights) ** 2)


@register_radial_basis("chebyshev")
class ChebyshevBasis(RadialBasis):
    """Chebyshev polynomials T_1 .. T_n_basis of the distance itself.

    Meant for a distance transform that maps to [0, 1] (Agnesi); beyond 1 they grow like r^n.
    """

    def __init__(self, *, n_basis: int) -> None:
        super().__init__()
        self.n_basis = n_basis

    def forward(self, lengths: Tensor) -> Tensor:
        terms = [torch.ones_like(lengths), lengths]
        for _ in range(self.n_basis - 1):
            terms.append(2.0 * lengths * terms[-1] - terms[-2])
        return torch.stack(terms[1:], dim=-1)


def polynomial_cutoff(lengths: Tensor, r_max: float | Tensor, p: int) -> Tensor:
    """Smooth step from 1 at r = 0 to 0 at r_max, with p - 1 vanishing derivatives at 0.

    ``1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)``, x = r/r_max; zero beyond r_max.
    J. Gasteiger, J. Gross, S. Guennemann, ICLR 2020, eq. 8. Value, first and second derivative
    vanish at r_max.

    Args:
        lengths: distances in Angstrom, any shape.
        r_max: cutoff radius in Angstrom, one or as many as distances.
        p: order, at least 2.
    """
    x = lengths / r_max
    polynomial = -0.5 * p * (p + 1.0) * x + p * (p + 2.0)
    polynomial = polynomial * x - 0.5 * (p + 1.0) * (p + 2.0)
    return torch.where(x < 1.0, 1.0 + polynomial * x**p, torch.zeros_like(x))
