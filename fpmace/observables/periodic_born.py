"""Born charges of local charges in periodic cells, by phase factors instead of coordinates."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.observables.converged import ConvergedSolution, attach


def born_charges_by_phases(solution: ConvergedSolution) -> Tensor:
    """Born effective charges [n_atoms, 3, 3] in e: element (i, a, b) is d(dipole_b)/d(R_ia).

    ``Z_iab = q_i 1_ab + sum_j dq_j/dR_ia g(s_j - s_i)_b + d(sum_j d_jb)/dR_ia`` with s the
    coordinates along the lattice vectors, and g(x) = sin(2 pi x) / (2 pi) in periodic directions,
    x in open ones: it depends on neither the choice of image nor the origin, and is exact where a
    charge answers to neighbours nearer than the cell is long (arXiv:2504.05169). Where the total
    charge is not conserved, it is the dipole about the atom itself that counts.
    """
    batch = solution.batch
    with torch.enable_grad():
        attached = attach(solution, order=1, positions=True)
        density, leaf = attached.found.density, attached.positions
        assert density is not None
        charges = density[:, 0]
        born = torch.diag_embed(charges.detach()[:, None].expand(-1, 3)).clone()
        scaled, cells = _lattice_coordinates(batch)
        for axis in range(3):
            along = _carried(charges, leaf, scaled[:, axis], batch.pbc[:, axis][batch.batch])
            born += along.unsqueeze(-1) * cells[:, axis].unsqueeze(1)
        if density.shape[1] >= 4:
            columns = [_slope(density[:, column].sum(), leaf) for column in (3, 1, 2)]
            born += torch.stack(columns, dim=-1)
    return born


def _lattice_coordinates(batch: Batch) -> tuple[Tensor, Tensor]:
    """Coordinates along the lattice vectors [n_atoms, 3], and those vectors per atom."""
    unit = torch.eye(3, dtype=batch.cell.dtype, device=batch.cell.device)
    empty = (torch.linalg.det(batch.cell).abs() == 0)[:, None, None]
    cell = torch.where(empty, unit, batch.cell)
    inverse = torch.linalg.inv(cell)[batch.batch]
    positions = batch.positions.detach()
    return torch.einsum("ni,nij->nj", positions, inverse), cell[batch.batch]


def _carried(charges: Tensor, leaf: Tensor, place: Tensor, periodic: Tensor) -> Tensor:
    """[n_atoms, 3]: sum_j dq_j/dR_ia g(s_j - s_i) along one lattice vector."""
    angle = 2.0 * pi * place
    sine = _slope((charges * angle.sin()).sum(), leaf)
    cosine = _slope((charges * angle.cos()).sum(), leaf)
    wave = (angle.cos().unsqueeze(-1) * sine - angle.sin().unsqueeze(-1) * cosine) / (2.0 * pi)
    straight = _slope((charges * place).sum(), leaf)
    straight = straight - place.unsqueeze(-1) * _slope(charges.sum(), leaf)
    return torch.where(periodic.unsqueeze(-1), wave, straight)


def _slope(value: Tensor, leaf: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(value, leaf, retain_graph=True, materialize_grads=True)[0].detach()
