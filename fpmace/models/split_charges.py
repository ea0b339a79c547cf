"""Formal charges and charge moved along bonds: conserved exactly, with a dipole of its own."""

from __future__ import annotations

from math import sqrt
from typing import Annotated, Any

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Doc
from fpmace.blocks.bond_transfer import EdgeContext, received
from fpmace.blocks.coupling import wigner_3j
from fpmace.blocks.formal_charges import FormalCharges, formal_charge_table
from fpmace.blocks.linear import Linear, uniform_multiplicity
from fpmace.blocks.options import build_block
from fpmace.data.batch import Batch
from fpmace.electrostatics import options as field
from fpmace.models.backbone import BackboneOutput
from fpmace.models.geometry import Geometry
from fpmace.models.local_charges import ChargesFromData, FormalChargeTable
from fpmace.models.local_density import CHARGE_OUTPUTS, LocalDensityModel, LocalMultipoles
from fpmace.registry import Part, PartConfig, register_model


class _LayerSource(nn.Module):
    """Transfer of one layer and its multipoles above the charge."""

    def __init__(self, transfer: nn.Module, node_irreps: Irreps, density_irreps: Irreps) -> None:
        super().__init__()
        self.transfer = transfer
        self.higher = Irreps(density_irreps)[1:]
        self.multipole_block = Linear(node_irreps, self.higher) if self.higher.dim else None

    def forward(self, node_feats: Tensor, context: EdgeContext) -> tuple[Tensor, Tensor]:
        """Charge moved along each edge [n_edges] and multipoles of l > 0."""
        moved, feats = self.transfer(node_feats, context)
        if self.multipole_block is None:
            return moved, node_feats.new_zeros(node_feats.shape[0], 0)
        return moved, self.multipole_block(feats)


