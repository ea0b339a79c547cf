"""What a kernel of the symmetric contraction has to fulfil: the built-in one's derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from fpmace.blocks.symmetric_contraction import SymmetricContraction
from fpmace.testing.convolution import assert_equal, three_derivatives


def check_contraction(
    name: str,
    dtype: torch.dtype = torch.float64,
    *,
    max_ell: int = 2,
    max_L: int = 1,
    correlation: int = 3,
    n_channels: int = 4,
) -> None:
    """Compare the kernel with ``torch``: value, three derivatives by basis and weights, jvp.

    Raises:
        AssertionError: where they differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = SymmetricContraction(max_ell, max_L, correlation, 3, n_channels).to(dtype)
        basis = torch.randn(5, n_channels, block.plan.n_components, dtype=dtype)
    element = torch.tensor([2, 0, 2, 2, 0])
    names, weights = zip(*block.named_parameters(), strict=True)

    def run(kernel: str) -> list[Tensor]:
        def value(basis: Tensor, *weights: Tensor) -> Tensor:
            block.kernel = kernel
            values = dict(zip(names, weights, strict=True))
            return torch.func.functional_call(block, values, (basis, element))

        operands = [basis, *(weight.detach() for weight in weights)]
        along = basis.flip(0)

        def by_basis(x: Tensor) -> Tensor:
            return value(x, *operands[1:])

        return [
            by_basis(basis),
            *three_derivatives(value, operands, ()),
            *three_derivatives(value, operands, tuple(range(1, len(operands)))),
            torch.func.jvp(by_basis, (basis,), (along,))[1],
            torch.func.jvp(torch.func.jacrev(by_basis), (basis,), (along,))[1],
        ]

    for found, expected in zip(run(name), run("torch"), strict=True):
        assert_equal(found, expected)
