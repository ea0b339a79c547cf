"""The energy that belongs to a passive update rule: stationary in the density."""

from __future__ import annotations

from torch import Tensor

from fpmace.blocks.field_readout import FieldReadout
from fpmace.blocks.update_rule import NodeContext
from fpmace.registry import register_field_readout


@register_field_readout("VariationalFieldReadout")
class VariationalFieldReadout(FieldReadout):
    """Cost 1/2 (rho - rho0) S^-1 (rho - rho0) of moving the density, less mu0 times the charge.

    With rho = rho0 - S w, as the passive rule has it, that cost is -1/2 (rho - rho0).w, and no
    inverse is formed. Together with the electrostatic energy and the field it is the functional
    whose minimum at the total charge is the density of ``OneBodyPassiveUpdate``. The term
    -mu0 Q, mu0 the model's ``fermi_level_offset``, belongs to it because levels enter the
    features as mu - mu0: with it the Fermi level is -dE/dQ, and the energy of an added electron
    can be learned.
    """

    is_variational = True
    needs_conjugate_features = True

    def __init__(self, *, fermi_level_offset: float) -> None:
        super().__init__()
        self.fermi_level_offset = float(fermi_level_offset)

    def forward(self, field_features: Tensor, density: Tensor, context: NodeContext) -> Tensor:
        moved = density - context.local_density
        cost = -0.5 * (moved * field_features).sum(-1)
        return cost - self.fermi_level_offset * density[:, 0]
