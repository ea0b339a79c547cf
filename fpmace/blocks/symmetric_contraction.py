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
from fpmace.blocks.contraction_terms import contract
from fpmace.blocks.coupling import symmetric_coupling


class Contraction(nn.Module):
    """Weights of the polynomials of one output degree L, for every correlation order."""

    def __init__(
        self,
        max_ell: int,
        out_l: int,
        correlation: int,
        n_elements: int,
        n_channels: int,
        reduced: bool = False,
    ) -> None:
        super().__init__()
        self.correlation = correlation

        def weight(degree: int) -> nn.Parameter:
            n_paths = symmetric_coupling(max_ell, out_l, degree, reduced).n_paths
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
        counts: number of atoms of each of them.
    """

    order: Tensor
    place: Tensor
    present: Tensor
    counts: list[int]

    @classmethod
    def build(cls, element: Tensor) -> ElementOrder:
        """Sort ``element`` [n_atoms] int64."""
        order = torch.argsort(element, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        present, counts = torch.unique(element, return_counts=True)
        return cls(order, place, present, counts.tolist())


class SymmetricContraction(nn.Module):
    """Polynomials of all output degrees L = 0 .. max_L.

    Args:
        max_ell, max_L: highest degree of the input and of the output.
        correlation: highest number of factors.
        n_elements, n_channels: as named.
        reduced: take a linearly independent set of the polynomials.

    Attributes:
        kernel: ``torch``, or a name in ``contraction_terms.CONTRACTIONS`` (on a CPU).
    """

    kernel: str = "torch"
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
        reduced: bool = False,
    ) -> None:
        super().__init__()
        self.contractions = nn.ModuleList(
            Contraction(max_ell, out_l, correlation, n_elements, n_channels, reduced)
            for out_l in range(max_L + 1)
        )
        plan = self.plan = contraction_plan(max_ell, max_L, correlation)
        for name in ("factors", "source", "multiplier", "row_order"):
            value = torch.from_numpy(getattr(plan, name).copy())
            self.register_buffer(name, value, persistent=False)
        for (out_l, degree), terms in plan.terms.items():
            coupling = symmetric_coupling(max_ell, out_l, degree, reduced)
            n_flat = coupling.values.shape[0] * coupling.values.shape[1]
            flat = coupling.values.reshape(n_flat, coupling.n_paths)[terms]
            name = f"coupling_{out_l}_{degree}"
            self.register_buffer(name, torch.from_numpy(flat.T.copy()), persistent=False)

    def forward(self, basis: Tensor, element: Tensor) -> Tensor:
        """Map A [n_atoms, n_channels, (max_ell+1)^2] to B [n_atoms, n_channels, (max_L+1)^2]."""
        if self.kernel != "torch" and basis.device.type == "cpu":
            present, kind = torch.unique(element, return_inverse=True)
            c = torch.cat(self._coefficients(present), dim=-1).transpose(1, 2)
            b = contract(c, basis.transpose(1, 2), kind, self.plan, self.kernel)
            return b.transpose(1, 2)
        elements = ElementOrder.build(element)
        a = basis.index_select(0, elements.order).permute(1, 2, 0).contiguous()
        entries = self._entries(elements.present)
        with_gradient = a.requires_grad and torch.is_grad_enabled()
        b, _ = _Contract.apply(a, entries, self, elements.counts, with_gradient)
        return b.permute(2, 0, 1).index_select(0, elements.place)

    def _coefficients(self, present: Tensor) -> list[Tensor]:
        """Of the monomials, [n_present, n_channels, n_monomials] for each L and degree."""
        pieces = []
        for out_l, degree in self.plan.terms:
            contraction = self.contractions[out_l]
            assert isinstance(contraction, Contraction)
            weight = contraction.weight(degree).index_select(0, present)
            coupling = getattr(self, f"coupling_{out_l}_{degree}")
            pieces.append(weight.transpose(1, 2) @ coupling)
        return pieces

    def _entries(self, present: Tensor) -> Tensor:
        """Entries of all blocks, [n_present, n_channels, n_entries]."""
        pieces = self._coefficients(present)
        pieces.append(torch.zeros_like(pieces[0][..., :1]))
        return torch.cat(pieces, dim=-1).index_select(-1, self.source) * self.multiplier

    def matrices(self, entries: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Blocks of J and of K, each [n_present, n_channels, n_rows, n_monomials]."""
        shapes = [(block.n_rows, block.n_monomials) for block in self.plan.blocks for _ in (0, 1)]
        parts = entries.split([rows * columns for rows, columns in shapes], dim=-1)
        views = [
            part.view(*part.shape[:2], *shape) for part, shape in zip(parts, shapes, strict=True)
        ]
        return views[::2], views[1::2]

    def monomials(self, a: Tensor) -> Tensor:
        """Products of at most correlation - 1 components: [n_channels, n_monomials, n_atoms]."""
        extended = torch.cat([torch.ones_like(a[:, :1]), a], dim=1)
        product = extended.index_select(1, self.factors[0])
        for factor in self.factors[1:]:
            product = product * extended.index_select(1, factor)
        return product

    def rows(self, monomials: Tensor, matrices: list[Tensor], counts: list[int]) -> Tensor:
        """J or K, [n_channels, n_outputs * n_components, n_atoms sorted by element]."""
        sizes = [block.n_monomials for block in self.plan.blocks]
        per_element = []
        for z, part in enumerate(monomials.split(counts, dim=-1)):
            blocks = zip(matrices, part.split(sizes, dim=1), strict=True)
            per_element.append(torch.cat([matrix[z] @ block for matrix, block in blocks], dim=1))
        return torch.cat(per_element, dim=-1).index_select(1, self.row_order)

    def entry_gradient(
        self, a: Tensor, monomials: Tensor, d_b: Tensor, counts: list[int]
    ) -> Tensor:
        """Gradient of the entries; those of J get none, as B depends on K alone."""
        outer = (d_b.unsqueeze(2) * a.unsqueeze(1)).flatten(1, 2)
        outer = outer.index_select(1, torch.argsort(self.row_order))
        row_sizes = [block.n_rows for block in self.plan.blocks]
        column_sizes = [block.n_monomials for block in self.plan.blocks]
        per_element = []
        for left, right in zip(
            outer.split(counts, dim=-1), monomials.split(counts, dim=-1), strict=True
        ):
            pieces = []
            for x, y in zip(
                left.split(row_sizes, dim=1), right.split(column_sizes, dim=1), strict=True
            ):
                gradient = (x @ y.transpose(1, 2)).flatten(1)
                pieces += [torch.zeros_like(gradient), gradient]
            per_element.append(torch.cat(pieces, dim=-1))
        return torch.stack(per_element)

    def value(self, a: Tensor, rows: Tensor) -> Tensor:
        """``B_M = sum_a A_a K[M, a]``: [n_channels, n_outputs, n_atoms]."""
        n_channels, n_components, n_atoms = a.shape
        return (rows.view(n_channels, -1, n_components, n_atoms) * a.unsqueeze(1)).sum(2)


