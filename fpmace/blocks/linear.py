"""Equivariant linear maps on e3nn irreps, in plain torch.

Weights are flat in e3nn's order and normalisation ("element" paths, "component" irreps), so
weights of e3nn's ``o3.Linear`` and of ``FullyConnectedTensorProduct`` with a one-hot element
carry over. Plain einsums let autograd, forward mode and ``torch.func`` transforms through,
which e3nn's compiled code does not. Source: e3nn, https://doi.org/10.5281/zenodo.6459381.

Parameters are created in float64 whatever torch's default dtype; convert with ``module.to``.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import torch
from e3nn.o3 import Irrep, Irreps
from torch import Tensor, nn

SILU_NORM = 1.6791767923989418
"""Second-moment normalisation of SiLU, e3nn's seeded sample average."""

SIGMOID_NORM = 1.8467055342154763
"""Second-moment normalisation of the logistic function, e3nn's seeded sample average."""

_SCALAR = Irrep("0e")


def silu(x: Tensor) -> Tensor:
    """SiLU scaled to unit second moment on normal input."""
    return nn.functional.silu(x) * SILU_NORM


class _BlockPairs:
    """Pairs of equal irreps of input and output, in the order of e3nn's flat weights."""

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps) -> None:
        self.irreps_in = Irreps(irreps_in)
        self.irreps_out = Irreps(irreps_out)
        self.pairs = [
            (i, o)
            for i, (_, ir_in) in enumerate(self.irreps_in)
            for o, (_, ir_out) in enumerate(self.irreps_out)
            if ir_in == ir_out
        ]
        self.fan_in = [
            sum(self.irreps_in[i].mul for i, other in self.pairs if other == o)
            for o in range(len(self.irreps_out))
        ]

    def multiplicities(self, pair: tuple[int, int]) -> tuple[int, int]:
        return self.irreps_in[pair[0]].mul, self.irreps_out[pair[1]].mul


class Linear(nn.Module):
    """Equivariant linear map ``y_v = (1/sqrt(n_in)) sum_u x_u W_uv`` for each irrep.

    Args:
        irreps_in, irreps_out: e3nn irreps; outputs without a matching input are zero.
        bias: adds a constant to every scalar output, as is.
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, *, bias: bool = False) -> None:
        super().__init__()
        self.layout = _BlockPairs(irreps_in, irreps_out)
        self.irreps_in, self.irreps_out = self.layout.irreps_in, self.layout.irreps_out
        numel = 0
        for pair in self.layout.pairs:
            mul_in, mul_out = self.layout.multiplicities(pair)
            numel += mul_in * mul_out
        self.weight = nn.Parameter(torch.randn(numel, dtype=torch.float64))
        n_bias = sum(mul for mul, ir in self.irreps_out if ir == _SCALAR) if bias else 0
        self.bias = nn.Parameter(torch.zeros(n_bias, dtype=torch.float64)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., irreps_in.dim] to [..., irreps_out.dim]."""
        out: list[Tensor | None] = [None] * len(self.irreps_out)
        offset = 0
        slices = self.irreps_in.slices()
        for i, o in self.layout.pairs:
            mul_in, mul_out = self.layout.multiplicities((i, o))
            dim = self.irreps_in[i].ir.dim
            weight = self.weight[offset : offset + mul_in * mul_out].view(mul_in, mul_out)
            offset += mul_in * mul_out
            weight = weight * (1.0 / sqrt(self.layout.fan_in[o]))
            block = x[..., slices[i]]
            if dim == 1:
                term = block @ weight
            else:
                block = block.reshape(*x.shape[:-1], mul_in, dim)
                term = torch.einsum("...ui,uv->...vi", block, weight).reshape(*x.shape[:-1], -1)
            previous = out[o]
            out[o] = term if previous is None else previous + term
        return self._assemble(x, out)

    def _assemble(self, x: Tensor, out: list[Tensor | None]) -> Tensor:
        pieces, used = [], 0
        for (mul, ir), term in zip(self.irreps_out, out, strict=True):
            piece = x.new_zeros(*x.shape[:-1], mul * ir.dim) if term is None else term
            if self.bias is not None and ir == _SCALAR:
                piece = piece + self.bias[used : used + mul]
                used += mul
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


