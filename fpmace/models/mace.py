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
        node_energy: [n_atoms], sums to ``energy``.
        contributions: [n_graphs, n]; columns: atomic energies, pair repulsion (0), one per layer.
        interaction_energy: [n_graphs], energy less atomic energies.
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
    def forward(self, geometry: Geometry) -> MaceEnergy:
        """Energies of the structures in ``geometry``."""

    def observe(self, geometry: Geometry, batch: Batch, request: Request) -> Observables:
        """The energy and its parts."""
        found = self(geometry)
        return Observables(
            energy=found.energy,
            node_energy=found.node_energy,
            contributions=found.contributions,
        )

    def _layer_energies(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """[n_atoms, n_layers] eV and the features of all layers."""
        layers = self.backbone(geometry).node_feats_per_layer
        energies = self.readout_energies(layers, geometry)
        return torch.stack(energies, dim=-1), torch.cat(layers, dim=-1)


@register_model("MACE")
class MACE(_MaceBase):
    """Short-ranged potential: atomic energies plus the readouts of all layers."""

    def forward(self, geometry: Geometry) -> MaceEnergy:
        """Energies of the structures in ``geometry``."""
        atomic = self.atomic_energies_fn(geometry.element, geometry.head)
        layers, node_feats = self._layer_energies(geometry)
        columns = torch.cat(
            [atomic.unsqueeze(-1), torch.zeros_like(layers[:, :1]), layers], dim=-1
        )
        contributions = geometry.sum_over_atoms(columns)
        return MaceEnergy(
            energy=contributions.sum(-1),
            node_energy=columns.sum(-1),
            contributions=contributions,
            interaction_energy=contributions[:, 1:].sum(-1),
            node_feats=node_feats,
        )


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

    def forward(self, geometry: Geometry) -> MaceEnergy:
        """Energies of the structures in ``geometry``."""
        atomic = self.atomic_energies_fn(geometry.element, geometry.head)
        layers, node_feats = self._layer_energies(geometry)
        interaction = self.scale_shift(layers.sum(-1), geometry.head)
        columns = torch.stack([atomic, interaction], dim=-1)
        contributions = geometry.sum_over_atoms(columns)
        return MaceEnergy(
            energy=contributions.sum(-1),
            node_energy=columns.sum(-1),
            contributions=contributions,
            interaction_energy=contributions[:, 1],
            node_feats=node_feats,
        )


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
