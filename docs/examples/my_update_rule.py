"""An update rule of one's own: every atom conducts and polarises, always in the right direction.

    u_Q = -k_0 sum_w c_w v_00(w),   u_lm = -k_l sum_w c_w v_lm(w)

k_l > 0 depends on the element and on the surroundings of the atom, the weights c_w > 0 of the
widths sum to one. So a positive potential draws electrons, a field induces a dipole that lowers
the energy, and the charge falls when the Fermi level rises, whatever the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.linear import ElementLinear
from fpmace.blocks.update_rule import NodeContext, UpdateRule
from fpmace.errors import ConfigError
from fpmace.registry import register_update_rule


@dataclass(frozen=True)
class Susceptibility:
    """What :meth:`DielectricUpdate.prepare` keeps: [n_atoms, n_degrees], all above zero."""

    per_degree: Tensor


@register_update_rule("DielectricUpdate")
class DielectricUpdate(UpdateRule):
    """Charges and dipoles that answer to potential and field with a positive susceptibility.

    Options:
        strength: susceptibility at the start, in units of the density per normalised feature;
            above 0.
    """

    is_affine = True  # linear in the field features: the SCF is one linear solve
    is_one_body = True  # an atom's answer depends on its own field features only

    def __init__(
        self,
        *,
        strength: float = 0.05,
        node_irreps: Irreps,
        field_irreps: Irreps,
        density_irreps: Irreps,
        n_elements: int,
    ) -> None:
        super().__init__()
        if not strength > 0.0:
            raise ConfigError(f"expected a number above 0, got {strength}", where="strength")
        self.strength = strength
        self.field_irreps = Irreps(field_irreps)
        # Degrees that the field features lack get no answer.
        fields = {ir: index for index, (_, ir) in enumerate(self.field_irreps)}
        self.sources = [fields.get(ir) for _, ir in Irreps(density_irreps)]
        self.dims = [ir.dim for _, ir in Irreps(density_irreps)]
        n_degrees, n_widths = len(self.dims), self.field_irreps[0].mul
        scalars = Irreps([item for item in Irreps(node_irreps) if item.ir.l == 0])
        self.n_scalars = scalars.dim
        self.from_surroundings = ElementLinear(scalars, Irreps(f"{n_degrees}x0e"), n_elements)
        self.width_logits = nn.Parameter(torch.zeros(n_degrees, n_widths, dtype=torch.float64))

    def prepare(self, context: NodeContext) -> Susceptibility:
        """Once per structure: what does not depend on the field."""
        raw = self.from_surroundings(context.node_feats[:, : self.n_scalars], context.element)
        return Susceptibility(self.strength * nn.functional.softplus(raw))

    def forward(self, field_features: Tensor, prepared: Susceptibility) -> Tensor:
        """At every SCF step: [n_atoms, field_irreps.dim] to [n_atoms, density_irreps.dim]."""
        weights = torch.softmax(self.width_logits, dim=-1)
        pieces = []
        for degree, (source, dim) in enumerate(zip(self.sources, self.dims, strict=True)):
            if source is None:
                pieces.append(field_features.new_zeros(len(field_features), dim))
                continue
            block = field_features[:, self.field_irreps.slices()[source]]
            smooth = torch.einsum("w,awm->am", weights[degree], block.unflatten(1, (-1, dim)))
            pieces.append(-prepared.per_degree[:, degree, None] * smooth)
        return torch.cat(pieces, dim=-1)
