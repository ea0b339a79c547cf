"""The derivative of the map with respect to the density, as an operator.

J = (du/dv) (dv/d_rho): the second factor is the linear electrostatics, the first the response of
the update rule. For one-body rules it is a small matrix per atom, built once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fpmace.electrostatics.plan import make_padding

if TYPE_CHECKING:
    from fpmace.models.fixed_point_core import FixedPointCore
    from fpmace.models.local_state import LocalState


class OneBodyLinearisation:
    """J by response matrices [n_atoms, n_lm, n_features], one per atom."""

    cheap_dense = True

    def __init__(self, model: FixedPointCore, local: LocalState, features: Tensor) -> None:
        self._electrostatics = model.electrostatics
        self._plan = local.plan.detach()
        response = _response_matrices(model, local, features)
        self._response = response / model.field_feature_norms
        ones = torch.ones(features.shape[0], dtype=features.dtype, device=features.device)
        step = self._electrostatics.fermi_features(ones)
        self.fermi_response = torch.einsum("aif,af->ai", self._response, step)

    def apply(self, tangent: Tensor) -> Tensor:
        raw = self._electrostatics.potential_features(self._plan, tangent)
        return torch.bmm(self._response, raw.unsqueeze(-1)).squeeze(-1)

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        raw = torch.bmm(cotangent.unsqueeze(1), self._response).squeeze(1)
        return self._electrostatics.potential_features_transpose(self._plan, raw)

    def dense(self) -> Tensor:
        plan = self._plan
        operator = self._electrostatics.dense_operator(plan)
        n_lm, n_features = self._response.shape[1:]
        padding = make_padding(plan.ptr.tolist(), None, operator.device)
        response = padding.pad(self._response)
        blocks = operator.view(-1, n_features, operator.shape[-1])
        product = torch.bmm(response.reshape(-1, n_lm, n_features), blocks)
        return product.view(plan.n_graphs, plan.n_max * n_lm, plan.n_max * n_lm)


def _response_matrices(model: FixedPointCore, local: LocalState, features: Tensor) -> Tensor:
    with torch.enable_grad():
        probe = features.detach().requires_grad_()
        density = model.update_rule(probe, local.prepared)
        rows = [
            torch.autograd.grad(density[:, i].sum(), probe, retain_graph=True)[0]
            for i in range(density.shape[1])
        ]
    return torch.stack(rows, dim=1).detach()


class AutogradLinearisation:
    """J by automatic differentiation of the update rule, for rules that couple atoms."""

    cheap_dense = False

    def __init__(self, model: FixedPointCore, local: LocalState, features: Tensor) -> None:
        self._electrostatics = model.electrostatics
        self._plan = local.plan.detach()
        self._norms = model.field_feature_norms
        with torch.enable_grad():
            self._probe = features.detach().requires_grad_()
            self._density = model.update_rule(self._probe, local.prepared)
            self._dual = torch.zeros_like(self._density, requires_grad=True)
            # The vector product is linear in the dual variable: its derivative is the product
            # with the Jacobian itself, without forward-mode support in every block.
            (self._pullback,) = torch.autograd.grad(
                self._density, self._probe, self._dual, create_graph=True
            )
        ones = torch.ones(features.shape[0], dtype=features.dtype, device=features.device)
        self.fermi_response = self._push(self._electrostatics.fermi_features(ones))

    def apply(self, tangent: Tensor) -> Tensor:
        return self._push(self._electrostatics.potential_features(self._plan, tangent))

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(self._density, self._probe, cotangent, retain_graph=True)
        raw = pulled / self._norms
        return self._electrostatics.potential_features_transpose(self._plan, raw)

    def dense(self) -> Tensor:
        plan = self._plan
        n_lm = self._density.shape[1]
        padding = make_padding(plan.ptr.tolist(), None, self._density.device)
        unit = torch.zeros_like(padding.pad(self._density.detach()))
        columns = []
        for slot in range(plan.n_max):
            for component in range(n_lm):
                unit[:, slot, component] = 1.0
                column = self.apply(padding.unpad(unit))
                unit[:, slot, component] = 0.0
                columns.append(padding.pad(column).flatten(1))
        return torch.stack(columns, dim=-1)

    def _push(self, raw: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(
            self._pullback, self._dual, raw / self._norms, retain_graph=True
        )
        return pushed.detach()
