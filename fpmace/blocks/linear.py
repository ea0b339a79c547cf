"""Equivariant maps on e3nn irreps.

Weights are flat in e3nn's order and normalisation ("element" paths, "component" irreps). Linear
maps and networks are evaluated by e3nn's modules; maps per element and products have code of
their own where that is faster, with the measured factor beside it.

Parameters are created in float64 whatever torch's default dtype; convert with ``module.to``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.harmonics import eager_e3nn

SILU_NORM = 1.6791767923989418
"""Second-moment normalisation of SiLU, e3nn's seeded sample average."""

SIGMOID_NORM = 1.8467055342154763
"""Second-moment normalisation of the logistic function, e3nn's seeded sample average."""


def silu(x: Tensor) -> Tensor:
    """SiLU scaled to unit second moment on normal input."""
    return nn.functional.silu(x) * SILU_NORM


class Linear(nn.Module):
    """Equivariant linear map ``y_v = (1/sqrt(n_in)) sum_u x_u W_uv`` for each irrep.

    Args:
        irreps_in, irreps_out: e3nn irreps; outputs without a matching input are zero.
        bias: adds a constant to every scalar output, as is.
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, *, bias: bool = False) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        sizes = linear_function(self.irreps_in, self.irreps_out, bias)
        self.weight = nn.Parameter(torch.randn(sizes.weight_numel, dtype=torch.float64))
        zeros = torch.zeros(sizes.bias_numel, dtype=torch.float64)
        self.bias = nn.Parameter(zeros) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., irreps_in.dim] to [..., irreps_out.dim]."""
        function = linear_function(self.irreps_in, self.irreps_out, self.bias is not None)
        return function(x, self.weight, self.bias)


@cache
def linear_function(irreps_in: Irreps, irreps_out: Irreps, bias: bool) -> o3.Linear:
    """e3nn's map without weights of its own; made once, as that takes 2 ms."""
    with eager_e3nn():
        return o3.Linear(
            irreps_in, irreps_out, internal_weights=False, biases=bias, _optimize_einsums=False
        )


class ElementLinear(nn.Module):
    """Linear map with a weight matrix per element: the product with the one-hot element.

    ``y_v = (1/sqrt(n_in n_elements)) sum_u x_u W_uzv`` with z the element of the atom. e3nn's
    product with the one-hot element takes 0.8 of the time at 3 elements, but 2 to 3 times at 89.
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, n_elements: int) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        self.n_elements = n_elements
        numel = n_elements * linear_function(self.irreps_in, self.irreps_out, False).weight_numel
        self.weight = nn.Parameter(torch.randn(numel, dtype=torch.float64))

    def select_elements(self, weight: Tensor, rows: Sequence[int]) -> Tensor:
        """The values of ``weight`` for a map of the elements ``rows`` alone, flat."""
        parts, offset = [], 0
        for path in linear_function(self.irreps_in, self.irreps_out, False).instructions:
            mul_in, mul_out = path.path_shape
            numel = mul_in * self.n_elements * mul_out
            block = weight[offset : offset + numel].view(mul_in, self.n_elements, mul_out)
            parts.append(block[:, list(rows)].reshape(-1))
            offset += numel
        return torch.cat(parts)

    def forward(self, x: Tensor, element: Tensor) -> Tensor:
        """Map [n_atoms, irreps_in.dim] to [n_atoms, irreps_out.dim]; element [n_atoms] int64."""
        out: list[Tensor | None] = [None] * len(self.irreps_out)
        offset, slices = 0, self.irreps_in.slices()
        for path in linear_function(self.irreps_in, self.irreps_out, False).instructions:
            mul_in, mul_out = path.path_shape
            numel = mul_in * self.n_elements * mul_out
            weight = self.weight[offset : offset + numel].view(mul_in, self.n_elements, mul_out)
            offset += numel
            per_element = weight.transpose(0, 1) * (path.path_weight / sqrt(self.n_elements))
            block = x[..., slices[path.i_in]]
            block = block.reshape(x.shape[0], mul_in, self.irreps_in[path.i_in].ir.dim)
            term = per_element_matmul(block, per_element, element).reshape(x.shape[0], -1)
            previous = out[path.i_out]
            out[path.i_out] = term if previous is None else previous + term
        pieces = [
            x.new_zeros(x.shape[0], mul_ir.dim) if term is None else term
            for mul_ir, term in zip(self.irreps_out, out, strict=True)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


def per_element_matmul(block: Tensor, weight: Tensor, element: Tensor) -> Tensor:
    """``out[a, v, i] = sum_u block[a, u, i] weight[element[a], u, v]``."""
    return torch.einsum("aui,auv->avi", block, weight[element])


class MLP(FullyConnectedNet):
    """Fully connected network without biases; SiLU with unit second moment between layers.

    Maps [..., sizes[0]] to [..., sizes[-1]]. Layer N is ``x W_N / sqrt(n_in)`` with
    ``layerN.weight`` of shape [n_in, n_out]; the last layer is linear.
    """

    def __init__(self, sizes: list[int]) -> None:
        with torch.random.fork_rng(devices=[]):
            super().__init__(sizes)
        for layer in self:
            shape = layer.weight.shape
            layer.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        for layer in list(self)[:-1]:
            layer.act = silu  # given here, as e3nn would sample its moment for every network

    def hidden(self, x: Tensor) -> Tensor:
        """Map [..., sizes[0]] to the input [..., sizes[-2]] of the last layer."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x

    def last_weight(self) -> Tensor:
        """[sizes[-2], sizes[-1]] of the last layer, scaled as it is applied."""
        return self[-1].weight * (1.0 / sqrt(self.hs[-2]))


