"""A rule of one's own: linear response of each element, gated by the atom's surroundings."""

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from fpmace.blocks.linear import ElementLinear, Linear
from fpmace.blocks.update_rule import NodeContext, UpdateRule
from fpmace.registry import register_update_rule


@register_update_rule("GatedLinearUpdate")
class GatedLinearUpdate(UpdateRule):
    """Linear response of each element, gated by the atom's surroundings."""

    is_affine = True
    is_one_body = True

    def __init__(
        self,
        *,
        strength: float = 0.1,  # an option: it has an annotation, users set it in YAML
        node_irreps: Irreps,  # context: handed in by the model
        field_irreps: Irreps,
        density_irreps: Irreps,
        n_elements: int,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.response = ElementLinear(field_irreps, density_irreps, n_elements)
        self.gate = Linear(node_irreps, Irreps("1x0e"))

    def prepare(self, context: NodeContext) -> tuple[Tensor, Tensor]:
        # Once per structure: what does not depend on the field.
        return self.strength * torch.sigmoid(self.gate(context.node_feats)), context.element

    def forward(self, field_features: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        # At every SCF step: [n_atoms, field_irreps.dim] to [n_atoms, density_irreps.dim].
        gate, element = prepared
        return gate * self.response(field_features, element)
