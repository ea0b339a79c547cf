"""Local density readouts: the field-independent multipoles of an atom."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Doc
from fpmace.blocks.gate import GatedActivation
from fpmace.blocks.linear import Linear
from fpmace.errors import ConfigError
from fpmace.registry import register_local_density_readout, set_base


class LocalDensityReadout(nn.Module, ABC):
    """Maps the node features of one layer to multipoles; the layers' results are summed.

    The constructor may ask for these context arguments: node_irreps, density_irreps, n_elements,
    readout_irreps (``MLP_irreps`` of the model), density_scale (``atom_density_scaling``, one
    number per element).
    """

    @abstractmethod
    def forward(self, node_feats: Tensor, element: Tensor) -> Tensor:
        """[n_atoms, node_irreps.dim] and elements [n_atoms] to [n_atoms, density_irreps.dim]."""


set_base("local_density_readout", LocalDensityReadout)


@register_local_density_readout("ScaledLinearLocalDensity")
class ScaledLinearLocalDensity(LocalDensityReadout):
    """Linear map of the node features, scaled per element by ``atom_density_scaling``.

    ``use_linear_local_charges: true`` chooses it.
    """

    def __init__(
        self, *, node_irreps: Irreps, density_irreps: Irreps, density_scale: list[float]
    ) -> None:
        super().__init__()
        self.linear = Linear(node_irreps, density_irreps)
        self.register_buffer(
            "atom_density_scale", torch.tensor(density_scale, dtype=torch.float64)
        )

    def forward(self, node_feats: Tensor, element: Tensor) -> Tensor:
        scale: Tensor = self.get_buffer("atom_density_scale")
        return self.linear(node_feats) * scale[element].unsqueeze(-1)


@register_local_density_readout("GatedLocalDensity")
class GatedLocalDensity(LocalDensityReadout):
    """Two gated nonlinear layers and a linear one; no scaling by element.

    Scalars go through SiLU, higher degrees are multiplied by logistic functions of scalars. With
    scalars alone between the layers, as ``MLP_irreps`` has them, the dipoles of this readout are
    exactly zero; ``hidden_irreps: 16x0e+16x1o`` gives dipoles too.
    """

    def __init__(
        self,
        *,
        hidden_irreps: Annotated[
            str | None, Doc("features between the layers; None: MLP_irreps of the model")
        ] = None,
        node_irreps: Irreps,
        density_irreps: Irreps,
        readout_irreps: Irreps,
    ) -> None:
        super().__init__()
        self.activation = GatedActivation(_hidden(hidden_irreps, readout_irreps))
        self.linear_1 = Linear(node_irreps, self.activation.irreps_in)
        self.linear_mid = Linear(self.activation.irreps_out, self.activation.irreps_in)
        self.linear_2 = Linear(self.activation.irreps_out, density_irreps)

    def forward(self, node_feats: Tensor, element: Tensor) -> Tensor:
        hidden = self.activation(self.linear_1(node_feats))
        return self.linear_2(self.activation(self.linear_mid(hidden)))


def _hidden(given: str | None, default: Irreps) -> Irreps:
    try:
        irreps = Irreps(default if given is None else given)
    except ValueError as error:
        raise ConfigError(
            f"{given!r} is not a list of irreps such as '16x0e+16x1o'", where="hidden_irreps"
        ) from error
    if not any(ir.l == 0 for _, ir in irreps) or any(ir.p != (-1) ** ir.l for _, ir in irreps):
        raise ConfigError(
            f"expected scalars and others of parity (-1)^l, as '16x0e+16x1o', got '{irreps}'",
            where="hidden_irreps",
        )
    return irreps
