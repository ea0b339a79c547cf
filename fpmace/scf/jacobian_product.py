"""Products with a Jacobian by differentiating its pullback."""

from __future__ import annotations

import torch
from torch import Tensor


class JacobianProduct:
    """``J t`` for the Jacobian of ``output`` by ``inputs``, without forward-mode support in it.

    The pullback ``J^T c`` is linear in the covector c, so that its derivative by c along a tangent
    is J times the tangent. Make it where autograd records.

    Args:
        output: any shape.
        inputs: what to differentiate by; those that ``output`` does not depend on count as zero.
    """

    def __init__(self, output: Tensor, *inputs: Tensor) -> None:
        self._covector = torch.zeros_like(output, requires_grad=True)
        self._pullback: tuple[Tensor | None, ...] = (None,) * len(inputs)
        if output.requires_grad:
            self._pullback = torch.autograd.grad(
                output, inputs, self._covector, create_graph=True, allow_unused=True
            )

    def __call__(self, *tangents: Tensor, create_graph: bool = False) -> Tensor:
        """The product, in the shape of the output.

        Args:
            tangents: one for each input, of its shape.
            create_graph: keep the product differentiable; else it comes detached.
        """
        pairs = zip(self._pullback, tangents, strict=True)
        used = [(pulled, tangent) for pulled, tangent in pairs if pulled is not None]
        if not used:
            return torch.zeros_like(self._covector, requires_grad=False)
        pulled, along = zip(*used, strict=True)
        (image,) = torch.autograd.grad(
            pulled, self._covector, along, retain_graph=True, create_graph=create_graph
        )
        return image if create_graph else image.detach()
