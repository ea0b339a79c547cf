"""What the field-independent part of the fixed-point model leaves for the SCF and the energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fpmace.blocks.update_rule import NodeContext
from fpmace.electrostatics.plan import Plan
from fpmace.models.geometry import Geometry
from fpmace.scf.fragments import HeldFragments


@dataclass(frozen=True, slots=True)
class AtomicPart:
    """What the networks make of a geometry; attributes as in :class:`LocalState`.

    ``node_energies`` [n_atoms, 1 + n_layers] eV: free atoms and each layer's readout.
    """

    node_energies: Tensor
    local_density: Tensor
    mixed_feats: Tensor
    last_feats: Tensor
    prepared: Any
    readout_context: NodeContext


@dataclass(frozen=True, slots=True)
class LocalState:
    """Everything that depends on the geometry but not on the density.

    Attributes:
        geometry: positions, cell, edges.
        plan: the electrostatics of the geometry.
        contributions: [n_graphs, 1 + n_layers] eV, free atoms and each layer's readout.
        node_energy: [n_atoms] eV, the same per atom, summed.
        local_density: [n_atoms, n_lm] e Angstrom^l.
        mixed_feats: [n_atoms, node_irreps.dim] features mixed over layers.
        last_feats: [n_atoms, node_irreps.dim] features of the last layer.
        prepared: what the update rule keeps for its evaluations.
        readout_context: what the field-energy readout sees.
        fragments: groups of atoms that keep their charge; None: structures do.
        external_field: [n_graphs, 3] V/Angstrom.
        external_features: [n_atoms, n_features] features of the external field, unnormalised.
    """

    geometry: Geometry
    plan: Plan
    contributions: Tensor
    node_energy: Tensor
    local_density: Tensor
    mixed_feats: Tensor
    last_feats: Tensor
    prepared: Any
    readout_context: NodeContext
    fragments: HeldFragments | None
    external_field: Tensor
    external_features: Tensor


@dataclass(frozen=True, slots=True)
class EnergyTerms:
    """Energies per graph in eV; ``dipole`` [n_graphs, 3] in e Angstrom.

    ``density`` [n_atoms, n_lm] is the one that they belong to.
    """

    total: Tensor
    electrostatic: Tensor
    electron: Tensor
    field: Tensor
    dipole: Tensor
    density: Tensor
