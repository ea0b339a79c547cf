"""The MACE backbone: node features of several interaction layers.

I. Batatia, D. P. Kovacs, G. N. C. Simm, C. Ortner, G. Csanyi, "MACE", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

import fpmace.blocks.nonlinear_interaction  # noqa: F401  registers the built-in blocks
from fpmace.blocks.embedding import NodeEmbedding
from fpmace.blocks.harmonics import SphericalHarmonics
from fpmace.blocks.interaction import Interaction
from fpmace.blocks.linear import uniform_multiplicity
from fpmace.blocks.product import EquivariantProductBasis
from fpmace.blocks.radial_embedding import RadialEmbedding
from fpmace.blocks.radial_table import RadialTables
from fpmace.errors import ConfigError
from fpmace.models.edge_features import BlockedEdges, EdgeFeatures
from fpmace.models.geometry import Geometry
from fpmace.registry import PartConfig, build

VectorOrder = Literal["xyz", "yzx"]


@dataclass(frozen=True, slots=True)
class BackboneOutput:
    """Features of the atoms and edges.

    Attributes:
        first_feats: [n_atoms, n_channels] scalars that the first layer begins with.
        node_feats_per_layer: one [n_atoms, layer_irreps[t].dim] per layer.
        features: of the edges.
    """

    first_feats: Tensor
    node_feats_per_layer: list[Tensor]
    features: EdgeFeatures

    @property
    def edge_attrs(self) -> Tensor:
        """[n_edges, (max_ell+1)^2] spherical harmonics."""
        return self.features.harmonics

    @property
    def edge_feats(self) -> Tensor:
        """[n_edges, num_bessel] radial basis times cutoff, also where layers see them apart."""
        feats, cutoff = self.features.radial
        return feats if cutoff is None else feats * cutoff.unsqueeze(-1)


class Backbone(nn.Module):
    """Node embedding, then ``num_interactions`` times interaction and product basis.

    Args:
        r_max: cutoff radius in Angstrom.
        num_bessel, num_polynomial_cutoff, radial_type: radial basis and cutoff order.
        max_ell: highest degree of the edge harmonics and of the atomic basis.
        num_interactions: number of layers.
        hidden_irreps: features of a layer, such as "32x0e+32x1o".
        atomic_numbers: the elements.
        avg_num_neighbors: normalises sums over neighbours.
        correlation: number of factors in the product basis; one number or one per layer.
        radial_MLP: widths of the hidden layers of the radial networks.
        interaction_cls_first, interaction_cls: interaction blocks of the first and later layers.
        apply_cutoff: cut the radial basis; else what an edge contributes to a sum is cut.
        edge_irreps: features that are summed over the neighbours; None: those of the atoms.
        use_edge_irreps_first: take its number of scalars in the first layer too.
        distance_transform: what is done to a distance before the radial basis sees it.
        use_agnostic_product: product basis with the same weights for all elements.
        use_reduced_cg: product basis of linearly independent polynomials.
        vector_order: order of the components that the harmonics see; "xyz" for plain MACE
            models, "yzx" for the fixed-point model (see docs/backbone.md).
        last_layer_scalars_only: drop l > 0 from the last of several layers.

    Attributes:
        edges_at_once: with more edges, layers are evaluated in blocks of about as many, and
            again for derivatives: memory grows with the atoms only; None: never.
    """

    edges_at_once: int | None = None

    def __init__(
        self,
        *,
        r_max: float,
        num_bessel: int,
        num_polynomial_cutoff: int,
        max_ell: int,
        num_interactions: int,
        hidden_irreps: str,
        atomic_numbers: Sequence[int],
        avg_num_neighbors: float,
        correlation: int | Sequence[int] = 3,
        radial_MLP: Sequence[int] = (64, 64, 64),
        radial_type: PartConfig = "bessel",
        interaction_cls_first: PartConfig = "RealAgnosticResidualInteractionBlock",
        interaction_cls: PartConfig = "RealAgnosticResidualInteractionBlock",
        apply_cutoff: bool = True,
        edge_irreps: str | None = None,
        use_edge_irreps_first: bool = False,
        distance_transform: PartConfig | None = None,
        use_agnostic_product: bool = False,
        use_reduced_cg: bool = False,
        vector_order: VectorOrder = "xyz",
        last_layer_scalars_only: bool = True,
    ) -> None:
        super().__init__()
        irreps = uniform_irreps("hidden_irreps", hidden_irreps)
        n_channels, n_elements = irreps[0].mul, len(atomic_numbers)
        orders = correlation
        if isinstance(orders, int):
            orders = (orders,) * num_interactions
        self.vector_order = vector_order
        self.n_elements = n_elements
        self.layer_irreps = [irreps] * num_interactions
        if last_layer_scalars_only and num_interactions > 1:
            self.layer_irreps[-1] = Irreps(f"{n_channels}x0e")
        harmonics = Irreps([(1, (l, (-1) ** l)) for l in range(max_ell + 1)])  # noqa: E741
        target = Irreps([(n_channels, ir) for _, ir in harmonics])
        self.edge_irreps = harmonics
        convolved = None if edge_irreps is None else uniform_irreps("edge_irreps", edge_irreps)
        self.node_embedding = NodeEmbedding(n_elements, n_channels)
        transform = distance_transform and build(
            "distance_transform",
            distance_transform,
            where="distance_transform",
            atomic_numbers=atomic_numbers,
        )
        self.radial_embedding = RadialEmbedding(
            build(
                "radial_basis", radial_type, where="radial_type", r_max=r_max, n_basis=num_bessel
            ),
            transform or None,
            r_max=r_max,
            num_polynomial_cutoff=num_polynomial_cutoff,
            apply_cutoff=apply_cutoff,
        )
        self.spherical_harmonics = SphericalHarmonics(max_ell)
        self.interactions = nn.ModuleList()
        self.products = nn.ModuleList()
        node_irreps = Irreps(f"{n_channels}x0e")
        for index, out_irreps in enumerate(self.layer_irreps):
            first = index == 0
            summed = node_irreps if convolved is None else convolved
            if first and convolved is not None:
                summed = convolved[:1] if use_edge_irreps_first else node_irreps
            self.interactions.append(
                build(
                    "interaction",
                    interaction_cls_first if first else interaction_cls,
                    where="interaction_cls_first" if first else "interaction_cls",
                    node_irreps=node_irreps,
                    edge_irreps=harmonics,
                    target_irreps=target,
                    hidden_irreps=out_irreps,
                    convolution_irreps=summed,
                    n_elements=n_elements,
                    n_edge_features=num_bessel,
                    avg_num_neighbors=avg_num_neighbors,
                    radial_MLP=list(radial_MLP),
                )
            )
            self.products.append(
                EquivariantProductBasis(
                    node_irreps=target,
                    out_irreps=out_irreps,
                    correlation=orders[index],
                    n_elements=1 if use_agnostic_product else n_elements,
                    reduced=use_reduced_cg,
                )
            )
            node_irreps = out_irreps

    def forward(self, geometry: Geometry, node_feats: Tensor | None = None) -> BackboneOutput:
        """Compute the features of every layer.

        Args:
            node_feats: [n_atoms, n_channels] scalars to begin with; those of the elements if None.
        """
        features = EdgeFeatures(
            self, geometry.edge_vectors, geometry.edge_lengths, geometry.element, geometry.edges
        )
        source: EdgeFeatures | BlockedEdges = features
        if self.edges_at_once is not None and geometry.edges.n_edges > self.edges_at_once:
            source = BlockedEdges(self, geometry, self.edges_at_once)
        if node_feats is None:
            node_feats = self.node_embedding(geometry.element)
        first_feats = node_feats
        layers = []
        for interaction, product in zip(self.interactions, self.products, strict=True):
            assert isinstance(interaction, Interaction)
            assert isinstance(product, EquivariantProductBasis)
            node_feats = source.layer(interaction, product, node_feats)
            layers.append(node_feats)
        return BackboneOutput(first_feats, layers, features)

    def tabulate(self) -> str:
        """Put tables in place of the radial networks; return a text with their error.

        Raises:
            ConfigError: a block without functions to tabulate, or tables that are too large.
        """
        like = next(self.parameters())
        tolerance = 1e-9 if like.dtype == torch.float64 else 1e-6
        embedding = deepcopy(self.radial_embedding).cpu().double()
        errors = []
        for interaction in self.interactions:
            assert isinstance(interaction, Interaction)
            if interaction.sees_elements is None:
                raise ConfigError(
                    f"{type(interaction).__name__} has no functions to tabulate; leave tables out",
                    where="radial_tables",
                )
            block = deepcopy(interaction).cpu().double().requires_grad_(False)

            def functions(
                r: Tensor, source: Tensor, target: Tensor, block: Interaction = block
            ) -> list[Tensor]:
                feats, cutoff = embedding(r, source, target)
                return block.functions(feats, cutoff, source, target)

            by_element = interaction.sees_elements or embedding.distance_transform is not None
            tables = RadialTables(
                functions,
                r_max=embedding.r_max,
                n_elements=self.n_elements if by_element else 1,
                tolerance=tolerance,
            )
            errors.append(tables.error)
            interaction.tables = tables.to(like)
        return (
            f"radial tables: largest error {max(errors):.1e} of the largest value "
            f"(aim {tolerance:.0e})"
        )


def uniform_irreps(option: str, text: str) -> Irreps:
    """Parse an option such as ``hidden_irreps``.

    Raises:
        ConfigError: unless it is one multiplicity for l = 0, 1, ... with parity (-1)^l.
    """
    try:
        irreps = Irreps(text)
        uniform_multiplicity(irreps)
    except (ValueError, ConfigError):
        raise ConfigError(
            f"{option}: expected one multiplicity for l = 0, 1, ... with parity (-1)^l, such "
            f"as '32x0e+32x1o', got {text!r}"
        ) from None
    return irreps
