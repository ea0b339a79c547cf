"""Multipoles of spin up and down: how they are read, corrected and changed by a field.

The density of an atom is ``rho = [up | down]``, multipoles of each spin; the features of the
potential are ``v = [up | down]`` likewise. Equations: docs/polar_mace.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.embedding import ElementTable
from fpmace.blocks.gate import GatedActivation
from fpmace.blocks.linear import DotProducts, Linear, ScalarWeighting, uniform_multiplicity
from fpmace.blocks.radial_mlp import RadialMLP
from fpmace.blocks.readout import get_gate
from fpmace.scf.problem import graph_sum

N_SPINS = 2


def both_spins(irreps: Irreps) -> Irreps:
    """Irreps of ``[up | down]`` from those of one spin; not merged."""
    return Irreps(irreps) + Irreps(irreps)


class _ScalarActivation(nn.Module):
    """The activation that ``gate`` names, on scalars."""

    def __init__(self, irreps: Irreps, gate: str | None) -> None:
        super().__init__()
        self.irreps_in = self.irreps_out = Irreps(irreps)
        self.gate = get_gate(gate)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


class BiasedReadout(nn.Module):
    """Two hidden layers and a linear one; the last two have biases on their scalars.

    Args:
        gate: activation where all hidden features are scalars, by its name in the option
            ``gate``; others have SiLU and gates.
    """

    def __init__(
        self, irreps_in: Irreps, hidden: Irreps, irreps_out: Irreps, gate: str | None = "silu"
    ) -> None:
        super().__init__()
        plain = Irreps(hidden).lmax == 0
        self.activation = _ScalarActivation(hidden, gate) if plain else GatedActivation(hidden)
        inside, outside = self.activation.irreps_in, self.activation.irreps_out
        self.linear_1 = Linear(irreps_in, inside)
        self.linear_mid = Linear(outside, inside, bias=True)
        self.linear_2 = Linear(outside, irreps_out, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """[n_atoms, irreps_in.dim] to [n_atoms, irreps_out.dim]."""
        hidden = self.activation(self.linear_1(x))
        return self.linear_2(self.activation(self.linear_mid(hidden)))


@dataclass(frozen=True, slots=True)
class SpinTargets:
    """The electrons that each structure gains of each spin, and which atoms share them.

    Attributes:
        charge: [n_graphs, 2] e; up ``(Q + M - 1) / 2``, down ``(Q - M + 1) / 2``.
        batch: [n_atoms] int64, structure of each atom.
        positive: share the difference by positive weights (softplus); else by signed ones.
    """

    charge: Tensor
    batch: Tensor
    positive: bool

    @classmethod
    def of(cls, charge: Tensor, spin: Tensor, batch: Tensor, positive: bool) -> SpinTargets:
        """From total charge [n_graphs] and multiplicity [n_graphs]."""
        excess = spin - 1.0
        return cls(0.5 * torch.stack([charge + excess, charge - excess], -1), batch, positive)

    def hold(self, density: Tensor, weight: Tensor) -> Tensor:
        """Share what each spin lacks of its charge, ``q_i += f_i (T - sum q)``, sum f = 1.

        Sums are in float64. Signed weights that sum to exactly 0 are left as they are.

        Args:
            density: [n_atoms, 2, n_lm] e Angstrom^l.
            weight: [n_atoms, 2], f before it is normalised.
        """
        n_graphs = self.charge.shape[0]
        weight = nn.functional.softplus(weight.double()) if self.positive else weight.double()
        total = graph_sum(weight, self.batch, n_graphs)
        total = torch.where(total == 0, 1.0, total)
        charge = density[..., 0].double()
        missing = self.charge.double() - graph_sum(charge, self.batch, n_graphs)
        charge = charge + weight * (missing / total)[self.batch]
        return torch.cat([charge.to(density).unsqueeze(-1), density[..., 1:]], dim=-1)


class SpinPotentialEmbedding(nn.Module):
    """``Lin(v) + Lin(g) + Lin(rho)``, the same for all elements."""

    def __init__(self, node_irreps: Irreps, field_irreps: Irreps, density_irreps: Irreps) -> None:
        super().__init__()
        self.potential_linear = Linear(both_spins(field_irreps), node_irreps)
        self.node_feats_linear = Linear(node_irreps, node_irreps)
        self.charge_embedding = Linear(both_spins(density_irreps), node_irreps)


class SpinUpdate(nn.Module):
    """Change of the density of an atom, from field, density and features at its place.

    With ``y = Lin(v) + Lin(g) + Lin(rho)``, invariants ``c = g . y`` and ``s`` of the element,
    ``x = g * MLP(c, s)`` is read by a gated readout as (change of rho, weights f up and down).
    """

    def __init__(
        self, *, node_irreps: Irreps, field_irreps: Irreps, density_irreps: Irreps, n_elements: int
    ) -> None:
        super().__init__()
        n = uniform_multiplicity(node_irreps)
        self.n_lm = Irreps(density_irreps).dim
        self.potential_embedding = SpinPotentialEmbedding(
            node_irreps, field_irreps, density_irreps
        )
        self.source_embedding = ElementTable(n_elements, n)
        self.dot_products = DotProducts(node_irreps)
        self.nonlinearity = RadialMLP([2 * n, 64, 64, 64, n])
        self.tp_out = ScalarWeighting(node_irreps)
        hidden = Irreps([(32, ir) for _, ir in Irreps(density_irreps)])
        self.readout = BiasedReadout(
            node_irreps, hidden, both_spins(density_irreps) + Irreps(f"{N_SPINS}x0e")
        )

    def prepare(self, node_feats: Tensor, element: Tensor) -> PreparedUpdate:
        """What does not depend on the density."""
        bias = self.potential_embedding.node_feats_linear(node_feats)
        return PreparedUpdate(node_feats, self.source_embedding.table()[element], bias)

    def forward(
        self, features: Tensor, density: Tensor, prepared: PreparedUpdate
    ) -> tuple[Tensor, Tensor]:
        """Evaluate.

        Args:
            features: [n_atoms, 2 n_features], normalised.
            density: [n_atoms, 2, n_lm] e Angstrom^l.

        Returns:
            change of the density [n_atoms, 2, n_lm], weights [n_atoms, 2] for
            :meth:`SpinTargets.hold`.
        """
        embedding = self.potential_embedding
        embedded = embedding.potential_linear(features) + prepared.bias
        embedded = embedded + embedding.charge_embedding(density.flatten(1))
        scalars = self.dot_products(prepared.node_feats, embedded)
        weights = self.nonlinearity(torch.cat([scalars, prepared.source], dim=-1))
        found = self.readout(self.tp_out(prepared.node_feats, weights))
        change = found[:, : N_SPINS * self.n_lm].view(-1, N_SPINS, self.n_lm)
        return change, found[:, N_SPINS * self.n_lm :]


@dataclass(frozen=True, slots=True)
class PreparedUpdate:
    """Features g [n_atoms, node_irreps.dim], element scalars [n_atoms, n] and ``Lin(g)``."""

    node_feats: Tensor
    source: Tensor
    bias: Tensor


class SpinFieldReadout(nn.Module):
    """Energy of an atom: ``MLP(h . Lin(rho + rho_0), h . Lin(v))``, h of the last layer.

    rho_0 is the density before the first change; the other readouts of this sum, such as
    ``OneBodyMLPFieldReadout``, add the invariants up, here they stand side by side.
    """

    def __init__(
        self, *, node_irreps: Irreps, field_irreps: Irreps, density_irreps: Irreps
    ) -> None:
        super().__init__()
        n = uniform_multiplicity(node_irreps)
        self.linear_up_q = Linear(both_spins(density_irreps), node_irreps, bias=True)
        self.linear_up_v = Linear(both_spins(field_irreps), node_irreps, bias=True)
        self.dot_products_q = DotProducts(node_irreps)
        self.dot_products_v = DotProducts(node_irreps)
        self.mlp = RadialMLP([2 * n, 128, 128, 128, 1])

    def forward(
        self, features: Tensor, density: Tensor, first: Tensor, node_feats: Tensor
    ) -> Tensor:
        """[n_atoms] eV from features [n_atoms, 2 n_features] and densities [n_atoms, 2, n_lm]."""
        from_density = self.linear_up_q((density + first).flatten(1))
        from_field = self.linear_up_v(features)
        invariants = [
            self.dot_products_q(node_feats, from_density),
            self.dot_products_v(node_feats, from_field),
        ]
        return self.mlp(torch.cat(invariants, dim=-1)).squeeze(-1)
