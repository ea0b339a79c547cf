"""Short-ranged MACE models: energy from the backbone's features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Options
from fpmace.blocks.embedding import AtomicEnergies
from fpmace.blocks.readout import LinearReadout, NonLinearReadout
from fpmace.data.batch import Batch
from fpmace.errors import ConfigError
from fpmace.models import options as opt
from fpmace.models.backbone import Backbone
from fpmace.models.base import Model, Request
from fpmace.models.geometry import Geometry
from fpmace.observables.types import Observables
from fpmace.registry import register_model


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


class _MaceBase(Model):
    """Common part of MACE and ScaleShiftMACE."""

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
    ) -> None:
        check_elements(atomic_numbers, atomic_energies)
        super().__init__(r_max=r_max, atomic_numbers=atomic_numbers)
        self.atomic_energies_fn = AtomicEnergies(atomic_energies)
        self.backbone = Backbone(
            n_elements=len(atomic_numbers),
            vector_order="xyz",
            last_layer_scalars_only=True,
            **{name: self.config[name] for name in BACKBONE_OPTIONS},
        )
        irreps = self.backbone.layer_irreps
        readouts: list[nn.Module] = [LinearReadout(item) for item in irreps]
        if len(irreps) > 1:
            readouts[-1] = NonLinearReadout(irreps[-1], Irreps(MLP_irreps), gate)
        self.readouts = nn.ModuleList(readouts)

    @staticmethod
    def check_options(options: Options) -> None:
        """Refuse options that do not fit together, before anything is built.

        Raises:
            ConfigError: naming the option.
        """
        opt.check_backbone(options)

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
        energies = [read(feats) for read, feats in zip(self.readouts, layers, strict=True)]
        return torch.stack(energies, dim=-1), torch.cat(layers, dim=-1)


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
)
"""Options of a model that are passed on to the backbone."""


def check_elements(atomic_numbers: Sequence[int], atomic_energies: Sequence[float]) -> None:
    """Check that elements ascend and that each has one energy.

    Raises:
        ConfigError: if not.
    """
    numbers = list(atomic_numbers)
    if not numbers or numbers != sorted(set(numbers)):
        raise ConfigError(f"atomic_numbers: expected ascending atomic numbers, got {numbers}")
    if len(atomic_energies) != len(numbers):
        raise ConfigError(
            f"atomic_energies: expected one energy for each of the {len(numbers)} elements, "
            f"got {len(atomic_energies)}"
        )


@register_model("MACE")
class MACE(_MaceBase):
    """Short-ranged potential: atomic energies plus the readouts of all layers."""

    def forward(self, geometry: Geometry) -> MaceEnergy:
        """Energies of the structures in ``geometry``."""
        atomic = self.atomic_energies_fn(geometry.element)
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
        self.scale_shift = ScaleShift(atomic_inter_scale, atomic_inter_shift)

    def forward(self, geometry: Geometry) -> MaceEnergy:
        """Energies of the structures in ``geometry``."""
        atomic = self.atomic_energies_fn(geometry.element)
        layers, node_feats = self._layer_energies(geometry)
        interaction = self.scale_shift(layers.sum(-1))
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
    """Energy per atom ``scale * x + shift``; both in eV, not trained."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale), dtype=torch.float64))
        self.register_buffer("shift", torch.tensor(float(shift), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift
