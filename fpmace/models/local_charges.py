"""Local charges and multipoles, and fixed charges per element: two models without a solve."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Doc
from fpmace.blocks.formal_charges import FormalCharges, formal_charge_table
from fpmace.blocks.linear import Linear
from fpmace.data.batch import Batch
from fpmace.electrostatics import options as field
from fpmace.models.backbone import BackboneOutput
from fpmace.models.geometry import Geometry
from fpmace.models.local_density import LocalDensityModel, LocalMultipoles
from fpmace.registry import register_model

Conservation = Annotated[
    Literal["none", "uniform", "learned"],
    Doc(
        "how the total charge is met: not at all, by the same share for every atom, or by shares "
        "learned from the surroundings"
    ),
]


class _LayerSource(nn.Module):
    def __init__(self, node_irreps: Irreps, density_irreps: Irreps) -> None:
        super().__init__()
        self.linear = Linear(node_irreps, density_irreps)

    def forward(self, node_feats: Tensor) -> Tensor:
        return self.linear(node_feats)


@register_model("LocalCharges")
class LocalCharges(LocalDensityModel):
    """Multipoles of each atom as a linear function of its features, summed over the layers.

    ``rho_i = sum_t Lin_t(h_i^t)``. With ``conserve`` the difference to ``total_charge`` is shared
    out, ``q_i += f_i (Q - sum q)`` with positive f_i that sum to 1. Trained on energies and forces
    alone, with ``include_electrostatic_self_interaction: false``, the charges are latent
    (B. Cheng, npj Comput. Mater. 11, 80 (2025)).
    """

    born_charges_by_phases = True

    def __init__(
        self,
        *,
        atomic_multipoles_max_l: field.DensityDegree = 1,
        conserve: Conservation = "none",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.conserve = conserve
        density_irreps = self.electrostatics.density_irreps
        self.lr_source_maps = nn.ModuleList(
            _LayerSource(irreps, density_irreps) for irreps in self.backbone.layer_irreps
        )
        if conserve != "none":
            self.inputs = self.inputs | {"total_charge"}
        if conserve == "learned":
            self.charge_shares = Linear(self.node_irreps, Irreps("1x0e"), bias=True)

    def multipoles(
        self, features: BackboneOutput, geometry: Geometry, batch: Batch
    ) -> LocalMultipoles:
        layers = features.node_feats_per_layer
        density = self.lr_source_maps[0](layers[0])
        for source, feats in zip(list(self.lr_source_maps)[1:], layers[1:], strict=True):
            density = density + source(feats)
        if self.conserve != "none":
            missing = batch.total_charge - geometry.sum_over_atoms(density[:, 0])
            added = self._shares(layers[-1], geometry) * missing[geometry.batch]
            density = torch.cat([(density[:, 0] + added).unsqueeze(-1), density[:, 1:]], dim=-1)
        return LocalMultipoles(density, self.moments(density, geometry))

    def _shares(self, node_feats: Tensor, geometry: Geometry) -> Tensor:
        """[n_atoms] positive, summing to 1 in each structure."""
        if self.conserve == "uniform":
            weight = torch.ones_like(node_feats[:, 0])
        else:
            weight = nn.functional.softplus(self.charge_shares(node_feats).squeeze(-1))
        return weight / geometry.sum_over_atoms(weight)[geometry.batch]


FormalChargeTable = Annotated[
    dict[int, float] | None,
    Doc("formal charge of each element, e; None with formal_charges_from_data", "{8: -2, 1: 1}"),
]
ChargesFromData = Annotated[
    bool, Doc("read the formal charge of every atom from the property formal_charges of the data")
]


@register_model("FixedChargeBaselinedMACE")
class FixedChargeBaselinedMACE(LocalDensityModel):
    """Fixed charges, of the element or of the data; the network learns the short-ranged rest."""

    density_meaning = "fixed charges"
    inputs = frozenset({"external_field"})

    def __init__(
        self,
        *,
        atomic_formal_charges: FormalChargeTable = None,
        formal_charges_from_data: ChargesFromData = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        table = formal_charge_table(atomic_formal_charges, formal_charges_from_data)
        self.formal_charges = FormalCharges(table, self.config["atomic_numbers"])
        if formal_charges_from_data:
            self.inputs = self.inputs | {"formal_charges"}

    def multipoles(
        self, features: BackboneOutput, geometry: Geometry, batch: Batch
    ) -> LocalMultipoles:
        density = self.formal_charges(geometry.element, batch).unsqueeze(-1)
        return LocalMultipoles(density, self.moments(density, geometry))