class DotProducts(nn.Module):
    """Invariant products of two feature sets: irreps x irreps -> n scalars ("uvu" paths).

    ``s_u = (1/sqrt(n n_l)) sum_l (2l+1)^(-1/2) sum_v W^l_uv a^l_u . b^l_v``, n_l the number of
    degrees that both have. e3nn's ``TensorProduct`` takes 3 to 8 times as long.
    """

    def __init__(self, irreps: Irreps) -> None:
        super().__init__()
        self.irreps = Irreps(irreps)
        self.n_channels = uniform_multiplicity(self.irreps)
        n = self.n_channels
        self.weight = nn.Parameter(torch.randn(len(self.irreps) * n * n, dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two [n_atoms, irreps.dim] to [n_atoms, n_channels]."""
        n = self.n_channels
        weight = self.weight.view(len(self.irreps), n, n)
        total: Tensor | None = None
        for index, (part, (_, ir)) in enumerate(
            zip(self.irreps.slices(), self.irreps, strict=True)
        ):
            scale = 1.0 / sqrt(n * len(self.irreps) * ir.dim)
            left = a[:, part].reshape(-1, n, ir.dim)
            right = b[:, part].reshape(-1, n, ir.dim)
            mixed = torch.einsum("uv,avi->aui", weight[index] * scale, right)
            term = (left * mixed).sum(-1)
            total = term if total is None else total + term
        assert total is not None
        return total


class ScalarWeighting(nn.Module):
    """Features weighted by scalars: ``y^l_u = (1/sqrt(n)) sum_v W^l_uv a^l_u s_v``.

    e3nn's ``TensorProduct`` takes 2 to 3 times as long.
    """

    def __init__(self, irreps: Irreps) -> None:
        super().__init__()
        self.irreps = Irreps(irreps)
        self.n_channels = uniform_multiplicity(self.irreps)
        n = self.n_channels
        self.weight = nn.Parameter(torch.randn(len(self.irreps) * n * n, dtype=torch.float64))

    def forward(self, a: Tensor, s: Tensor) -> Tensor:
        """[n_atoms, irreps.dim] and [n_atoms, n_channels] to [n_atoms, irreps.dim]."""
        n = self.n_channels
        weight = self.weight.view(len(self.irreps), n, n) * (1.0 / sqrt(n))
        pieces = []
        for index, (part, (_, ir)) in enumerate(
            zip(self.irreps.slices(), self.irreps, strict=True)
        ):
            gate = s @ weight[index].T
            block = a[:, part].reshape(-1, n, ir.dim) * gate.unsqueeze(-1)
            pieces.append(block.reshape(-1, n * ir.dim))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


def uniform_multiplicity(irreps: Irreps) -> int:
    """The one multiplicity of all irreps.

    Raises:
        ConfigError: if multiplicities differ, an irrep repeats, or a parity is not (-1)^l.
    """
    from fpmace.errors import ConfigError

    irreps = Irreps(irreps)
    multiplicities = {mul for mul, _ in irreps}
    degrees = [ir.l for _, ir in irreps]
    natural = all(ir.p == (-1) ** ir.l for _, ir in irreps)
    if len(multiplicities) != 1 or not natural or degrees != list(range(len(irreps))):
        raise ConfigError(
            f"irreps '{irreps}': expected one multiplicity for l = 0, 1, ... with parity (-1)^l, "
            "such as '32x0e+32x1o'"
        )
    return multiplicities.pop()