class ElementLinear(nn.Module):
    """Linear map with a weight matrix per element: the product with the one-hot element.

    ``y_v = (1/sqrt(n_in n_elements)) sum_u x_u W_uzv`` with z the element of the atom.
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, n_elements: int) -> None:
        super().__init__()
        self.layout = _BlockPairs(irreps_in, irreps_out)
        self.irreps_in, self.irreps_out = self.layout.irreps_in, self.layout.irreps_out
        self.n_elements = n_elements
        numel = 0
        for pair in self.layout.pairs:
            mul_in, mul_out = self.layout.multiplicities(pair)
            numel += mul_in * mul_out * n_elements
        self.weight = nn.Parameter(torch.randn(numel, dtype=torch.float64))

    def forward(self, x: Tensor, element: Tensor) -> Tensor:
        """Map [n_atoms, irreps_in.dim] to [n_atoms, irreps_out.dim]; element [n_atoms] int64."""
        out: list[Tensor | None] = [None] * len(self.irreps_out)
        offset = 0
        slices = self.irreps_in.slices()
        for i, o in self.layout.pairs:
            mul_in, mul_out = self.layout.multiplicities((i, o))
            dim = self.irreps_in[i].ir.dim
            numel = mul_in * self.n_elements * mul_out
            weight = self.weight[offset : offset + numel].view(mul_in, self.n_elements, mul_out)
            offset += numel
            scale = 1.0 / sqrt(self.layout.fan_in[o] * self.n_elements)
            per_element = weight.transpose(0, 1) * scale
            block = x[..., slices[i]].reshape(x.shape[0], mul_in, dim)
            term = per_element_matmul(block, per_element, element).reshape(x.shape[0], -1)
            previous = out[o]
            out[o] = term if previous is None else previous + term
        pieces = [
            x.new_zeros(x.shape[0], mul * ir.dim) if term is None else term
            for (mul, ir), term in zip(self.irreps_out, out, strict=True)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


def per_element_matmul(block: Tensor, weight: Tensor, element: Tensor) -> Tensor:
    """``out[a, v, i] = sum_u block[a, u, i] weight[element[a], u, v]``."""
    return torch.einsum("aui,auv->avi", block, weight[element])


class MLP(nn.Module):
    """Fully connected network without biases; SiLU with unit second moment between layers.

    Layer N is ``x W_N / sqrt(n_in)`` with ``layerN.weight`` of shape [n_in, n_out]; the last layer
    is linear. Same parametrisation as e3nn's ``FullyConnectedNet``.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        for index, (n_in, n_out) in enumerate(pairwise(sizes)):
            self.add_module(f"layer{index}", _DenseLayer(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., sizes[0]] to [..., sizes[-1]]."""
        return self.hidden(x) @ self.last_weight()

    def hidden(self, x: Tensor) -> Tensor:
        """Map [..., sizes[0]] to the input [..., sizes[-2]] of the last layer."""
        for layer in list(self.children())[:-1]:
            x = silu(layer(x))
        return x

    def last_weight(self) -> Tensor:
        """[sizes[-2], sizes[-1]] of the last layer, scaled as it is applied."""
        weight = self.get_parameter(f"layer{len(self.sizes) - 2}.weight")
        return weight * (1.0 / sqrt(self.sizes[-2]))


class _DenseLayer(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * (1.0 / sqrt(self.weight.shape[0])))


class DotProducts(nn.Module):
    """Invariant products of two feature sets: irreps x irreps -> n scalars ("uvu" paths).

    ``s_u = (1/sqrt(n n_l)) sum_l (2l+1)^(-1/2) sum_v W^l_uv a^l_u . b^l_v``, n_l the number of
    degrees that both have. Spec: section 3.
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
    """Features weighted by scalars: ``y^l_u = (1/sqrt(n)) sum_v W^l_uv a^l_u s_v``."""

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