class _Square(nn.Module):
    """Products of every channel with itself, ``(a_u a_u)`` coupled to l = 0 and l = 2."""

    def __init__(self, node_irreps: Irreps) -> None:
        super().__init__()
        self.irreps_in = Irreps(node_irreps)
        n = uniform_multiplicity(self.irreps_in)
        self.n_channels, degrees = n, range(len(self.irreps_in))
        self.irreps_out = Irreps([(n, "0e") for _ in degrees] + [(n, "2e") for _ in degrees[1:]])
        for degree in degrees[1:]:
            coupling = torch.tensor(wigner_3j(degree, degree, 2)) * sqrt(5.0)
            self.register_buffer(f"coupling_{degree}", coupling, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n_atoms, irreps_in.dim] to [n_atoms, irreps_out.dim]."""
        blocks = [
            x[:, part].reshape(len(x), self.n_channels, -1) for part in self.irreps_in.slices()
        ]
        scalars = [block.square().sum(-1) / sqrt(block.shape[-1]) for block in blocks]
        tensors = [
            torch.einsum("aui,auj,ijk->auk", b, b, self.get_buffer(f"coupling_{degree}")).flatten(
                1
            )
            for degree, b in enumerate(blocks[1:], start=1)
        ]
        return torch.cat(scalars + tensors, dim=-1)


class PolarizabilityReadout(nn.Module):
    """Symmetric tensor of an atom from one layer: ``Lin2(a o a) + Lin3(h)``, ``a = Lin1(h)``."""

    def __init__(self, node_irreps: Irreps) -> None:
        super().__init__()
        self.linear1 = Linear(node_irreps, node_irreps)
        self.square = _Square(node_irreps)
        out = Irreps("1x0e+1x2e")
        self.linear2 = Linear(self.square.irreps_out, out)
        self.bypass_linear = Linear(node_irreps, out)
        # Features hold vectors as (y, z, x); the tensor is given in x, y, z.
        basis = [torch.tensor(wigner_3j(1, 1, degree)).movedim(-1, 0) for degree in (0, 2)]
        self.register_buffer("basis", torch.cat(basis).roll((1, 1), (1, 2)), persistent=False)

    def forward(self, node_feats: Tensor) -> Tensor:
        """[n_atoms, node_irreps.dim] to [n_atoms, 3, 3] e Angstrom^2/V."""
        squared = self.linear1(node_feats)
        tensor = self.linear2(self.square(squared)) + self.bypass_linear(node_feats)
        return torch.einsum("ak,kij->aij", tensor, self.get_buffer("basis"))


@register_model("LocalSplitCharges")
class LocalSplitCharges(LocalDensityModel):
    """Formal charges plus antisymmetric transfer between neighbours, in every layer.

    ``q_i = q0_i + sum_t (sum over edges into i - sum over edges out of i) p_e^t``: the total
    charge is that of the formal charges, exactly. The dipole ``D = sum q0 r + sum d + sum_e p_e
    r_e`` has no branch in its transfer part: an atom moved by a lattice vector changes it by its
    formal charge times that vector. ``compute_polarizability`` adds a fitted tensor, which has
    nothing to do with dD/dF: the charges do not see the field.
    """

    density_meaning = "formal charges and charge moved along bonds"

    def __init__(
        self,
        *,
        atomic_multipoles_max_l: field.DensityDegree = 1,
        atomic_formal_charges: FormalChargeTable = None,
        formal_charges_from_data: ChargesFromData = False,
        static_bond_transfer_block: Annotated[
            PartConfig, Part("bond_transfer"), Doc("charge moved along the edges of a layer")
        ] = "OxidationDependentSymmetricPredictionSourceBlock",
        oxidation_state_mixer: Annotated[
            PartConfig,
            Part("oxidation_state_mixer"),
            Doc("how the first features learn of the formal charge"),
        ] = "NoOxidationStateMixer",
        oxidation_state_range: Annotated[
            tuple[float, float], Doc("lowest and highest formal charge that the mixer sees, e")
        ] = (-6.0, 6.0),
        compute_polarizability: Annotated[bool, Doc("fit a polarizability to its labels")] = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        table = formal_charge_table(atomic_formal_charges, formal_charges_from_data)
        self.formal_charges = FormalCharges(table, self.config["atomic_numbers"])
        if formal_charges_from_data:
            self.inputs = self.inputs | {"formal_charges"}
        self.oxidation_state_mixer = build_block(
            "oxidation_state_mixer",
            oxidation_state_mixer,
            where="oxidation_state_mixer",
            n_channels=uniform_multiplicity(self.node_irreps),
            oxidation_state_range=oxidation_state_range,
        )
        self.lr_source_maps = nn.ModuleList(
            _LayerSource(
                build_block(
                    "bond_transfer",
                    static_bond_transfer_block,
                    where="static_bond_transfer_block",
                    node_irreps=irreps,
                    edge_irreps=self.backbone.edge_irreps,
                    n_edge_features=self.config["num_bessel"],
                ),
                irreps,
                self.electrostatics.density_irreps,
            )
            for irreps in self.backbone.layer_irreps
        )
        layers = self.backbone.layer_irreps if compute_polarizability else []
        self.polarizability_readouts = nn.ModuleList(PolarizabilityReadout(i) for i in layers)
        if compute_polarizability:
            self.outputs = CHARGE_OUTPUTS | {"polarizability"}

    def features(self, geometry: Geometry, batch: Batch) -> BackboneOutput:
        charges = self.formal_charges(geometry.element, batch)
        embedded = self.backbone.node_embedding(geometry.element)
        return self.backbone_features(geometry, self.oxidation_state_mixer(embedded, charges))

    def multipoles(
        self, features: BackboneOutput, geometry: Geometry, batch: Batch
    ) -> LocalMultipoles:
        formal = self.formal_charges(geometry.element, batch)
        context = EdgeContext(geometry.edges, features.edge_attrs, features.edge_feats, formal)
        moved: list[Tensor] = []
        higher: list[Tensor] = []
        for source, feats in zip(self.lr_source_maps, features.node_feats_per_layer, strict=True):
            transfer, above = source(feats, context)
            moved.append(transfer)
            higher.append(above)
        transfer = torch.stack(moved).sum(0)
        charges = formal + received(transfer, geometry.edges)
        density = torch.cat([charges.unsqueeze(-1), torch.stack(higher).sum(0)], dim=-1)
        return LocalMultipoles(
            density,
            self._dipole(formal, density, transfer, geometry),
            self._polarizability(features, geometry),
        )

    def _dipole(
        self, formal: Tensor, density: Tensor, transfer: Tensor, geometry: Geometry
    ) -> Tensor:
        """Dipole of formal charges and atomic dipoles, plus what the transfer carries."""
        static = torch.cat([formal.unsqueeze(-1), density[:, 1:]], dim=-1)
        carried = transfer.unsqueeze(-1) * geometry.edge_vectors
        graph = geometry.batch.index_select(0, geometry.edge_index[1])
        total = carried.new_zeros(geometry.n_graphs, 3).index_add(0, graph, carried)
        return self.moments(static, geometry) + total

    def _polarizability(self, features: BackboneOutput, geometry: Geometry) -> Tensor | None:
        if not len(self.polarizability_readouts):
            return None
        layers = features.node_feats_per_layer
        tensors = [
            read(feats) for read, feats in zip(self.polarizability_readouts, layers, strict=True)
        ]
        return geometry.sum_over_atoms(torch.stack(tensors).sum(0))
