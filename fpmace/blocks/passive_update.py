"""The passive update rule: each atom answers a potential as a passive dielectric does."""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, log
from typing import Annotated

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Bounds, Doc, Positive
from fpmace.blocks.linear import Linear
from fpmace.blocks.update_rule import NodeContext, UpdateRule, check_density
from fpmace.errors import ConfigError
from fpmace.registry import register_update_rule


@dataclass(frozen=True, slots=True)
class PassiveResponse:
    """``response`` [n_atoms, n_lm, n_lm]: S_i, symmetric positive semidefinite."""

    response: Tensor


@register_update_rule("OneBodyPassiveUpdate")
class OneBodyPassiveUpdate(UpdateRule):
    """u = -S w with S_i positive semidefinite, w the potentials conjugate to the multipoles.

    S_i = (1/m) sum_c a_c a_c^T + sum_l s_l 1_l: m equivariant vectors a_c of the density's own
    irreps, linear in the features of the atom, and an isotropic part s_l = softplus(linear in the
    scalars + bias) per degree. The derivative -S C of the map has real eigenvalues of 0 or less,
    so that the self-consistency has exactly one solution, found by one symmetric positive solve
    (solver ``cg``); charges fall as the level rises and polarizabilities are positive.

    The field features must be the conjugate potentials: one width, that of the density, the
    density's degrees, the own-site term, and ``field_feature_norms: conjugate``.

    Options:
        isotropic: add the isotropic part, without which an atom may be unable to take up charge.
        per_element: scales and biases for each element (else one for all).
    """

    is_affine = True
    is_one_body = True
    is_passive = True
    needs_conjugate_features = True

    def __init__(
        self,
        *,
        n_vectors: Annotated[
            int,
            Bounds(minimum=0),
            Doc("number m of vectors per atom; 0: the isotropic part alone"),
        ] = 8,
        isotropic: bool = True,
        start: Annotated[
            Positive,
            Doc(
                "S at the start of a training, e/V for charges, e Angstrom^2/V for dipoles",
            ),
        ] = 0.05,
        per_element: bool = True,
        node_irreps: Irreps,
        density_irreps: Irreps,
        n_elements: int,
    ) -> None:
        super().__init__()
        check_density(density_irreps, node_irreps)
        if n_vectors == 0 and not isotropic:
            raise ConfigError(
                "false with n_vectors 0 leaves no response at all; set one of them",
                where="isotropic",
            )
        self.n_vectors = n_vectors
        self.degrees = [ir.l for _, ir in Irreps(density_irreps)]
        rows = n_elements if per_element else 1
        n_degrees = len(self.degrees)
        if n_vectors:
            vectors = Irreps([(n_vectors, ir) for _, ir in Irreps(density_irreps)])
            self.vectors = Linear(node_irreps, vectors)
            scale = torch.full((rows, n_degrees), start**0.5, dtype=torch.float64)
            self.scale = nn.Parameter(scale)
        self.isotropic = isotropic
        if isotropic:
            self.strength = Linear(node_irreps, Irreps([(n_degrees, (0, 1))]))
            bias = torch.full((rows, n_degrees), log(expm1(start)), dtype=torch.float64)
            self.bias = nn.Parameter(bias)

    def prepare(self, context: NodeContext) -> PassiveResponse:
        response: Tensor | None = None
        if self.n_vectors:
            vectors = self._vectors(context)
            response = vectors @ vectors.mT
        if self.isotropic:
            diagonal = torch.diag_embed(self._strengths(context))
            response = diagonal if response is None else response + diagonal
        assert response is not None
        return PassiveResponse(response)

    def response_matrices(
        self, prepared: PassiveResponse, field_features: Tensor | None = None
    ) -> Tensor:
        return prepared.response

    def forward(self, field_features: Tensor, prepared: PassiveResponse) -> Tensor:
        return -torch.bmm(prepared.response, field_features.unsqueeze(-1)).squeeze(-1)

    def _vectors(self, context: NodeContext) -> Tensor:
        """[n_atoms, n_lm, m]: a_c / sqrt(m)."""
        scale = self._of_element(self.scale, context.element) * self.n_vectors**-0.5
        vectors = self._by_component(self.vectors(context.node_feats), self.n_vectors)
        return vectors * self._per_component(scale).unsqueeze(-1)

    def _by_component(self, flat: Tensor, n: int) -> Tensor:
        """[n_atoms, n_lm, n] from features of n vectors of the density's irreps."""
        pieces, start = [], 0
        for degree in self.degrees:
            dim = 2 * degree + 1
            block = flat[:, start : start + n * dim]
            pieces.append(block.reshape(-1, n, dim).mT)
            start += n * dim
        return torch.cat(pieces, dim=1)

    def _per_component(self, values: Tensor) -> Tensor:
        """[n_atoms, n_degrees] to [n_atoms, n_lm]: repeated over the components of a degree."""
        return torch.cat(
            [values[:, [i]].expand(-1, 2 * ell + 1) for i, ell in enumerate(self.degrees)], dim=1
        )

    def _strengths(self, context: NodeContext) -> Tensor:
        """[n_atoms, n_lm]: s_l repeated over the components of its degree."""
        values = self.strength(context.node_feats) + self._of_element(self.bias, context.element)
        return self._per_component(nn.functional.softplus(values))

    @staticmethod
    def _of_element(table: Tensor, element: Tensor) -> Tensor:
        return table[element] if table.shape[0] > 1 else table.expand(len(element), -1)
