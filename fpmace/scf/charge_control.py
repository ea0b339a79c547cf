"""How the total charge answers to the Fermi level, and changes that leave it as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from fpmace.scf.problem import FixedPointProblem, Linearisation

LEAST_ANSWER = 1e-3
"""Part of what its atoms do that a total charge must do to count as answering."""


def answer_to_level(
    problem: FixedPointProblem, t: Tensor, least: float = LEAST_ANSWER
) -> tuple[Tensor, Tensor]:
    """Response of the total charge to the Fermi level, and whether it is one to divide by.

    Args:
        t: [n_atoms, n_lm] derivative of the map by the level of the graph, e Angstrom^l/eV.
        least: the charge answers where its response exceeds this part of the sum of its atoms'.

    Returns:
        [n_graphs] e/eV, [n_graphs] bool.
    """
    total = problem.sum(t[:, 0])
    return total, total.abs() > least * problem.sum(t[:, 0].abs())


class ChargeKeeping:
    """J of a problem at constant charge: the Fermi level follows, so that no charge is gained.

    Where the level is held, or the charge does not answer to it, it is J itself.
    """

    def __init__(self, problem: FixedPointProblem, line: Linearisation) -> None:
        self.problem, self.line = problem, line
        t = line.fermi_response
        total, answers = answer_to_level(problem, t)
        if problem.target_charge is None:
            answers = torch.zeros_like(answers)
        pivot = torch.where(answers, total, torch.ones_like(total))
        kept = torch.where(problem.spread(answers).unsqueeze(-1), t, 0.0)
        self._direction = kept / problem.spread(pivot).unsqueeze(-1)

    def project(self, image: Tensor) -> Tensor:
        """Take the charge gained off a change of the density, [n_atoms, n_lm], along t."""
        charge = self.problem.spread(self.problem.charge(image)).unsqueeze(-1)
        return image - self._direction * charge

    def apply(self, tangent: Tensor) -> Tensor:
        """The product with a change of the density, [n_atoms, n_lm] both."""
        return self.project(self.line.apply(tangent))
