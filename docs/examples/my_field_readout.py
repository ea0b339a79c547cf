"""A field readout of one's own: hardness. Charges cost e_i = k_z (q_i - q0_i)^2 with k_z > 0.

q0 is the field-independent charge of the atom, k_z one positive number per element. From YAML::

    plugins: [docs/examples/my_field_readout.py]
    field_readout_config: {type: HardnessReadout, hardness: 2.0}
"""

from __future__ import annotations

from math import expm1, log
from typing import Annotated

import torch
from torch import Tensor, nn

from fpmace.annotations import Bounds, Doc, Unit
from fpmace.blocks.field_readout import FieldReadout
from fpmace.blocks.update_rule import NodeContext
from fpmace.registry import register_field_readout


@register_field_readout("HardnessReadout")
class HardnessReadout(FieldReadout):
    """Energy of a charge that leaves its local value, quadratic, by element."""

    def __init__(
        self,
        *,
        hardness: Annotated[
            float, Bounds(above=0.0), Unit("eV/e^2"), Doc("of every element at the start")
        ] = 1.0,
        n_elements: int,
    ) -> None:
        super().__init__()
        # softplus of this is the hardness, so that it stays positive.
        start = torch.full((n_elements,), log(expm1(hardness)), dtype=torch.float64)
        self.raw = nn.Parameter(start)

    def forward(self, field_features: Tensor, density: Tensor, context: NodeContext) -> Tensor:
        """[n_atoms] eV; density and context.local_density are [n_atoms, n_lm] e Angstrom^l."""
        hardness = nn.functional.softplus(self.raw)[context.element]
        return hardness * (density[:, 0] - context.local_density[:, 0]).square()
