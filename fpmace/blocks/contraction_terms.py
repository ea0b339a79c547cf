"""The symmetric contraction as a form that is linear in all but one operand, and its derivatives.

With coefficients c of the monomials t of each element, a cotangent g of the outputs, the basis A
and directions v1 .. vk of derivatives,

``P(c, g, A, v1 .. vk) = sum_i sum_M g[i, M] sum_t c[z_i, t] d_v1 .. d_vk A_i^t``

for each channel. The derivative by c, g or a v is P with that operand exchanged; the one by A is P
with one more direction. ``convolution_terms.Derivatives`` makes these to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fpmace.blocks.contraction_plan import ContractionPlan
from fpmace.blocks.convolution_terms import Derivatives, Pool

COEFFICIENTS, OUTPUT, BASIS = range(3)
"""Positions in a term; directions follow, sorted."""


@dataclass(frozen=True, slots=True)
class PolynomialForm:
    """Derivatives of a sum of P.

    Attributes:
        terms: numbers of the tensors of a pool that stand for c, g, A and directions in one P.
        wanted: numbers by which the sum is differentiated.
        degree: highest degree of the polynomials; P with more directions is zero.
    """

    terms: tuple[tuple[int, ...], ...]
    wanted: tuple[int, ...]
    degree: int

    def exchanged(self, partner: Mapping[int, int], wanted: tuple[int, ...]) -> PolynomialForm:
        """The sum over terms and over their tensors with a partner, exchanged for it."""
        terms = []
        for term in self.terms:
            for place, old in enumerate(term):
                if old not in partner:
                    continue
                fixed, directions = list(term[:3]), list(term[3:])
                if place > BASIS:
                    directions[place - 3] = partner[old]
                elif place == BASIS:
                    directions.append(partner[old])
                else:
                    fixed[place] = partner[old]
                if len(directions) <= self.degree:
                    terms.append((*fixed, *sorted(directions)))
        used = {number for term in terms for number in term}
        return PolynomialForm(tuple(terms), tuple(n for n in wanted if n in used), self.degree)


KIND = 3
"""Number in the pool of the table [n_atoms] int64 that says which c an atom has."""

CONTRACTIONS: dict[str, Callable[[ContractionPlan, PolynomialForm, Pool], list[Tensor]]] = {}
"""Implementations by name, besides the built-in ``torch``. Operands are c [n_kinds, n_terms,
n_channels], g [n_atoms, n_outputs, n_channels], A and directions [n_atoms, n_components,
n_channels]; the one number without a tensor is an output."""


def contract(c: Tensor, a: Tensor, kind: Tensor, plan: ContractionPlan, kernel: str) -> Tensor:
    """Outputs [n_atoms, n_outputs, n_channels], differentiable to any order."""
    degree = max(len(term) for _, term in plan.polynomials)
    form = PolynomialForm(((0, 2, 1),), (2,), degree)
    # ``kind`` is an operand so that torch.func hands it through unwrapped
    (b,) = Derivatives.apply(CONTRACTIONS[kernel], plan, form, c, a, None, kind)
    return b
