"""Common part of the models on a MACE backbone, and the options that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Options, plain
from fpmace.blocks.embedding import AtomicEnergies
from fpmace.blocks.graph_embedding import GraphEmbedding
from fpmace.blocks.readout import LinearReadout, NonLinearReadout
from fpmace.data.batch import Batch
from fpmace.errors import ConfigError
from fpmace.models import options as opt
from fpmace.models.backbone import Backbone, BackboneOutput, VectorOrder
from fpmace.models.base import Model
from fpmace.models.geometry import Geometry
from fpmace.registry import build

BACKBONE_OPTIONS = (
    "r_max",
    "num_bessel",
    "num_polynomial_cutoff",
    "max_ell",
    "num_interactions",
    "hidden_irreps",
    "avg_num_neighbors",
    "correlation",
    "radial_MLP",
    "radial_type",
    "interaction_cls_first",
    "interaction_cls",
    "apply_cutoff",
    "edge_irreps",
    "use_edge_irreps_first",
    "distance_transform",
    "use_agnostic_product",
    "use_reduced_cg",
)
"""Options of a model that are passed on to the backbone."""


def check_elements(
    atomic_numbers: Sequence[int],
    atomic_energies: Sequence[float] | Sequence[Sequence[float]],
    heads: Sequence[str],
) -> None:
    """Check that elements ascend, that heads differ and that each of both has one energy.

    Raises:
        ConfigError: if not.
    """
    numbers = list(atomic_numbers)
    if not numbers or numbers != sorted(set(numbers)):
        raise ConfigError(f"atomic_numbers: expected ascending atomic numbers, got {numbers}")
    if len(set(heads)) != len(heads):
        raise ConfigError(f"expected names that differ, got {list(heads)}", where="heads")
    per_head = np.array(atomic_energies, dtype=object)
    wanted = (len(numbers),) if len(heads) == 1 else (len(heads), len(numbers))
    if per_head.shape != wanted:
        lists = "" if len(heads) == 1 else f" in a list for each of the {len(heads)} heads"
        raise ConfigError(
            f"atomic_energies: expected one energy for each of the {len(numbers)} elements"
            f"{lists}, got {plain(atomic_energies)}"
        )


class BackboneModel(Model):
    """Atomic energies and a backbone; what the features are for is left to subclasses.

    A subclass takes ``**backbone`` for the options declared here, which it finds in ``config``.

    Attributes:
        vector_order: order of the components of vectors in its features.
        last_layer_scalars_only: whether the last layer keeps scalars alone.
    """

    vector_order: ClassVar[VectorOrder] = "yzx"
    last_layer_scalars_only: ClassVar[bool] = False

    readouts: nn.ModuleList

    def __init__(
        self,
        *,
        atomic_numbers: opt.AtomicNumbers,
        atomic_energies: opt.AtomicEnergies,
        r_max: opt.CutoffRadius = 5.0,
        num_bessel: opt.RadialCount = 8,
        num_polynomial_cutoff: opt.CutoffPower = 5,
        max_ell: opt.EdgeDegree = 3,
        num_interactions: opt.LayerCount = 2,
        hidden_irreps: opt.HiddenIrreps = "32x0e+32x1o",
        MLP_irreps: opt.ReadoutIrreps = "16x0e",
        avg_num_neighbors: opt.NeighbourCount = 1.0,
        correlation: opt.Correlation = 3,
        gate: opt.Gate = "silu",
        radial_MLP: opt.RadialWidths = (64, 64, 64),
        radial_type: opt.RadialBasis = "bessel",
        interaction_cls_first: opt.FirstInteraction = "RealAgnosticResidualInteractionBlock",
        interaction_cls: opt.Interaction = "RealAgnosticResidualInteractionBlock",
        heads: opt.Heads = ("Default",),
        apply_cutoff: opt.ApplyCutoff = True,
        edge_irreps: opt.EdgeIrreps = None,
        use_edge_irreps_first: opt.EdgeIrrepsFirst = False,
        readout_bias: opt.BiasedReadout = False,
        use_last_readout_only: opt.LastReadoutOnly = False,
        distance_transform: opt.DistanceTransform = None,
        pair_repulsion: opt.PairRepulsion = None,
        use_agnostic_product: opt.AgnosticProduct = False,
        use_reduced_cg: opt.ReducedCoupling = False,
        embedding_specs: opt.EmbeddingSpecs = None,
        use_embedding_readout: opt.EmbeddingReadout = False,
        keep_last_layer_irreps: opt.KeepLastLayer = False,
    ) -> None:
        check_elements(atomic_numbers, atomic_energies, heads)
        super().__init__(r_max=r_max, atomic_numbers=atomic_numbers)
        self.heads = tuple(heads)
        self.atomic_energies_fn = AtomicEnergies(atomic_energies)
        self.backbone = Backbone(
            atomic_numbers=atomic_numbers,
            vector_order=self.vector_order,
            last_layer_scalars_only=self.last_layer_scalars_only and not keep_last_layer_irreps,
            **{name: self.config[name] for name in BACKBONE_OPTIONS},
        )
        self.pair_repulsion_fn: nn.Module | None = None
        if pair_repulsion is not None:
            self.pair_repulsion_fn = build(
                "pair_repulsion",
                pair_repulsion,
                where="pair_repulsion",
                atomic_numbers=atomic_numbers,
                cutoff_power=num_polynomial_cutoff,
            )
        self._embed_inputs(embedding_specs or {}, use_embedding_readout)

    def _embed_inputs(self, specs: Mapping[str, Options], with_energy: bool) -> None:
        """Prepare features, and perhaps energies, of what is given of a structure as a whole."""
        self.joint_embedding: GraphEmbedding | None = None
        self.embedding_readout: LinearReadout | None = None
        if specs:
            scalars = self.backbone.layer_irreps[0][:1]
            self.joint_embedding = GraphEmbedding(specs, scalars.dim)
            self.inputs = self.inputs | frozenset(specs)
            if with_energy:
                self.embedding_readout = LinearReadout(scalars, len(self.heads))

    def geometry(self, batch: Batch, strain: Tensor | None = None) -> Geometry:
        """Geometry of a batch, with the inputs that the features depend on."""
        geometry = super().geometry(batch, strain)
        if self.joint_embedding is None:
            return geometry
        inputs = {name: getattr(batch, name) for name in self.joint_embedding.specs}
        return replace(geometry, inputs=inputs)

    def backbone_features(self, geometry: Geometry, start: Tensor | None = None) -> BackboneOutput:
        """Features of the atoms and edges.

        Args:
            start: [n_atoms, n_channels] scalars to begin with, in place of those of the elements.
        """
        if self.joint_embedding is not None:
            if start is None:
                start = self.backbone.node_embedding(geometry.element)
            start = start + self.joint_embedding(geometry.inputs)[geometry.batch]
        output: BackboneOutput = self.backbone(geometry, start)
        return output

    def pair_energies(self, geometry: Geometry) -> Tensor | None:
        """[n_atoms] eV, half of the repulsion of the pairs of each atom; None without it."""
        if self.pair_repulsion_fn is None:
            return None
        energies: Tensor = self.pair_repulsion_fn(
            geometry.edge_lengths, geometry.element, geometry.edges
        )
        return energies

    def embedding_energies(self, features: BackboneOutput, geometry: Geometry) -> Tensor | None:
        """[n_atoms] eV, read from the embedded inputs and the element; None without it."""
        if self.embedding_readout is None:
            return None
        energies: Tensor = self.embedding_readout(features.first_feats, geometry.head)
        return energies

    def nonlinear_readout(self, n_heads: int = 1) -> NonLinearReadout:
        """A new readout of the last layer with ``MLP_irreps`` and ``gate``."""
        return NonLinearReadout(
            self.backbone.layer_irreps[-1],
            Irreps(self.config["MLP_irreps"]),
            self.config["gate"],
            n_heads=n_heads,
            bias=self.config["readout_bias"],
        )

    def energy_readouts(self, *, nonlinear: bool) -> nn.ModuleList:
        """New energy readouts of the layers, the last one perhaps non-linear."""
        layers, n_heads = self.backbone.layer_irreps, len(self.heads)
        earlier = [] if self.config["use_last_readout_only"] else layers[:-1]
        readouts: list[nn.Module] = [LinearReadout(irreps, n_heads) for irreps in earlier]
        last = self.nonlinear_readout(n_heads) if nonlinear else LinearReadout(layers[-1], n_heads)
        return nn.ModuleList([*readouts, last])

    def local_columns(self, features: BackboneOutput, geometry: Geometry) -> list[Tensor]:
        """[n_atoms] eV each: of the embedded inputs, the repulsion (where there), the readouts."""
        parts = [self.embedding_energies(features, geometry), self.pair_energies(geometry)]
        found = [part for part in parts if part is not None]
        return found + self.readout_energies(features.node_feats_per_layer, geometry)

    def readout_energies(self, layers: list[Tensor], geometry: Geometry) -> list[Tensor]:
        """[n_atoms] eV of each readout, for the heads of the structures."""
        read_layers = layers[-len(self.readouts) :]
        return [
            readout(feats, geometry.head)
            for readout, feats in zip(self.readouts, read_layers, strict=True)
        ]

    @staticmethod
    def check_options(options: Options) -> None:
        """Refuse options that do not fit together, before anything is built.

        Raises:
            ConfigError: naming the option.
        """
        opt.check_backbone(options)
