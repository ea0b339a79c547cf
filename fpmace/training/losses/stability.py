"""Losses on the fixed-point map itself: they need no labels, and keep the SCF loop stable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fpmace.annotations import Positive
from fpmace.data.batch import Batch
from fpmace.data.noise import structure_noise
from fpmace.errors import ConfigError
from fpmace.metrics.averages import Average
from fpmace.metrics.residuals import output
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.scf.charge_control import ChargeKeeping
from fpmace.scf.jacobian_product import JacobianProduct
from fpmace.scf.problem import FixedPointProblem
from fpmace.training.losses.base import Loss


def the_problem(prediction: Observables) -> FixedPointProblem:
    return output(prediction, "problem")  # type: ignore[return-value]


def response_along(problem: FixedPointProblem, prediction: Observables, tangent: Tensor) -> Tensor:
    """``J p``: derivative of the map along a density change, [n_atoms, n_lm], differentiable."""
    with torch.enable_grad():
        levels = problem.spread(output(prediction, "fermi_level"))
        density = output(prediction, "density")
        point = density if density.requires_grad else density.detach().requires_grad_()
        new, _ = problem.evaluate(point, levels)
        return JacobianProduct(new, point)(tangent, create_graph=True)


@register_loss("fixedpoint_scf_stability")
class FixedPointStabilityLoss(Loss):
    """Mean over graphs and components of s(|J p|^2/|p|^2 - offset), p a random density change.

    J is the derivative of the map by the density; s is the softplus of steepness ``beta``
    (``smooth``) or the positive part.
    """

    requires_outputs = ("density", "fermi_level", "problem")

    def __init__(
        self,
        *,
        smooth: bool = True,
        beta: Positive = 10.0,
        offset: float = 1.0,
    ) -> None:
        self.smooth, self.beta, self.offset = smooth, beta, offset

    def average(self, batch: Batch, prediction: Observables) -> Average:
        problem = the_problem(prediction)
        tangent = structure_noise(batch, output(prediction, "density").detach())
        response = response_along(problem, prediction, tangent)
        growth = problem.sum(response.square()) / problem.sum(tangent.square())
        excess = growth - self.offset
        if self.smooth:
            return Average.of(functional.softplus(excess, beta=self.beta))
        return Average.of(functional.relu(excess))


@register_loss("final_terms_fixedpoint_scf_stability")
class FinalChangeLoss(Loss):
    """Mean over atoms and components of |G(q, mu) - q|: how far the answer is from a fixed point.

    This is the last change of the density in a loop, before mixing.
    """

    requires_outputs = ("density", "fermi_level", "problem")

    def average(self, batch: Batch, prediction: Observables) -> Average:
        problem = the_problem(prediction)
        density = output(prediction, "density")
        levels = problem.spread(output(prediction, "fermi_level"))
        return Average.of((problem.evaluate(density, levels)[0] - density).abs())


@register_loss("fermi_level_gradient")
class FermiLevelGradientLoss(Loss):
    """mean_g relu(dQ_g/dmu_g): the total charge must fall when the Fermi level rises."""

    requires_outputs = ("density", "fermi_level", "problem")

    def average(self, batch: Batch, prediction: Observables) -> Average:
        problem = the_problem(prediction)
        _, _, chi = problem.evaluate_with_fukui(
            output(prediction, "density"), output(prediction, "fermi_level"), create_graph=True
        )
        return Average.of(functional.relu(problem.sum(chi)))


@register_loss("response_bound")
class ResponseBoundLoss(Loss):
    """Mean over graphs of the squared excess of the extreme eigenvalues of J beyond two bounds.

    The density response is (1 - J)^-1: an eigenvalue of J that reaches 1 is a pole, where the
    self-consistent density runs away, and linear mixing b converges only above 1 - 2/b. The
    extreme eigenvectors come from ``iterations`` shifted power steps without derivatives, on
    changes of the density that keep the charge; one product with J carries the derivative.
    Direct training with this loss can be run self-consistently (see docs/results.md).
    """

    requires_outputs = ("density", "fermi_level", "problem")

    def __init__(self, *, upper: float = 0.5, lower: float = -5.0, iterations: int = 8) -> None:
        if not lower < upper < 1.0:
            raise ConfigError(
                f"loss response_bound: expected lower < upper < 1, got {lower!r}, {upper!r}"
            )
        self.upper, self.lower, self.iterations = upper, lower, iterations

    def average(self, batch: Batch, prediction: Observables) -> Average:
        problem = the_problem(prediction)
        density = output(prediction, "density").detach()
        levels = problem.spread(output(prediction, "fermi_level").detach())
        with torch.no_grad():
            operator = ChargeKeeping(problem, problem.linearise(density, levels))
            size, _ = self._power(operator, structure_noise(batch, density), torch.zeros(()))
            _, highest = self._power(operator, structure_noise(batch, density), size)
            _, lowest = self._power(operator, structure_noise(batch, density), -size)
        excess = functional.relu(self._eigenvalue(operator, prediction, highest) - self.upper)
        defect = functional.relu(self.lower - self._eigenvalue(operator, prediction, lowest))
        return Average.of(excess.square() + defect.square())

    def _power(
        self, operator: ChargeKeeping, vector: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Growth factor [n_graphs] and vector of the power iteration on J + shift."""
        problem = operator.problem
        growth = vector.new_ones(problem.n_graphs)
        shifts = problem.spread(shift.to(vector).expand(problem.n_graphs)).unsqueeze(-1)
        for _ in range(self.iterations):
            norm = problem.sum(vector.square().sum(-1)).sqrt().clamp_min(1e-30)
            vector = vector / problem.spread(norm).unsqueeze(-1)
            vector = operator.apply(vector) + shifts * vector
            growth = problem.sum(vector.square().sum(-1)).sqrt()
        return growth, vector

    def _eigenvalue(
        self, operator: ChargeKeeping, prediction: Observables, vector: Tensor
    ) -> Tensor:
        """Rayleigh quotient [n_graphs], differentiable by the parameters."""
        problem = operator.problem
        pushed = operator.project(response_along(problem, prediction, vector))
        norm = problem.sum(vector.square().sum(-1)).clamp_min(1e-30)
        return problem.sum((vector * pushed).sum(-1)) / norm
