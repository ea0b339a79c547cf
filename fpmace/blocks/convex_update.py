"""A passive update rule whose response depends on the potential: it saturates, or yields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import expm1, log
from typing import Annotated, Any

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn
from torch.nn.functional import softplus

from fpmace.annotations import Count, Doc, Positive, Unit
from fpmace.blocks.linear import Linear
from fpmace.blocks.passive_update import OneBodyPassiveUpdate, PassiveResponse
from fpmace.blocks.update_rule import NodeContext
from fpmace.registry import register_update_rule


@dataclass(frozen=True, slots=True)
class ConvexResponse:
    """What the rule keeps of a geometry.

    Attributes:
        linear: response at which the network is added.
        vectors: [n_atoms, m, n_lm] a_c.
        amplitude: [n_atoms, k] eV, positive.
        biases: [n_atoms, k] of both layers.
        weights: [k, n_inputs] of both layers, and [k, k] U between them.
        origin: energy [n_atoms] and its derivative by the inputs [n_atoms, n_inputs] at w = 0.
    """

    linear: PassiveResponse
    vectors: Tensor
    amplitude: Tensor
    biases: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor, Tensor]
    origin: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class _Point:
    """The network at one potential: its inputs' derivatives and those of its layers.

    Attributes:
        energy: [n_atoms] eV.
        slope: [n_atoms, n_inputs] derivative of the energy by the inputs.
        tangent: [n_atoms, n_inputs, n_lm] derivative of the inputs by the potential.
        slopes: of the activations of both layers, [n_atoms, k].
    """

    energy: Tensor
    slope: Tensor
    tangent: Tensor
    slopes: tuple[Tensor, Tensor]


@register_update_rule("OneBodyConvexUpdate")
class OneBodyConvexUpdate(OneBodyPassiveUpdate):
    """u = -dPhi/dw with Phi convex in the conjugate potentials w: the passive rule, not linear.

    Phi = 1/2 w.S w + N(w) - N(0) - w.N'(0), with S of ``OneBodyPassiveUpdate``, and

        N = sum_k v_k psi(s_k),  s = U psi(W x + b) + W' x + b',  x = (a_c . w, |w_l| of l > 0)

    an input-convex network of invariants: psi is softplus, U, v and the weights of the norms are
    positive, the vectors a_c, v and the biases follow from the features of the atom; |w_l| stands
    for sqrt(1 + |w_l|^2), in V. No field, no answer, as for the linear rule. The second
    derivative of Phi is positive semidefinite, so that the self-consistency has exactly one
    solution; each Newton step to it is one symmetric positive solve (solver ``newton_cg``).

    Source of the network: B. Amos, L. Xu, J. Z. Kolter, arXiv:1609.07152.
    """

    is_affine = False

    def __init__(
        self,
        *,
        n_invariants: Annotated[Count, Doc("number of vectors a_c per atom")] = 8,
        n_hidden: Annotated[Count, Doc("width of both layers of the network")] = 16,
        amplitude: Annotated[
            Positive, Unit("eV"), Doc("v_k at the start of a training, times n_hidden")
        ] = 0.05,
        node_irreps: Irreps,
        density_irreps: Irreps,
        n_elements: int,
        **passive: Any,
    ) -> None:
        super().__init__(
            node_irreps=node_irreps,
            density_irreps=density_irreps,
            n_elements=n_elements,
            **passive,
        )
        self.n_invariants, self.n_hidden = n_invariants, n_hidden
        n_norms = sum(degree > 0 for degree in self.degrees)
        vectors = Irreps([(n_invariants, ir) for _, ir in Irreps(density_irreps)])
        self.directions = Linear(node_irreps, vectors)
        self.drive = Linear(node_irreps, Irreps([(3 * n_hidden, (0, 1))]))
        first = log(expm1(amplitude / n_hidden))
        self.amplitude = nn.Parameter(torch.full((n_hidden,), first, dtype=torch.float64))
        self.inputs = nn.ParameterList(
            nn.Parameter(torch.randn(n_hidden, n_invariants, dtype=torch.float64))
            for _ in range(2)
        )
        self.norms = nn.ParameterList(
            nn.Parameter(torch.full((n_hidden, n_norms), -2.0, dtype=torch.float64))
            for _ in range(2)
        )
        self.hidden = nn.Parameter(torch.full((n_hidden, n_hidden), -2.0, dtype=torch.float64))

    def prepare(self, context: NodeContext) -> ConvexResponse:  # type: ignore[override]
        one, two, strength = self.drive(context.node_feats).split(self.n_hidden, dim=-1)
        vectors = self._by_component(self.directions(context.node_feats), self.n_invariants)
        prepared = ConvexResponse(
            linear=super().prepare(context),
            vectors=vectors.mT * self.n_invariants**-0.5,
            amplitude=softplus(strength + self.amplitude),
            biases=(one, two),
            weights=self._weights(),
        )
        at = self._evaluate(torch.zeros_like(context.local_density), prepared)
        return replace(prepared, origin=(at.energy, at.slope))

    def forward(self, field_features: Tensor, prepared: ConvexResponse) -> Tensor:  # type: ignore[override]
        at = self._evaluate(field_features, prepared)
        more = torch.einsum("ai,aim->am", at.slope, at.tangent)
        return super().forward(field_features, prepared.linear) - more

    def response_matrices(  # type: ignore[override]
        self, prepared: ConvexResponse, field_features: Tensor | None = None
    ) -> Tensor:
        assert field_features is not None
        at = self._evaluate(field_features, prepared)
        first, second, upper = prepared.weights
        last = prepared.amplitude * at.slopes[1]
        mixed = (upper * at.slopes[0].unsqueeze(1)) @ first + second
        # softplus'' = softplus' (1 - softplus').
        curved = [(last @ upper) * at.slopes[0] * (1 - at.slopes[0]), last * (1 - at.slopes[1])]
        inner = first.mT @ (curved[0].unsqueeze(-1) * first)
        inner = inner + mixed.mT @ (curved[1].unsqueeze(-1) * mixed)
        response = prepared.linear.response + at.tangent.mT @ inner @ at.tangent
        return response + self._norm_curvature(field_features, at)

    def energy_beyond_quadratic(self, field_features: Tensor, prepared: ConvexResponse) -> Tensor:
        """w.dPhi/dw / 2 - Phi of the network, [n_atoms] eV."""
        at = self._evaluate(field_features, prepared)
        moved = torch.einsum("ai,aim->am", at.slope, at.tangent)
        return 0.5 * (moved * field_features).sum(-1) - at.energy

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of both layers, those of the norms positive, and the positive U between them."""
        scale = (self.n_invariants + len(self.degrees)) ** -0.5
        pairs = zip(self.inputs, self.norms, strict=True)
        first, second = (torch.cat([x, softplus(y)], dim=1) * scale for x, y in pairs)
        return first, second, softplus(self.hidden) / self.n_hidden

    def _evaluate(self, potential: Tensor, prepared: ConvexResponse) -> _Point:
        tangent, inputs = (
            [prepared.vectors],
            [(prepared.vectors @ potential.unsqueeze(-1))[..., 0]],
        )
        for part in self._vectors_of_potential():
            size = _length(potential[:, part])
            row = torch.zeros_like(potential)
            row[:, part] = potential[:, part] / size
            tangent.append(row.unsqueeze(1))
            inputs.append(size)
        x = torch.cat(inputs, dim=-1)
        first, second, upper = prepared.weights
        one = x @ first.T + prepared.biases[0]
        two = softplus(one) @ upper.T + x @ second.T + prepared.biases[1]
        slopes = torch.sigmoid(one), torch.sigmoid(two)
        last = prepared.amplitude * slopes[1]
        slope = ((last @ upper) * slopes[0]) @ first + last @ second
        energy = (prepared.amplitude * softplus(two)).sum(-1)
        if prepared.origin is not None:
            m = self.n_invariants
            first_slope = prepared.origin[1][:, :m]
            energy = energy - prepared.origin[0] - (first_slope * x[:, :m]).sum(-1)
            slope = torch.cat([slope[:, :m] - first_slope, slope[:, m:]], dim=1)
        return _Point(energy, slope, torch.cat(tangent, dim=1), slopes)

    def _norm_curvature(self, potential: Tensor, at: _Point) -> Tensor:
        """[n_atoms, n_lm, n_lm] from the curvature of the norms."""
        n = potential.shape[1]
        total = potential.new_zeros(potential.shape[0], n, n)
        for index, part in enumerate(self._vectors_of_potential()):
            size = _length(potential[:, part]).unsqueeze(-1)
            unit = at.tangent[:, self.n_invariants + index, part]
            eye = torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device)
            bend = (eye - unit.unsqueeze(-1) * unit.unsqueeze(1)) / size
            total[:, part, part] = at.slope[:, self.n_invariants + index, None, None] * bend
        return total

    def _vectors_of_potential(self) -> list[slice]:
        """Components of each degree above 0."""
        return [slice(degree**2, (degree + 1) ** 2) for degree in self.degrees if degree > 0]


def _length(vector: Tensor) -> Tensor:
    """[n_atoms, 1] sqrt(1 + |v|^2): convex, and smooth at zero."""
    return (1.0 + vector.square().sum(-1, keepdim=True)).sqrt()
