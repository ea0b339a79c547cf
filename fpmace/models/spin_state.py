"""Densities of spin up and down: what their recursion works on, and its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from fpmace.annotations import Count, Doc, Positive
from fpmace.blocks.spin_density import N_SPINS, PreparedUpdate, SpinTargets
from fpmace.electrostatics.plan import Plan

NON_LINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
SCALAR_NORM, VECTOR_NORM = 20.0, 0.5
"""V, divisors of the field features in the published models."""

Recursion = Annotated[
    Literal["steps", "fixed_point"],
    Doc(
        "steps: each map of num_recursion_steps acts once; fixed_point: the last one is iterated "
        "to self-consistency"
    ),
]
RecursionSteps = Annotated[
    Count, Doc("maps, each with weights of its own, that change the density one after the other")
]
FukuiWeights = Annotated[
    Literal["positive", "signed"],
    Doc(
        "shares of the atoms in the charge that a spin lacks: positive by softplus, or of any "
        "sign, as the published models have them, whose sum may come close to 0"
    ),
]
SharedReadout = Annotated[
    bool, Doc("read the energy of every layer by the readout of the last, with the same weights")
]
SpinFeatureNorms = Annotated[
    tuple[Positive, ...] | None,
    Doc(
        "divisors of the field features, V, one per order and width, order by order; None: 20 for "
        "order 0, 0.5 for the others",
        "[20.0, 20.0, 0.5, 0.5]",
    ),
]


@dataclass(frozen=True, slots=True)
class SpinState:
    """What depends on the geometry, but not on the density of both spins.

    Attributes:
        plan: the electrostatics.
        external: [n_atoms, n_features] half the features of the external field.
        first: [n_atoms, 2, n_lm] density before the first change, with the right charges.
        start: the density that the last map changes; that of the maps before it.
        prepared: of each map.
        targets: the charges held.
        last_feats: [n_atoms, node_irreps.dim] features of the last layer.
    """

    plan: Plan
    external: Tensor
    first: Tensor
    start: Tensor
    prepared: list[PreparedUpdate]
    targets: SpinTargets
    last_feats: Tensor


def spins_of(unknowns: Tensor) -> Tensor:
    """``[up + down | up - down]`` [n_atoms, 2 n_lm] to up and down [n_atoms, 2, n_lm]."""
    total, difference = unknowns.chunk(N_SPINS, dim=1)
    return 0.5 * torch.stack([total + difference, total - difference], dim=1)


def unknowns_of(density: Tensor) -> Tensor:
    """Up and down [n_atoms, 2, n_lm] to ``[up + down | up - down]`` [n_atoms, 2 n_lm]."""
    up, down = density.unbind(1)
    return torch.cat([up + down, up - down], dim=1)
