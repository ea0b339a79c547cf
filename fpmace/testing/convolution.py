"""What a kernel of the convolution has to fulfil: values and three derivatives of dense sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from fpmace.blocks.convolution import EdgeConvolution
from fpmace.blocks.convolution_terms import Convolution, convolve
from fpmace.blocks.edges import EdgeLayout


def convolution_case(dtype: torch.dtype = torch.float64) -> tuple[Convolution, list[Tensor]]:
    """A small convolution with R, h and Y.

    Its five atoms have 3 to 0 neighbours; bonds with one and with two directions, one of an atom
    with its own image. Harmonics of degree 3 have no path.
    """
    block = EdgeConvolution(
        Irreps("2x0e+2x1o"), Irreps("1x0e+1x1o+1x2e+1x3o"), Irreps("2x0e+2x1o")
    )
    edge_index = torch.tensor([[1, 2, 0, 0, 0, 3], [0, 0, 0, 1, 2, 2]])
    shifts = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    edges = EdgeLayout.build(edge_index, 5, shifts)
    random = torch.Generator().manual_seed(0)
    shapes = ((len(edges.representative), len(block.paths), 2), (5, 4, 2), (edges.n_edges, 16))
    operands = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return block.to(dtype).plan(edges), [x.to(dtype) for x in operands]


def dense_convolution(plan: Convolution, r: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """The messages by plain sums over edges."""
    edges, rows = plan.edges, []
    r, h = r[edges.pair], h[edges.sender]
    for group in plan.groups:
        columns = [
            torch.einsum(
                "epu,emu,eq->eqmpu", r[:, part.weight], h[:, part.node], y[:, group.harmonic]
            ).flatten(2, 3)
            for part in group.segments
        ]
        rows.append(torch.cat(columns, dim=2).flatten(1, 2))
    return plan.coupling @ edges.sum_to_receivers(torch.cat(rows, dim=1))


def check_kernel(name: str, dtype: torch.dtype = torch.float64) -> None:
    """Compare the kernel with dense sums: value, three derivatives, forward mode and ``vmap``.

    Raises:
        AssertionError: where they differ.
    """
    plan, operands = convolution_case(dtype)

    def ours(r: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return convolve(r, h, y, plan, name)

    def dense(r: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return dense_convolution(plan, r, h, y)

    found, expected = ours(*operands), dense(*operands)
    assert_equal(found, expected)
    for fixed in ((), (1,), (0, 2)):
        for a, b in zip(
            *(three_derivatives(f, operands, fixed) for f in (ours, dense)), strict=True
        ):
            assert_equal(a, b)
    along = tuple(x.flip(0) for x in operands)
    several = torch.stack([operands[1], along[1]])
    for transform in (
        lambda f: torch.func.jvp(f, tuple(operands), along)[1],
        lambda f: torch.func.vmap(f, (None, 0, None))(operands[0], several, operands[2]),
        lambda f: torch.func.jvp(torch.func.jacrev(f, 1), tuple(operands), along)[1],
    ):
        assert_equal(transform(ours), transform(dense))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-12 (float64) or 1e-5 (float32) of the largest entry."""
    assert found.dtype == expected.dtype
    scale = float(expected.detach().abs().max().clamp(min=1e-30))
    tolerance = 1e-12 if expected.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance * scale)


def three_derivatives(
    function: Callable[..., Tensor], operands: list[Tensor], fixed: tuple[int, ...]
) -> list[Tensor]:
    """Gradients of a scalar, of a scalar of them, and again; operands ``fixed`` have none."""
    tensors = [x.clone().requires_grad_(n not in fixed) for n, x in enumerate(operands)]
    free = [x for x in tensors if x.requires_grad]
    scalar = function(*tensors).square().sum()
    out: list[Tensor] = []
    for order in range(3):
        gradients = torch.autograd.grad(
            scalar, free, create_graph=order < 2, materialize_grads=True
        )
        out += gradients
        scalar = torch.stack(
            [(g.pow(2) * torch.cos(x)).sum() for g, x in zip(gradients, free, strict=True)]
        ).sum()
    return out
