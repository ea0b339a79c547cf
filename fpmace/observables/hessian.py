"""Second derivatives of the energy by positions, exact also through the self-consistency."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.models.geometry import element_index, make_geometry
from fpmace.observables.converged import ConvergedSolution, attach
from fpmace.observables.linear_responses import jacobian_by_positions


def hessian(solution: ConvergedSolution) -> list[Tensor]:
    """Hessian of each graph at constant charge or constant Fermi level.

    Every row is a backward pass through the forces of a solution whose second derivatives are
    exact; the graphs of a batch share the passes.

    Returns:
        [3n, 3n] eV/Angstrom^2 for each graph of n atoms, row and column 3 i + a, symmetrised.
    """
    with torch.enable_grad():
        attached = attach(solution, order=2, positions=True)
        return _from_energy(attached.energy, attached.positions, solution.batch)


def local_hessian(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The same for a model without self-consistency (MACE, ScaleShiftMACE)."""
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        moved = dataclasses.replace(batch, positions=positions)
        element = element_index(model.get_buffer("atomic_numbers"), moved)
        energy = model(make_geometry(moved, element)).energy
        return _from_energy(energy, positions, batch)


def _from_energy(energy: Tensor, positions: Tensor, batch: Batch) -> list[Tensor]:
    (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    blocks = jacobian_by_positions(gradient, positions, batch)
    squares = [block.reshape(3 * len(block), 3 * len(block)) for block in blocks]
    return [0.5 * (square + square.T) for square in squares]
