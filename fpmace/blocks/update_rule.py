"""Update rules: from field features to the field-dependent part of the density.

To add one, derive from :class:`UpdateRule` and decorate it with ``@register_update_rule("Name")``;
docs/extending.md has a complete example. Equations of the built-in rules: docs/update_rules.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.linear import DotProducts, ElementLinear, ScalarWeighting, uniform_multiplicity
from fpmace.blocks.options import EmbeddingPart, NonlinearityPart, build_block, check_degrees
from fpmace.registry import register_update_rule, set_base


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What a density-dependent block knows of the geometry; fixed during the SCF.

    Attributes:
        node_feats: [n_atoms, node_irreps.dim] (mixed over layers for update rules, of the last
            layer for field readouts).
        element: [n_atoms] int64, index of the element.
        edges: senders and receivers, prepared for sums over neighbours.
        edge_attrs: [n_edges, (max_ell + 1)^2] spherical harmonics of the edge direction.
        edge_feats: [n_edges, n_edge_features] radial basis.
        local_density: [n_atoms, density_irreps.dim] e Angstrom^l, the field-independent part.
        batch: [n_atoms] int64, graph of each atom.
    """

    node_feats: Tensor
    element: Tensor
    edges: EdgeLayout
    edge_attrs: Tensor
    edge_feats: Tensor
    local_density: Tensor
    batch: Tensor


class UpdateRule(nn.Module, ABC):
    """The field-dependent part u(v) of the map G(density) = local density + u(v(density)).

    Work that depends on the geometry alone belongs in :meth:`prepare`, which runs once per
    structure; :meth:`forward` runs at every SCF step and must be differentiable three times (for
    a loss on forces, whose SCF needs the response). The constructor may ask for these context
    arguments:

    - node_irreps: features of an atom, ``n x (0e+1o+...)``;
    - field_irreps: field features, ``n_widths x (0e+1o+...)``;
    - density_irreps: multipoles, ``1x0e+1x1o+...``;
    - edge_irreps: spherical harmonics of an edge, ``1x0e+1x1o+...``;
    - n_elements, n_edge_features, avg_num_neighbors: numbers;
    - radial_MLP: widths of the model's radial networks;
    - readout_irreps: ``MLP_irreps`` of the model.
    """

    is_affine: bool = False
    """Whether u is affine in the field features: then the SCF is one linear solve."""

    is_one_body: bool = False
    """Whether u of an atom depends on the field features of that atom only."""

    is_passive: bool = False
    """Whether u = -dPhi/dv with Phi convex in the potentials v conjugate to the multipoles, its
    second derivatives the blocks of :meth:`response_matrices`: the SCF is then the minimum of a
    convex energy."""

    needs_conjugate_features: bool = False
    """Whether the field features must be the potentials conjugate to the multipoles."""

    def prepare(self, context: NodeContext) -> Any:
        """Return whatever :meth:`forward` needs; by default the context itself."""
        return context

    def response_matrices(self, prepared: Any, field_features: Tensor | None = None) -> Tensor:
        """S of each atom, [n_atoms, density_irreps.dim, same]; for passive rules.

        Args:
            field_features: where, for rules that are not affine.
        """
        raise NotImplementedError(f"{type(self).__name__} is not passive")

    def energy_beyond_quadratic(self, field_features: Tensor, prepared: Any) -> Tensor | None:
        """v.dPhi/dv / 2 - Phi of each atom, [n_atoms] eV; None where it is zero, as it is for
        affine passive rules."""
        return None

    @abstractmethod
    def forward(self, field_features: Tensor, prepared: Any) -> Tensor:
        """Evaluate u.

        Args:
            field_features: [n_atoms, field_irreps.dim], normalised; layout as in
                ``electrostatics``: l-major, then width, then m.
            prepared: what :meth:`prepare` returned.

        Returns:
            [n_atoms, density_irreps.dim] e Angstrom^l, equivariant.
        """


set_base("update_rule", UpdateRule)


def check_density(density_irreps: Irreps, node_irreps: Irreps) -> None:
    """Refuse multipoles that a rule built from the node features could not give."""
    check_degrees(density_irreps, node_irreps, what="multipoles", option="atomic_multipoles_max_l")


@dataclass(frozen=True, slots=True)
class _PreparedOneBody:
    node_feats: Tensor
    element: Tensor
    bias: Tensor | None


@register_update_rule("OneBodyVariableUpdate")
class OneBodyVariableUpdate(UpdateRule):
    """Each atom responds to the field at its own place, with weights set by its surroundings.

    Affine with an affine embedding and ``NoNonLinearity``: then the SCF is one linear solve.
    """

    is_one_body = True

    def __init__(
        self,
        *,
        potential_embedding_cls: EmbeddingPart = "BiasedLinearPotentialEmbedding",
        nonlinearity_cls: NonlinearityPart = "NoNonLinearity",
        node_irreps: Irreps,
        field_irreps: Irreps,
        density_irreps: Irreps,
        n_elements: int,
    ) -> None:
        super().__init__()
        check_density(density_irreps, node_irreps)
        self.potential_embedding = build_block(
            "potential_embedding",
            potential_embedding_cls,
            where="potential_embedding_cls",
            field_irreps=field_irreps,
            node_irreps=node_irreps,
            n_elements=n_elements,
        )
        self.dot_products = DotProducts(node_irreps)
        self.nonlinearity = build_block(
            "nonlinearity",
            nonlinearity_cls,
            where="nonlinearity_cls",
            n_scalars=uniform_multiplicity(node_irreps),
        )
        self.tp_out = ScalarWeighting(node_irreps)
        self.element_select_out = ElementLinear(node_irreps, density_irreps, n_elements)
        self.is_affine = self.potential_embedding.is_affine and self.nonlinearity.is_affine

    def prepare(self, context: NodeContext) -> _PreparedOneBody:
        return _PreparedOneBody(
            node_feats=context.node_feats,
            element=context.element,
            bias=self.potential_embedding.bias(context.node_feats),
        )

    def forward(self, field_features: Tensor, prepared: _PreparedOneBody) -> Tensor:
        embedded = self.potential_embedding(field_features, prepared.element, prepared.bias)
        scalars = self.nonlinearity(self.dot_products(prepared.node_feats, embedded))
        weighted = self.tp_out(prepared.node_feats, scalars)
        return self.element_select_out(weighted, prepared.element)
