"""Charge that moves along the edges: an antisymmetric transfer conserves it exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import Annotated

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Bounds, Doc
from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.formal_charges import ChebyshevEmbedding
from fpmace.blocks.linear import MLP, Linear, ScalarWeighting, uniform_multiplicity
from fpmace.registry import register_bond_transfer, set_base

TRANSFER_SCALE = 1.0 / 40.0
"""Size of the random start: a transfer is a sum over many neighbours."""


@dataclass(frozen=True, slots=True)
class EdgeContext:
    """Edges as a transfer block sees them.

    Attributes:
        edges: senders and receivers.
        edge_attrs: [n_edges, (max_ell + 1)^2] spherical harmonics, sender to receiver.
        edge_feats: [n_edges, n_edge_features] radial basis.
        charges: [n_atoms] formal charges, e.
    """

    edges: EdgeLayout
    edge_attrs: Tensor
    edge_feats: Tensor
    charges: Tensor


class BondTransfer(nn.Module, ABC):
    """One layer's charge transfer, and the features that its higher multipoles come from.

    The constructor may ask for node_irreps, edge_irreps and n_edge_features.
    """

    @abstractmethod
    def forward(self, node_feats: Tensor, context: EdgeContext) -> tuple[Tensor, Tensor]:
        """Evaluate.

        Returns:
            (charge moved from sender to receiver of each directed edge [n_edges] e, features
            [n_atoms, node_irreps.dim]).
        """


set_base("bond_transfer", BondTransfer)


class _EdgeInvariants(nn.Module):
    """``g_e . Y(r_e)`` per common degree and channel, g of sender plus receiver, radial weights.

    ``c_lu = w_lu(r) (2l+1)^(-1/2) sum_m g_ulm Y_lm``.
    """

    def __init__(
        self, node_irreps: Irreps, edge_irreps: Irreps, n_edge_features: int, widths: list[int]
    ) -> None:
        super().__init__()
        self.node_irreps = Irreps(node_irreps)
        self.n_channels = uniform_multiplicity(self.node_irreps)
        self.n_degrees = min(len(self.node_irreps), len(Irreps(edge_irreps)))
        self.linear1 = Linear(self.node_irreps, self.node_irreps)
        self.linear2 = Linear(self.node_irreps, self.node_irreps)
        n_paths = self.n_degrees * self.n_channels
        self.conv_tp_weights = MLP([n_edge_features, *widths, n_paths])

    def forward(self, node_feats: Tensor, context: EdgeContext) -> Tensor:
        """[n_edges, n_degrees, n_channels]."""
        sender, receiver = context.edges.sender, context.edges.receiver
        from_sender = self.linear1(node_feats).index_select(0, sender)
        feats = from_sender + self.linear2(node_feats).index_select(0, receiver)
        pieces = []
        for degree, part in enumerate(self.node_irreps.slices()[: self.n_degrees]):
            dim = 2 * degree + 1
            block = feats[:, part].reshape(-1, self.n_channels, dim)
            harmonics = context.edge_attrs[:, degree**2 : (degree + 1) ** 2]
            pieces.append((block * harmonics.unsqueeze(1)).sum(-1) * (1.0 / sqrt(dim)))
        weights = self.conv_tp_weights(context.edge_feats)
        return torch.stack(pieces, dim=1) * weights.view(-1, self.n_degrees, self.n_channels)


Widths = Annotated[list[int], Bounds(minimum=1), Doc("widths of the radial network")]


@register_bond_transfer("NoFieldSymmetricPredictionSourceBlock")
class NoFieldSymmetricPredictionSourceBlock(BondTransfer):
    """Transfer from the features alone; formal charges do not enter."""

    def __init__(
        self,
        *,
        radial_widths: Widths = [64, 64, 64],  # noqa: B006
        node_irreps: Irreps,
        edge_irreps: Irreps,
        n_edge_features: int,
    ) -> None:
        super().__init__()
        self.invariants = _EdgeInvariants(node_irreps, edge_irreps, n_edge_features, radial_widths)
        n_scalars = self.invariants.n_degrees * self.invariants.n_channels
        self.linear = Linear(Irreps(f"{n_scalars}x0e"), Irreps("1x0e"))

    def forward(self, node_feats: Tensor, context: EdgeContext) -> tuple[Tensor, Tensor]:
        scalars = self.invariants(node_feats, context).flatten(1)
        return self.linear(scalars).squeeze(-1) * TRANSFER_SCALE, node_feats


@register_bond_transfer("OxidationDependentSymmetricPredictionSourceBlock")
class OxidationDependentSymmetricPredictionSourceBlock(BondTransfer):
    """Transfer from features that an embedding of the formal charge has weighted."""

    def __init__(
        self,
        *,
        radial_widths: Widths = [32, 32, 32],  # noqa: B006
        oxidation_range: Annotated[
            tuple[float, float], Doc("lowest and highest formal charge, e")
        ] = (-4.0, 4.0),
        node_irreps: Irreps,
        edge_irreps: Irreps,
        n_edge_features: int,
    ) -> None:
        super().__init__()
        n_channels = uniform_multiplicity(Irreps(node_irreps))
        self.oxidation_embedding = ChebyshevEmbedding(n_channels, oxidation_range)
        self.oxidation_weighting = ScalarWeighting(node_irreps)
        self.invariants = _EdgeInvariants(node_irreps, edge_irreps, n_edge_features, radial_widths)
        self.linear = Linear(Irreps(f"{n_channels}x0e"), Irreps("1x0e"))

    def forward(self, node_feats: Tensor, context: EdgeContext) -> tuple[Tensor, Tensor]:
        embedded = self.oxidation_embedding(context.charges)
        weighted = self.oxidation_weighting(node_feats, embedded)
        invariants = self.invariants(weighted, context)
        scalars = invariants.sum(1) * (1.0 / sqrt(self.invariants.n_degrees))
        return self.linear(scalars).squeeze(-1) * TRANSFER_SCALE, weighted


def received(transfer: Tensor, edges: EdgeLayout) -> Tensor:
    """Charge that each atom gains, [n_atoms] e; sums to zero in every structure."""
    gained = transfer.new_zeros(edges.n_atoms)
    gained = gained.index_add(0, edges.receiver, transfer)
    return gained.index_add(0, edges.sender, -transfer)
