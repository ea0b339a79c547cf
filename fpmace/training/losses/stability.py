"""Losses on the fixed-point map itself: they need no labels, and keep the SCF loop stable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fpmace.data.batch import Batch
from fpmace.errors import ConfigError
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.scf.problem import FixedPointProblem
from fpmace.training.losses.base import Loss
from fpmace.training.residuals import output


def the_problem(prediction: Observables) -> FixedPointProblem:
    return output(prediction, "problem")  # type: ignore[return-value]


def response_along(problem: FixedPointProblem, prediction: Observables, tangent: Tensor) -> Tensor:
    """``J p``: derivative of the map along a density change, [n_atoms, n_lm], differentiable.

    The product of a dual vector with J is linear in the dual vector, and its derivative is the
    product of J with the tangent; so no block needs forward-mode differentiation.
    """
    with torch.enable_grad():
        levels = problem.spread(output(prediction, "fermi_level"))
        density = output(prediction, "density")
        point = density if density.requires_grad else density.detach().requires_grad_()
        new, _ = problem.evaluate(point, levels)
        dual = torch.zeros_like(new, requires_grad=True)
        (pullback,) = torch.autograd.grad(new, point, dual, create_graph=True)
        (pushed,) = torch.autograd.grad(pullback, dual, tangent, create_graph=True)
    return pushed


@register_loss("fixedpoint_scf_stability")
class FixedPointStabilityLoss(Loss):
    """Mean over graphs and components of s(|J p|^2/|p|^2 - offset), p a random density change.

    J is the derivative of the map by the density; s is the softplus of steepness ``beta``
    (``smooth``) or the positive part.
    """

    requires_outputs = ("density", "fermi_level", "problem")

    def __init__(self, *, smooth: bool = True, beta: float = 10.0, offset: float = 1.0) -> None:
        if beta <= 0:
            raise ConfigError(f"loss fixedpoint_scf_stability: beta must be > 0, got {beta!r}")
        self.smooth, self.beta, self.offset = smooth, beta, offset

    def __call__(self, batch: Batch, prediction: Observables) -> Tensor:
        problem = the_problem(prediction)
        tangent = torch.randn_like(output(prediction, "density").detach())
        response = response_along(problem, prediction, tangent)
        growth = problem.sum(response.square()) / problem.sum(tangent.square())
        excess = growth - self.offset
        if self.smooth:
            return functional.softplus(excess, beta=self.beta).mean()
        return functional.relu(excess).mean()


@register_loss("final_terms_fixedpoint_scf_stability")
class FinalChangeLoss(Loss):
    """Mean over atoms and components of |G(q, mu) - q|: how far the answer is from a fixed point.

    This is the last change of the density in a loop, before mixing.
    """

    requires_outputs = ("density", "fermi_level", "problem")

    def __call__(self, batch: Batch, prediction: Observables) -> Tensor:
        problem = the_problem(prediction)
        density = output(prediction, "density")
        levels = problem.spread(output(prediction, "fermi_level"))
        return (problem.evaluate(density, levels)[0] - density).abs().mean()


@register_loss("fermi_level_gradient")
class FermiLevelGradientLoss(Loss):
    """mean_g relu(dQ_g/dmu_g): the total charge must fall when the Fermi level rises."""

    requires_outputs = ("density", "fermi_level", "problem")

    def __call__(self, batch: Batch, prediction: Observables) -> Tensor:
        problem = the_problem(prediction)
        _, _, chi = problem.evaluate_with_fukui(
            output(prediction, "density"), output(prediction, "fermi_level"), create_graph=True
        )
        return functional.relu(problem.sum(chi)).mean()
