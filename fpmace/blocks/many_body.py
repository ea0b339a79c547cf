"""Density-dependent blocks that see their neighbours: an update rule and two field readouts.

Spec: sections 5.3 and 5.4. All three share one chain: interaction, mixer, product basis,
invariants with the node features, nonlinearity, weighted features, map per element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.field_readout import DensityEmbedding, FieldReadout
from fpmace.blocks.linear import DotProducts, ElementLinear, ScalarWeighting, uniform_multiplicity
from fpmace.blocks.product import EquivariantProductBasis
from fpmace.blocks.update_rule import NodeContext, UpdateRule
from fpmace.errors import ConfigError
from fpmace.registry import (
    Part,
    PartConfig,
    build,
    register_field_readout,
    register_update_rule,
)

DENSITY_RESIDUAL = "RealAgnosticDensityResidualInteractionBlock"


class ManyBodyChain(nn.Module):
    """From embedded features to a few irreps per atom, through one round of messages."""

    def __init__(
        self,
        *,
        interaction_cls: PartConfig,
        field_mixer_cls: PartConfig,
        nonlinearity_cls: PartConfig,
        correlation: int,
        max_ell: int,
        radial_MLP: Sequence[int],
        use_sc: bool,
        irreps_out: Irreps,
        node_irreps: Irreps,
        edge_irreps: Irreps,
        n_elements: int,
        n_edge_features: int,
        avg_num_neighbors: float,
    ) -> None:
        super().__init__()
        if correlation < 1:
            raise ConfigError(f"correlation: expected at least 1, got {correlation}")
        node_irreps = Irreps(node_irreps)
        n_channels = uniform_multiplicity(node_irreps)
        kept = Irreps([item for item in Irreps(edge_irreps) if item.ir.l <= max_ell])
        target = Irreps([(n_channels, item.ir) for item in kept])
        self.n_edge_attrs = kept.dim
        self.use_sc = use_sc
        self.interaction = build(
            "interaction",
            interaction_cls,
            node_irreps=node_irreps,
            edge_irreps=kept,
            target_irreps=target,
            hidden_irreps=node_irreps,
            n_elements=n_elements,
            n_edge_features=n_edge_features,
            avg_num_neighbors=avg_num_neighbors,
            radial_MLP=list(radial_MLP),
        )
        self.central_atom_mixer = build(
            "field_mixer", field_mixer_cls, mixed_irreps=node_irreps, target_irreps=target
        )
        self.product = EquivariantProductBasis(
            node_irreps=target,
            out_irreps=node_irreps,
            correlation=correlation,
            n_elements=n_elements,
        )
        self.dot_products = DotProducts(node_irreps)
        self.activation = build("nonlinearity", nonlinearity_cls, n_scalars=n_channels)
        self.tp_out = ScalarWeighting(node_irreps)
        self.element_select_out = ElementLinear(node_irreps, irreps_out, n_elements)
        self.is_affine = (
            correlation == 1 and self.central_atom_mixer.is_affine and self.activation.is_affine
        )

    def forward(self, embedded: Tensor, context: NodeContext) -> Tensor:
        """[n_atoms, node_irreps.dim] to [n_atoms, irreps_out.dim]."""
        message, skip = self.interaction(
            embedded,
            context.element,
            context.edge_attrs[:, : self.n_edge_attrs],
            context.edge_feats,
            context.edges,
        )
        message = self.central_atom_mixer(message, embedded)
        features = self.product(message, skip if self.use_sc else None, context.element)
        scalars = self.activation(self.dot_products(context.node_feats, features))
        weighted = self.tp_out(context.node_feats, scalars)
        return self.element_select_out(weighted, context.element)


@dataclass(frozen=True, slots=True)
class _PreparedManyBody:
    context: NodeContext
    bias: Tensor | None


@register_update_rule("ManyBodyUpdate")
class ManyBodyUpdate(UpdateRule):
    """Each atom responds to the field at its own place and at its neighbours'."""

    def __init__(
        self,
        *,
        potential_embedding_cls: Annotated[
            PartConfig, Part("potential_embedding")
        ] = "LinearPotentialEmbedding",
        nonlinearity_cls: Annotated[PartConfig, Part("nonlinearity")] = "NoNonLinearity",
        interaction_cls: Annotated[PartConfig, Part("interaction")] = DENSITY_RESIDUAL,
        field_mixer_cls: Annotated[PartConfig, Part("field_mixer")] = "AdditiveFieldMixer",
        correlation: int = 1,
        max_ell: int = 2,
        use_sc: bool = True,
        radial_sizes: list[int] = [64, 64, 64],  # noqa: B006
        node_irreps: Irreps,
        field_irreps: Irreps,
        density_irreps: Irreps,
        edge_irreps: Irreps,
        n_elements: int,
        n_edge_features: int,
        avg_num_neighbors: float,
    ) -> None:
        super().__init__()
        self.chain = ManyBodyChain(
            interaction_cls=interaction_cls,
            field_mixer_cls=field_mixer_cls,
            nonlinearity_cls=nonlinearity_cls,
            correlation=correlation,
            max_ell=max_ell,
            radial_MLP=radial_sizes,
            use_sc=use_sc,
            irreps_out=density_irreps,
            node_irreps=node_irreps,
            edge_irreps=edge_irreps,
            n_elements=n_elements,
            n_edge_features=n_edge_features,
            avg_num_neighbors=avg_num_neighbors,
        )
        self.potential_embedding = build(
            "potential_embedding",
            potential_embedding_cls,
            field_irreps=field_irreps,
            node_irreps=node_irreps,
            n_elements=n_elements,
        )
        self.is_affine = self.chain.is_affine and self.potential_embedding.is_affine

    def prepare(self, context: NodeContext) -> _PreparedManyBody:
        return _PreparedManyBody(context, self.potential_embedding.bias(context.node_feats))

    def forward(self, field_features: Tensor, prepared: _PreparedManyBody) -> Tensor:
        context = prepared.context
        embedded = self.potential_embedding(field_features, context.element, prepared.bias)
        return self.chain(embedded, context)


