"""Density-dependent blocks that see their neighbours: an update rule and two field readouts.

All three share one chain: interaction, mixer, product basis, invariants with the node features,
nonlinearity, weighted features, map per element. Equations: docs/update_rules.md.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Bounds, Doc
from fpmace.blocks.field_mixer import NoMixer
from fpmace.blocks.field_readout import DensityEmbedding, FieldReadout
from fpmace.blocks.linear import DotProducts, ElementLinear, ScalarWeighting, uniform_multiplicity
from fpmace.blocks.options import Count, EmbeddingPart, NonlinearityPart, build_block
from fpmace.blocks.product import EquivariantProductBasis
from fpmace.blocks.update_rule import NodeContext, UpdateRule, check_density
from fpmace.errors import ConfigError
from fpmace.registry import Part, PartConfig, register_field_readout, register_update_rule

logger = logging.getLogger(__name__)

DENSITY_RESIDUAL = "RealAgnosticDensityResidualInteractionBlock"
DEFAULT_MAX_ELL = 2

InteractionPart = Annotated[
    PartConfig, Part("interaction"), Doc("how features of the neighbours become a message")
]
MixerPart = Annotated[
    PartConfig, Part("field_mixer"), Doc("how the atom's own embedding joins the message")
]
Correlation = Annotated[Count, Doc("number of factors in the product basis; 1 is linear")]
MaxEll = Annotated[
    int | None, Doc("highest degree of the edge harmonics; 2, or that of the model if lower")
]
Skip = Annotated[bool, Doc("add the skip of the interaction block (residual blocks have one)")]
RadialWidths = Annotated[
    tuple[Count, ...], Bounds(filled=True), Doc("widths of the radial network, at least one")
]


@dataclass(frozen=True, slots=True)
class PreparedChain:
    """What a chain keeps of a geometry while the density changes."""

    context: NodeContext
    edges: object


class ManyBodyChain(nn.Module):
    """From embedded features to a few irreps per atom, through one round of messages."""

    def __init__(
        self,
        *,
        interaction_cls: PartConfig,
        field_mixer_cls: PartConfig,
        nonlinearity_cls: PartConfig,
        correlation: int,
        max_ell: int | None,
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
        node_irreps = Irreps(node_irreps)
        n_channels = uniform_multiplicity(node_irreps)
        kept = _kept_harmonics(max_ell, Irreps(edge_irreps))
        target = Irreps([(n_channels, item.ir) for item in kept])
        self.n_edge_attrs = kept.dim
        self.use_sc = use_sc
        self.interaction = build_block(
            "interaction",
            interaction_cls,
            where="interaction_cls",
            node_irreps=node_irreps,
            edge_irreps=kept,
            target_irreps=target,
            hidden_irreps=node_irreps,
            n_elements=n_elements,
            n_edge_features=n_edge_features,
            avg_num_neighbors=avg_num_neighbors,
            radial_MLP=list(radial_MLP),
        )
        self.central_atom_mixer = build_block(
            "field_mixer",
            field_mixer_cls,
            where="field_mixer_cls",
            mixed_irreps=node_irreps,
            target_irreps=target,
        )
        if not use_sc and isinstance(self.central_atom_mixer, NoMixer):
            logger.warning(
                "NoMixer with use_sc false: an atom without neighbours would not feel any field"
            )
        self.product = EquivariantProductBasis(
            node_irreps=target,
            out_irreps=node_irreps,
            correlation=correlation,
            n_elements=n_elements,
        )
        self.dot_products = DotProducts(node_irreps)
        self.activation = build_block(
            "nonlinearity", nonlinearity_cls, where="nonlinearity_cls", n_scalars=n_channels
        )
        self.tp_out = ScalarWeighting(node_irreps)
        self.element_select_out = ElementLinear(node_irreps, irreps_out, n_elements)
        self.is_affine = (
            correlation == 1
            and self.interaction.is_linear
            and self.central_atom_mixer.is_affine
            and self.activation.is_affine
        )

    def prepare(self, context: NodeContext) -> PreparedChain:
        """Do the work that depends on the geometry alone."""
        edge_attrs = context.edge_attrs[:, : self.n_edge_attrs]
        edges = self.interaction.prepare(edge_attrs, context.edge_feats, context.edges)
        return PreparedChain(context, edges)

    def forward(self, embedded: Tensor, prepared: PreparedChain) -> Tensor:
        """[n_atoms, node_irreps.dim] to [n_atoms, irreps_out.dim]."""
        context = prepared.context
        message, skip = self.interaction.message(embedded, context.element, prepared.edges)
        message = self.central_atom_mixer(message, embedded)
        features = self.product(message, skip if self.use_sc else None, context.element)
        scalars = self.activation(self.dot_products(context.node_feats, features))
        weighted = self.tp_out(context.node_feats, scalars)
        return self.element_select_out(weighted, context.element)


def _kept_harmonics(max_ell: int | None, edge_irreps: Irreps) -> Irreps:
    """The harmonics of an edge that the chain uses, lowest degrees first."""
    available = edge_irreps.lmax
    if max_ell is None:
        max_ell = min(DEFAULT_MAX_ELL, available)
    elif not 0 <= max_ell <= available:
        raise ConfigError(
            f"expected 0 to {available}, the max_ell of the model, got {max_ell}; lower it or "
            "raise that of the model",
            where="max_ell",
        )
    return Irreps([item for item in edge_irreps if item.ir.l <= max_ell])


@dataclass(frozen=True, slots=True)
class _PreparedManyBody:
    chain: PreparedChain
    bias: Tensor | None


@register_update_rule("ManyBodyUpdate")
class ManyBodyUpdate(UpdateRule):
    """Each atom responds to the field at its own place and at its neighbours'.

    Costs a layer of messages at every SCF step. Affine with ``correlation: 1``, an affine
    embedding, ``NoNonLinearity`` and a mixer other than ``UncoupledProductMixer``.
    """

    def __init__(
        self,
        *,
        potential_embedding_cls: EmbeddingPart = "LinearPotentialEmbedding",
        nonlinearity_cls: NonlinearityPart = "NoNonLinearity",
        interaction_cls: InteractionPart = DENSITY_RESIDUAL,
        field_mixer_cls: MixerPart = "AdditiveFieldMixer",
        correlation: Correlation = 1,
        max_ell: MaxEll = None,
        use_sc: Skip = True,
        radial_sizes: RadialWidths = (64, 64, 64),
        node_irreps: Irreps,
        field_irreps: Irreps,
        density_irreps: Irreps,
        edge_irreps: Irreps,
        n_elements: int,
        n_edge_features: int,
        avg_num_neighbors: float,
    ) -> None:
        super().__init__()
        check_density(density_irreps, node_irreps)
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
        self.potential_embedding = build_block(
            "potential_embedding",
            potential_embedding_cls,
            where="potential_embedding_cls",
            field_irreps=field_irreps,
            node_irreps=node_irreps,
            n_elements=n_elements,
        )
        self.is_affine = self.chain.is_affine and self.potential_embedding.is_affine

    def prepare(self, context: NodeContext) -> _PreparedManyBody:
        bias = self.potential_embedding.bias(context.node_feats)
        return _PreparedManyBody(self.chain.prepare(context), bias)

    def forward(self, field_features: Tensor, prepared: _PreparedManyBody) -> Tensor:
        element = prepared.chain.context.element
        embedded = self.potential_embedding(field_features, element, prepared.bias)
        return self.chain(embedded, prepared.chain)


@register_field_readout("ManyBodyChargesReadout")
class ManyBodyChargesReadout(FieldReadout):
    """Energy from (density + local density) of an atom and its neighbours."""

    uses_field = False

    def __init__(
        self,
        *,
        nonlinearity_cls: NonlinearityPart = "MLPNonLinearity",
        interaction_cls: InteractionPart = DENSITY_RESIDUAL,
        field_mixer_cls: MixerPart = "AdditiveFieldMixer",
        correlation: Correlation = 2,
        max_ell: MaxEll = None,
        use_sc: Skip = True,
        radial_sizes: RadialWidths = (64, 64, 64),
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
        return self.chain(embedded, self.chain.prepare(context)).squeeze(-1)


@register_field_readout("ManyBodyChargesFieldReadout")
class ManyBodyChargesFieldReadout(ManyBodyChargesReadout):
    """Energy from (density + local density) and field features of an atom and its neighbours."""

    uses_field = True
