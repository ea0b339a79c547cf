"""Short-ranged MACE models: energy from the backbone's features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.errors import ConfigError
from fpmace.models import options as opt
from fpmace.models.backbone_model import BackboneModel
from fpmace.models.base import Request
from fpmace.models.geometry import Geometry
from fpmace.observables.types import Observables
from fpmace.registry import register_model

HeadValues = float | Sequence[float]


@dataclass(frozen=True, slots=True)
class MaceEnergy:
    """Energy of each structure and where it comes from; eV.

    Attributes:
        energy: [n_graphs].
        node_energy: [n_atoms], sums to ``energy`` less what is read from embedded inputs.
        contributions: [n_graphs, n]; columns: atomic energies, pair repulsion, one per readout;
            at the end that of embedded inputs, if it is read.
        interaction_energy: [n_graphs], sum of ``node_energy`` less atomic energies.
        node_feats: [n_atoms, sum of layer dims], the layers side by side.
    """

    energy: Tensor
    node_energy: Tensor
    contributions: Tensor
    interaction_energy: Tensor
    node_feats: Tensor


class _MaceBase(BackboneModel):
    """Common part of MACE and ScaleShiftMACE."""

    vector_order = "xyz"
    last_layer_scalars_only = True

    def __init__(self, **backbone: Any) -> None:
        super().__init__(**backbone)
        self.readouts = self.energy_readouts(nonlinear=len(self.backbone.layer_irreps) > 1)

    @abstractmethod
    def energy_columns(
        self, atomic: Tensor, pairs: Tensor | None, layers: Tensor, geometry: Geometry
    ) -> list[Tensor]:
        """Energy of each atom in parts, [n_atoms] eV each, the first that of the free atom.

        Args:
            atomic, pairs: [n_atoms] eV, of the free atoms and their repulsion.
            layers: [n_atoms, n_readouts] eV.
        """

    def forward(self, geometry: Geometry) -> MaceEnergy:
        """Energies of the structures in ``geometry``."""
        features = self.backbone_features(geometry)
        feats = features.node_feats_per_layer
        layers = torch.stack(self.readout_energies(feats, geometry), dim=-1)
        atomic = self.atomic_energies_fn(geometry.element, geometry.head)
        parts = self.energy_columns(atomic, self.pair_energies(geometry), layers, geometry)
        columns = torch.stack(parts, dim=-1)
        contributions = geometry.sum_over_atoms(columns)
        interaction = contributions[:, 1:].sum(-1)
        embedded = self.embedding_energies(features, geometry)
        if embedded is not None:
            of_inputs = geometry.sum_over_atoms(embedded.unsqueeze(-1))
            contributions = torch.cat([contributions, of_inputs], dim=-1)
        return MaceEnergy(
            energy=contributions.sum(-1),
            node_energy=columns.sum(-1),
            contributions=contributions,
            interaction_energy=interaction,
            node_feats=torch.cat(feats, dim=-1),
        )

    def observe(self, geometry: Geometry, batch: Batch, request: Request) -> Observables:
        """The energy and its parts."""
        found = self(geometry)
        return Observables(
            energy=found.energy,
            node_energy=found.node_energy,
            contributions=found.contributions,
        )


@register_model("MACE")
class MACE(_MaceBase):
    """Short-ranged potential: atomic energies plus the readouts of all layers."""

    def energy_columns(
        self, atomic: Tensor, pairs: Tensor | None, layers: Tensor, geometry: Geometry
    ) -> list[Tensor]:
        return [atomic, torch.zeros_like(atomic) if pairs is None else pairs, *layers.unbind(-1)]


@register_model("ScaleShiftMACE")
class ScaleShiftMACE(_MaceBase):
    """Short-ranged potential whose readouts are scaled and shifted by statistics of the data."""

    def __init__(
        self,
        *,
        atomic_inter_scale: opt.EnergyScale = 1.0,
        atomic_inter_shift: opt.EnergyShift = 0.0,
        **backbone: Any,
    ) -> None:
        super().__init__(**backbone)
        given = {
            "atomic_inter_scale": atomic_inter_scale,
            "atomic_inter_shift": atomic_inter_shift,
        }
        per_head = [for_heads(name, value, len(self.heads)) for name, value in given.items()]
        self.scale_shift = ScaleShift(*per_head)

    def energy_columns(
        self, atomic: Tensor, pairs: Tensor | None, layers: Tensor, geometry: Geometry
    ) -> list[Tensor]:
        read = layers.sum(-1)
        read = read if pairs is None else pairs + read
        return [atomic, self.scale_shift(read, geometry.head)]


class ScaleShift(nn.Module):
    """Energy per atom ``scale * x + shift``; both in eV, a number for each head, not trained."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: HeadValues, shift: HeadValues) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float64))

    def forward(self, x: Tensor, head: Tensor | None = None) -> Tensor:
        if head is None:
            return self.scale * x + self.shift
        return self.scale[head] * x + self.shift[head]


def for_heads(name: str, value: HeadValues, n_heads: int) -> HeadValues:
    """A number for one head; for several, a number for each."""
    values = list(value) if isinstance(value, Sequence) else [value] * n_heads
    if len(values) != n_heads:
        raise ConfigError(f"expected {n_heads} numbers, one per head, got {values}", where=name)
    return values[0] if n_heads == 1 else values
