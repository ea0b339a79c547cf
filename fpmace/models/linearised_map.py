"""The derivative of the map with respect to the density, as an operator.

J = (du/dv) (dv/d_rho): the second factor is the linear electrostatics, the first the response of
the update rule. For one-body rules it is a small matrix per atom, built once.

Both forms take the plan of the electrostatics, the ``update`` (normalised features
[n_atoms, n_features] to a change of the density [n_atoms, n_lm], the local features fixed), the
``norms`` [n_features] that raw features are divided by, and the ``features`` to expand about.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fpmace.electrostatics.padding import Padding, matrices_by_columns
from fpmace.electrostatics.plan import Plan
from fpmace.scf.jacobian_product import JacobianProduct


class OneBodyLinearisation:
    """J by response matrices [n_atoms, n_lm, n_features], one per atom."""

    def __init__(
        self,
        plan: Plan,
        update: Callable[[Tensor], Tensor],
        norms: Tensor,
        features: Tensor,
    ) -> None:
        self._plan = plan.detach()
        self.cheap_dense = plan.has_dense
        self._response = _response_matrices(update, features) / norms
        ones = torch.ones(features.shape[0], dtype=features.dtype, device=features.device)
        step = plan.layout.fermi_features(ones)
        self.fermi_response = torch.einsum("aif,af->ai", self._response, step)

    def apply(self, tangent: Tensor) -> Tensor:
        raw = self._plan.potential_features(tangent)
        return torch.bmm(self._response, raw.unsqueeze(-1)).squeeze(-1)

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        raw = torch.bmm(cotangent.unsqueeze(1), self._response).squeeze(1)
        return self._plan.potential_features_transpose(raw)

    def dense(self) -> Tensor:
        plan = self._plan
        operator = plan.dense_features()
        n_lm, n_features = self._response.shape[1:]
        response = plan.padding.pad(self._response)
        blocks = operator.view(-1, n_features, operator.shape[-1])
        product = torch.bmm(response.reshape(-1, n_lm, n_features), blocks)
        return product.view(operator.shape[0], -1, operator.shape[2])


def _response_matrices(update: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    with torch.enable_grad():
        probe = features.detach().requires_grad_()
        density = update(probe)
        rows = [
            torch.autograd.grad(density[:, i].sum(), probe, retain_graph=True)[0]
            for i in range(density.shape[1])
        ]
    return torch.stack(rows, dim=1).detach()


class MapLinearisation:
    """J by automatic differentiation of the whole map, for maps that see the density directly.

    Args:
        evaluate: [n_atoms, n] to the same; the electrostatics in it detached.
        density: where to linearise.
        padding: padded tensors of the graphs.
    """

    cheap_dense = False

    def __init__(
        self, evaluate: Callable[[Tensor], Tensor], density: Tensor, padding: Padding
    ) -> None:
        with torch.enable_grad():
            self._probe = density.detach().requires_grad_()
            self._value = evaluate(self._probe)
            self._push = JacobianProduct(self._value, self._probe)
        self._padding = padding
        self.fermi_response = torch.zeros_like(density)

    def apply(self, tangent: Tensor) -> Tensor:
        return self._push(tangent)

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(self._value, self._probe, cotangent, retain_graph=True)
        return pulled

    def dense(self) -> Tensor:
        like = self._value.detach()
        return matrices_by_columns(self.apply, self._padding, like.shape[1], like)


class AutogradLinearisation:
    """J by automatic differentiation of the update rule, for rules that couple atoms."""

    cheap_dense = False

    def __init__(
        self,
        plan: Plan,
        update: Callable[[Tensor], Tensor],
        norms: Tensor,
        features: Tensor,
    ) -> None:
        self._plan = plan.detach()
        self._norms = norms
        with torch.enable_grad():
            self._probe = features.detach().requires_grad_()
            self._density = update(self._probe)
            self._push = JacobianProduct(self._density, self._probe)
        ones = torch.ones(features.shape[0], dtype=features.dtype, device=features.device)
        self.fermi_response = self._push(plan.layout.fermi_features(ones) / norms)

    def apply(self, tangent: Tensor) -> Tensor:
        raw = self._plan.potential_features(tangent)
        return self._push(raw / self._norms)

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(self._density, self._probe, cotangent, retain_graph=True)
        raw = pulled / self._norms
        return self._plan.potential_features_transpose(raw)

    def dense(self) -> Tensor:
        like = self._density.detach()
        return matrices_by_columns(self.apply, self._plan.padding, like.shape[1], like)