class _Contract(torch.autograd.Function):
    """B with its gradient J kept, so that the first backward is one multiplication."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        a: Tensor,
        entries: Tensor,
        module: SymmetricContraction,
        counts: list[int],
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        monomials = module.monomials(a)
        for_gradient, for_value = module.matrices(entries)
        gradient = module.rows(monomials, for_gradient, counts) if with_gradient else None
        return module.value(a, module.rows(monomials, for_value, counts)), gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        a, entries, ctx.module, ctx.counts, _ = inputs
        gradient = output[1]
        if gradient is not None:
            ctx.mark_non_differentiable(gradient)
        ctx.save_for_backward(a, entries, gradient)
        ctx.save_for_forward(a, entries)

    @staticmethod
    def backward(ctx: Any, d_b: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        a, entries, gradient = ctx.saved_tensors
        module, counts = ctx.module, ctx.counts
        n_channels, n_components, n_atoms = a.shape
        d_a = d_entries = monomials = None
        again = torch.is_grad_enabled() or gradient is None
        if again or ctx.needs_input_grad[1]:
            monomials = module.monomials(a)
        if ctx.needs_input_grad[0]:
            if again:
                gradient = module.rows(monomials, module.matrices(entries)[0], counts)
            rows = gradient.view(n_channels, -1, n_components, n_atoms)
            d_a = (rows * d_b.unsqueeze(2)).sum(1)
        if ctx.needs_input_grad[1]:
            d_entries = module.entry_gradient(a, monomials, d_b, counts)
        return d_a, d_entries, None, None, None

    @staticmethod
    def jvp(ctx: Any, a_dot: Tensor | None, entries_dot: Tensor | None, *_: Any) -> Any:
        a, entries = ctx.saved_tensors
        module, counts = ctx.module, ctx.counts
        monomials, b_dot = module.monomials(a), None
        if a_dot is not None:
            b_dot = module.value(
                a_dot, module.rows(monomials, module.matrices(entries)[0], counts)
            )
        if entries_dot is not None:
            change = module.value(
                a, module.rows(monomials, module.matrices(entries_dot)[1], counts)
            )
            b_dot = change if b_dot is None else b_dot + change
        return b_dot, None
