"""Second derivatives of the energy by positions, exact also through the self-consistency."""

from __future__ import annotations

import torch
from torch import Tensor

from fpmace.observables.converged import ConvergedSolution, attach
from fpmace.observables.perturbation import jacobian_by_positions


def hessian(solution: ConvergedSolution) -> list[Tensor]:
    """Hessian of each graph, where the density follows at constant charge or Fermi level.

    Every row is a backward pass through the forces of a solution whose second derivatives are
    exact; the graphs of a batch share the passes.

    Returns:
        [3n, 3n] eV/Angstrom^2 for each graph of n atoms, row and column 3 i + a, symmetrised.
    """
    with torch.enable_grad():
        attached = attach(solution, order=2, positions=True)
        gradient = attached.slope(attached.positions)
        blocks = jacobian_by_positions(gradient, attached.positions, solution.batch)
    squares = [block.reshape(3 * len(block), 3 * len(block)) for block in blocks]
    return [0.5 * (square + square.T) for square in squares]
