"""The energies that a fixed-point model gives to isolated neutral atoms, to be taken off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from ase.data import chemical_symbols
from torch import Tensor

from fpmace.blocks.edges import EdgeLayout
from fpmace.errors import ConfigError, ScfError
from fpmace.models.geometry import Geometry

if TYPE_CHECKING:
    from fpmace.models.fixed_point_core import FixedPointCore
    from fpmace.models.local_state import AtomicPart


@dataclass(frozen=True, slots=True)
class AtomEnergies:
    """Energies of the elements beyond E0, eV.

    Attributes:
        readouts: [n_elements, n_layers].
        electron: [n_elements], of the field readout.
    """

    readouts: Tensor
    electron: Tensor


class IsolatedAtoms:
    """Computes :class:`AtomEnergies`, differentiably while a model trains.

    In evaluation mode they are constants, kept until the weights change.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._kept: AtomEnergies | None = None

    def __call__(self, model: FixedPointCore) -> AtomEnergies:
        """The energies with the model's present weights.

        Raises:
            ScfError: if an atom cannot be made neutral.
        """
        if model.training:
            return isolated_atoms(model)
        with torch.no_grad():
            parameters = list(model.parameters())
            # Values, not versions: some optimizers write behind autograd's back.
            norms = torch.stack([norm.double() for norm in torch._foreach_norm(parameters)])
            key = (float(norms.sum()), parameters[0].dtype, parameters[0].device)
            if self._kept is None or key != self._key:
                self._key, self._kept = key, isolated_atoms(model)
        return self._kept


def check_anchoring(is_affine: bool) -> None:
    """Refuse rules for which the level of a neutral atom is not one linear equation.

    Raises:
        ConfigError: if the rule is not affine.
    """
    if not is_affine:
        raise ConfigError(
            "true needs an update rule that is affine in the field features, and this one is "
            "not; use false, or OneBodyPassiveUpdate",
            where="anchor_isolated_atoms",
        )


def isolated_atoms(model: FixedPointCore) -> AtomEnergies:
    """Energies of one neutral atom of each element by itself.

    A neutral atom without neighbours has no multipoles: its charge is zero, and by symmetry so
    are all others. There is no potential, and its level alone makes the local density vanish.
    """
    part = model.atomic_part(_bare_atoms(model))
    features = _neutral_features(model, part)
    electron = model.local_electron_energy(
        features, torch.zeros_like(part.local_density), part.readout_context
    )
    return AtomEnergies(part.node_energies[:, 1:], electron)


def _bare_atoms(model: FixedPointCore) -> Geometry:
    like = model.field_feature_norms
    n, device = len(model.atomic_numbers), like.device
    index = torch.arange(n + 1, device=device)
    nobody = torch.zeros((2, 0), dtype=torch.int64, device=device)
    return Geometry(
        positions=like.new_zeros(n, 3),
        cell=like.new_zeros(n, 3, 3),
        pbc=torch.zeros((n, 3), dtype=torch.bool, device=device),
        element=index[:-1],
        edge_index=nobody,
        edge_vectors=like.new_zeros(0, 3),
        edge_lengths=like.new_zeros(0),
        edges=EdgeLayout.build(nobody, n),
        batch=index[:-1],
        ptr=index,
        n_graphs=n,
    )


def _neutral_features(model: FixedPointCore, part: AtomicPart) -> Tensor:
    """Features of the level at which the charge vanishes; the map is affine in it."""
    ones = torch.ones_like(part.local_density[:, 0])
    unit = model.electrostatics.fermi_features(ones) / model.field_feature_norms
    at_zero = model.update_rule(torch.zeros_like(unit), part.prepared)[:, 0]
    slope = model.update_rule(unit, part.prepared)[:, 0] - at_zero
    charge = part.local_density[:, 0] + at_zero
    stuck = (slope == 0) & (charge.abs() > 1e-6)
    if bool(stuck.any()):
        number = int(model.atomic_numbers[int(stuck.nonzero()[0])])
        raise ScfError(
            f"anchor_isolated_atoms: a {chemical_symbols[number]} atom by itself cannot be made "
            "neutral, since its charge does not answer to the level; use isotropic: true in the "
            "update rule, or anchor_isolated_atoms: false"
        )
    safe = torch.where(slope == 0, torch.ones_like(slope), slope)
    return unit * (-charge / safe).unsqueeze(-1)