@register_field_readout("ManyBodyChargesReadout")
class ManyBodyChargesReadout(FieldReadout):
    """Energy from (density + local density) of an atom and its neighbours."""

    uses_field = False

    def __init__(
        self,
        *,
        nonlinearity_cls: Annotated[PartConfig, Part("nonlinearity")] = "MLPNonLinearity",
        interaction_cls: Annotated[PartConfig, Part("interaction")] = DENSITY_RESIDUAL,
        field_mixer_cls: Annotated[PartConfig, Part("field_mixer")] = "AdditiveFieldMixer",
        correlation: int = 2,
        max_ell: int = 2,
        use_sc: bool = True,
        radial_sizes: list[int] = [64, 64, 64],  # noqa: B006
        node_irreps: Irreps,
        field_irreps: Irreps,
        density_irreps: Irreps,
        edge_irreps: Irreps,
        n_elements: int,
        n_edge_features: int,
        avg_num_neighbors: float,
    ) -> None:
        super().__init__()
        self.charges_embedding = DensityEmbedding(density_irreps, node_irreps, n_elements)
        self.field_embedding = (
            DensityEmbedding(field_irreps, node_irreps, n_elements) if self.uses_field else None
        )
        self.chain = ManyBodyChain(
            interaction_cls=interaction_cls,
            field_mixer_cls=field_mixer_cls,
            nonlinearity_cls=nonlinearity_cls,
            correlation=correlation,
            max_ell=max_ell,
            radial_MLP=radial_sizes,
            use_sc=use_sc,
            irreps_out=Irreps("1x0e"),
            node_irreps=node_irreps,
            edge_irreps=edge_irreps,
            n_elements=n_elements,
            n_edge_features=n_edge_features,
            avg_num_neighbors=avg_num_neighbors,
        )

    def forward(self, field_features: Tensor, density: Tensor, context: NodeContext) -> Tensor:
        embedded = self.charges_embedding(density + context.local_density, context)
        if self.field_embedding is not None:
            embedded = embedded + self.field_embedding(field_features, context)
        return self.chain(embedded, context).squeeze(-1)


@register_field_readout("ManyBodyChargesFieldReadout")
class ManyBodyChargesFieldReadout(ManyBodyChargesReadout):
    """Energy from (density + local density) and field features of an atom and its neighbours."""

    uses_field = True
