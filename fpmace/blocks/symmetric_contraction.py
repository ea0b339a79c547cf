"""Symmetric contraction: equivariant polynomials of the atomic basis, weights per element.

``B_LM = sum_nu sum_k W^nu[z, k, u] sum_t U^nu_L[M, t, k] prod_{eta in t} A[u, eta]``
(I. Batatia et al., NeurIPS 2022, eqs. 10 and 11), summed over distinct monomials t with
coefficients folded over the paths k. See ``contraction_plan`` for the way it is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpmace.blocks.contraction_plan import contraction_plan
from fpmace.blocks.coupling import symmetric_coupling


class Contraction(nn.Module):
    """Weights of the polynomials of one output degree L, for every correlation order."""

    def __init__(
        self, max_ell: int, out_l: int, correlation: int, n_elements: int, n_channels: int
    ) -> None:
        super().__init__()
        self.correlation = correlation

        def weight(degree: int) -> nn.Parameter:
            n_paths = symmetric_coupling(max_ell, out_l, degree).n_paths
            values = torch.randn(n_elements, n_paths, n_channels, dtype=torch.float64)
            return nn.Parameter(values / max(n_paths, 1))

        self.weights_max = weight(correlation)
        self.weights = nn.ParameterList(weight(d) for d in range(correlation - 1, 0, -1))

    def weight(self, degree: int) -> Tensor:
        """[n_elements, n_paths, n_channels] of the polynomials of ``degree``."""
        if degree == self.correlation:
            return self.weights_max
        return self.weights[self.correlation - 1 - degree]


@dataclass(frozen=True, slots=True)
class ElementOrder:
    """Atoms sorted by element.

    Attributes:
        order: [n_atoms] int64, the sorted atoms.
        place: [n_atoms] int64, its inverse.
        present: [n_present] int64, elements that occur.
        ranges: range of sorted atoms of each of them.
    """

    order: Tensor
    place: Tensor
    present: Tensor
    ranges: tuple[slice, ...]

    @classmethod
    def build(cls, element: Tensor) -> ElementOrder:
        """Sort ``element`` [n_atoms] int64."""
        order = torch.argsort(element, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        present, counts = torch.unique(element, return_counts=True)
        ranges, start = [], 0
        for count in counts.tolist():
            ranges.append(slice(start, start + count))
            start += count
        return cls(order, place, present, tuple(ranges))


class SymmetricContraction(nn.Module):
    """Polynomials of all output degrees L = 0 .. max_L.

    Args:
        max_ell, max_L: highest degree of the input and of the output.
        correlation: highest number of factors.
        n_elements, n_channels: as named.
        fused: use the operation with a saved gradient; differentiable to any order by reverse
            mode, but not open to ``torch.func`` or forward mode.
    """

    factors: Tensor
    source: Tensor
    multiplier: Tensor
    row_order: Tensor

    def __init__(
        self,
        max_ell: int,
        max_L: int,
        correlation: int,
        n_elements: int,
        n_channels: int,
        *,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.contractions = nn.ModuleList(
            Contraction(max_ell, out_l, correlation, n_elements, n_channels)
            for out_l in range(max_L + 1)
        )
        plan = self.plan = contraction_plan(max_ell, max_L, correlation)
        for name in ("factors", "source", "multiplier", "row_order"):
            value = torch.from_numpy(getattr(plan, name).copy())
            self.register_buffer(name, value, persistent=False)
        for (out_l, degree), terms in plan.terms.items():
            coupling = symmetric_coupling(max_ell, out_l, degree)
            n_flat = coupling.values.shape[0] * coupling.values.shape[1]
            flat = coupling.values.reshape(n_flat, coupling.n_paths)[terms]
            name = f"coupling_{out_l}_{degree}"
            self.register_buffer(name, torch.from_numpy(flat.T.copy()), persistent=False)

    def forward(self, basis: Tensor, element: Tensor) -> Tensor:
        """Map A [n_atoms, n_channels, (max_ell+1)^2] to B [n_atoms, n_channels, (max_L+1)^2]."""
        elements = ElementOrder.build(element)
        a = basis.index_select(0, elements.order).permute(1, 2, 0).contiguous()
        matrices = self._matrices(elements.present)
        if self.fused:
            b = _Contract.apply(a, matrices, self, elements.ranges)
        else:
            b = self.value(a, self.gradient_and_value_terms(a, matrices, elements.ranges)[1])
        return b.permute(2, 0, 1).index_select(0, elements.place)

    def _matrices(self, present: Tensor) -> Tensor:
        """Entries of the blocks, [n_present, n_channels, n_entries]."""
        pieces = []
        for out_l, degree in self.plan.terms:
            contraction = self.contractions[out_l]
            assert isinstance(contraction, Contraction)
            weight = contraction.weight(degree).index_select(0, present)
            coupling = getattr(self, f"coupling_{out_l}_{degree}")
            pieces.append(weight.transpose(1, 2) @ coupling)
        pieces.append(torch.zeros_like(pieces[0][..., :1]))
        return torch.cat(pieces, dim=-1).index_select(-1, self.source) * self.multiplier

    def gradient_and_value_terms(
        self, a: Tensor, matrices: Tensor, ranges: tuple[slice, ...]
    ) -> tuple[Tensor, Tensor]:
        """J and K for A [n_channels, n_components, n_atoms sorted by element].

        Returns:
            both [n_channels, n_outputs * n_components, n_atoms].
        """
        n_channels = a.shape[0]
        monomials = self.monomials(a)
        gradient, value = [], []
        for block in self.plan.blocks:
            part = monomials[:, block.monomials]
            matrix = matrices[..., block.coefficients].view(
                len(ranges), n_channels, 2 * block.n_rows, part.shape[1]
            )
            both = torch.cat(
                [torch.bmm(matrix[z], part[..., span]) for z, span in enumerate(ranges)], dim=-1
            )
            gradient.append(both[:, : block.n_rows])
            value.append(both[:, block.n_rows :])
        return (
            torch.cat(gradient, dim=1).index_select(1, self.row_order),
            torch.cat(value, dim=1).index_select(1, self.row_order),
        )

    def monomials(self, a: Tensor) -> Tensor:
        """Products of at most correlation - 1 components: [n_channels, n_monomials, n_atoms]."""
        extended = torch.cat([torch.ones_like(a[:, :1]), a], dim=1)
        product = extended.index_select(1, self.factors[0])
        for factor in self.factors[1:]:
            product = product * extended.index_select(1, factor)
        return product

    def matrix_gradient(self, a: Tensor, d_b: Tensor, ranges: tuple[slice, ...]) -> Tensor:
        """Gradient of the block entries: only those of K matter, as B depends on K alone."""
        n_channels, _, n_atoms = a.shape
        monomials = self.monomials(a)
        inverse = torch.argsort(self.row_order)
        outer = (d_b.unsqueeze(2) * a.unsqueeze(1)).view(n_channels, -1, n_atoms)
        outer = outer.index_select(1, inverse)
        pieces, row = [], 0
        for block in self.plan.blocks:
            left = outer[:, row : row + block.n_rows]
            right = monomials[:, block.monomials].transpose(1, 2)
            row += block.n_rows
            grads = [torch.bmm(left[..., span], right[:, span]) for span in ranges]
            stacked = torch.stack(grads).flatten(2)
            pieces += [torch.zeros_like(stacked), stacked]
        return torch.cat(pieces, dim=-1)

    def value(self, a: Tensor, terms: Tensor) -> Tensor:
        """``B_M = sum_a A_a K[M, a]``: [n_channels, n_outputs, n_atoms]."""
        n_channels, n_components, n_atoms = a.shape
        terms = terms.view(n_channels, -1, n_components, n_atoms)
        return (terms * a.unsqueeze(1)).sum(2)


class _Contract(torch.autograd.Function):
    """B with its gradient J kept, so that the first backward is one multiplication."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        matrices: Tensor,
        module: SymmetricContraction,
        ranges: tuple[slice, ...],
    ) -> Tensor:
        gradient, terms = module.gradient_and_value_terms(a, matrices, ranges)
        ctx.save_for_backward(a, matrices, gradient)
        ctx.module, ctx.ranges = module, ranges
        return module.value(a, terms)

    @staticmethod
    def backward(ctx: Any, d_b: Tensor) -> tuple[Tensor | None, ...]:
        a, matrices, gradient = ctx.saved_tensors
        d_b = d_b.contiguous()
        if torch.is_grad_enabled():
            gradient = ctx.module.gradient_and_value_terms(a, matrices, ctx.ranges)[0]
        n_channels, n_components, n_atoms = a.shape
        rows = gradient.view(n_channels, -1, n_components, n_atoms)
        d_a = (rows * d_b.unsqueeze(2)).sum(1)
        d_matrices = None
        if ctx.needs_input_grad[1]:
            d_matrices = ctx.module.matrix_gradient(a, d_b, ctx.ranges)
        return d_a, d_matrices, None, None
