"""The non-linear interaction block of foundation models.

I. Batatia et al., "Cross learning between electronic structure theories for unifying molecular,
surface, and inorganic crystal foundation force fields" (MACE-MH), 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.convolution import EdgeConvolution
from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.embedding import ElementTable
from fpmace.blocks.gate import GatedActivation
from fpmace.blocks.interaction import Interaction, PreparedGeometry
from fpmace.blocks.linear import Linear
from fpmace.blocks.radial_mlp import RadialMLP
from fpmace.registry import register_interaction

DENSITY_WIDTH = 64
"""Hidden width of the network that gives the density of neighbours."""

START_ALPHA, START_BETA = 20.0, 0.0
"""First values of the normaliser ``alpha + beta * density``."""


@register_interaction("RealAgnosticResidualNonLinearInteractionBlock")
class RealAgnosticResidualNonLinearInteractionBlock(Interaction):
    """Neighbours weighted by distance and elements, a residual and a gate; linear skip.

    With ``x = Lin_up(h)`` of the irreps ``edge_irreps`` and the elements z of the two ends::

        w_ij  = RadialMLP(e_ij, s(z_j), t(z_i)) f_ij
        rho_i = sum_j tanh(RadialMLP'(e_ij, s(z_j), t(z_i))^2) f_ij
        m_i   = Lin_2(gate(Lin_1(sum_j w_ij (x_j x Y_ij)) / (alpha + beta rho_i) + Lin_res(x_i)))

    e are the radial functions, f the cutoff where ``apply_cutoff`` is false, else 1: then w and
    rho do not vanish at r_max, and the energy jumps when a neighbour crosses it.
    """

    is_linear = False
    sees_elements = True

    def __init__(
        self,
        *,
        node_irreps: Irreps,
        edge_irreps: Irreps,
        target_irreps: Irreps,
        hidden_irreps: Irreps,
        n_elements: int,
        n_edge_features: int,
        radial_MLP: Sequence[int],
        convolution_irreps: Irreps | None = None,
    ) -> None:
        super().__init__()
        gate = GatedActivation(target_irreps)
        n_scalars = node_irreps[0].mul
        n_inputs = n_edge_features + 2 * n_scalars
        convolved = node_irreps if convolution_irreps is None else convolution_irreps
        self.n_elements = n_elements
        self.source_embedding = ElementTable(n_elements, n_scalars)
        self.target_embedding = ElementTable(n_elements, n_scalars)
        self.linear_up = Linear(node_irreps, convolved)
        self.conv_tp = EdgeConvolution(convolved, edge_irreps, target_irreps)
        self.conv_tp_weights = RadialMLP([n_inputs, *radial_MLP, self.conv_tp.n_weights])
        self.density_fn = RadialMLP([n_inputs, DENSITY_WIDTH, 1])
        self.linear_res = Linear(convolved, gate.irreps_in)
        self.linear_1 = Linear(self.conv_tp.irreps_out, gate.irreps_in)
        self.linear_2 = Linear(gate.irreps_out, target_irreps)
        self.skip_tp = Linear(node_irreps, hidden_irreps)
        self.equivariant_nonlin = gate
        self.alpha = nn.Parameter(torch.tensor(START_ALPHA, dtype=torch.float64))
        self.beta = nn.Parameter(torch.tensor(START_BETA, dtype=torch.float64))

    def message(
        self, node_feats: Tensor, element: Tensor, prepared: PreparedGeometry | _PreparedFunctions
    ) -> tuple[Tensor, Tensor]:
        edges = prepared.edges.directed()
        if isinstance(prepared, PreparedGeometry):
            ends = element[edges.sender], element[edges.receiver]
            radial, near = self.functions(prepared.edge_feats, prepared.cutoff, *ends)
        else:
            radial, near = prepared.functions
        density = edges.sum_to_receivers(near)
        radial = radial.view(-1, len(self.conv_tp.paths), self.conv_tp.n_channels)
        up = self.linear_up(node_feats)
        message = self.conv_tp(up, prepared.edge_attrs, radial, edges, self.linear_1)
        message = message / (self.alpha + self.beta * density) + self.linear_res(up)
        return self.linear_2(self.equivariant_nonlin(message)), self.skip_tp(node_feats)

    def bonds(self, edges: EdgeLayout) -> Tensor:
        """All edges: the two directions of a bond differ."""
        return edges.directed().representative

    def functions(
        self, edge_feats: Tensor, cutoff: Tensor | None, *elements: Tensor
    ) -> list[Tensor]:
        """Weights of the convolution and the density of a neighbour [n, 1]."""
        source, target = elements
        ends = source * self.n_elements + target
        tables = self.source_embedding.table(), self.target_embedding.table()
        phi = self.conv_tp_weights.hidden(edge_feats, tables, ends)
        near = self.density_fn.last()(self.density_fn.hidden(edge_feats, tables, ends))
        rho = torch.tanh(near**2)
        cut = phi.new_ones(phi.shape[0], 1) if cutoff is None else cutoff.unsqueeze(-1)
        if cutoff is not None:
            phi, rho = phi * cut, rho * cut
        last = self.conv_tp_weights.last()
        # The bias is the weight of one more hidden feature, so that the cutoff multiplies it too.
        weight = torch.cat([last.weight.T, last.bias.unsqueeze(0)])
        radial = self.conv_tp.radial_weights(torch.cat([phi, cut], dim=1), weight)
        return [radial.flatten(1), rho]

    def prepare_functions(
        self, functions: list[Tensor], edge_attrs: Tensor, edges: EdgeLayout
    ) -> _PreparedFunctions:
        return _PreparedFunctions(functions, edge_attrs, edges)


@dataclass(frozen=True, slots=True)
class _PreparedFunctions:
    """Radial functions of all edges, harmonics and connectivity."""

    functions: list[Tensor]
    edge_attrs: Tensor
    edges: EdgeLayout
