"""Harmonic vibrations from a Hessian, and infrared intensities from Born effective charges."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import Literal

import torch
from ase import units
from torch import Tensor

WAVENUMBER = sqrt(units._e / (units._amu * 1e-20)) / (2.0 * pi * units._c * 100.0)
"""1/cm of a normal mode whose mass-weighted force constant is 1 eV/(Angstrom^2 amu)."""

INTENSITY = units._Nav * units._e**2 / (units._amu * 12.0 * units._eps0 * units._c**2) * 1e-3
"""km/mol of a mode whose dipole derivative is 1 e/sqrt(amu): N_A |dD/dQ|^2/(12 eps_0 c^2)."""

RigidMotions = Literal["none", "translations", "all"]
"""Motions taken out of the Hessian before it is diagonalised."""


@dataclass(frozen=True, slots=True)
class Vibrations:
    """Harmonic vibrations of one structure, in ascending order.

    Attributes:
        frequencies: [n_modes] 1/cm; imaginary ones are given as negative numbers.
        modes: [n_modes, n_atoms, 3] displacement per normal coordinate dR/dQ, amu^(-1/2).
        reduced_masses: [n_modes] amu, 1/|dR/dQ|^2.
        intensities: [n_modes] km/mol, or None without Born charges.
    """

    frequencies: Tensor
    modes: Tensor
    reduced_masses: Tensor
    intensities: Tensor | None


def vibrations(
    hessian: Tensor,
    masses: Tensor,
    positions: Tensor,
    *,
    born_charges: Tensor | None = None,
    remove: RigidMotions = "none",
) -> Vibrations:
    """Diagonalise the mass-weighted Hessian.

    Intensities are those of the double harmonic approximation, N_A |dD/dQ|^2 / (12 eps_0 c^2)
    (E. B. Wilson, J. C. Decius, P. C. Cross, Molecular Vibrations, McGraw-Hill 1955, ch. 7).

    Args:
        hessian: [3n, 3n] eV/Angstrom^2.
        masses: [n] amu.
        positions: [n, 3] Angstrom, for the rotations.
        born_charges: [n, 3, 3] e, element (i, a, b) is d(dipole_b)/d(R_ia).
        remove: motions that leave the energy unchanged; modes orthogonal to them remain.
            Rotations do so only at a stationary point and without lattice or field.
    """
    root = masses.to(hessian).sqrt().repeat_interleave(3)
    weighted = hessian / (root[:, None] * root[None, :])
    basis = _orthogonal_to(_rigid_vectors(masses.to(hessian), positions, remove))
    squares, vectors = torch.linalg.eigh(basis.T @ weighted @ basis)
    frequencies = squares.sign() * squares.abs().sqrt() * WAVENUMBER
    modes = ((basis @ vectors) / root[:, None]).T
    intensities = None
    if born_charges is not None:
        slope = modes @ born_charges.to(hessian).reshape(-1, 3)
        intensities = INTENSITY * slope.square().sum(-1)
    reduced = 1.0 / modes.square().sum(-1)
    return Vibrations(frequencies, modes.reshape(-1, len(masses), 3), reduced, intensities)


def _rigid_vectors(masses: Tensor, positions: Tensor, remove: RigidMotions) -> Tensor:
    """Mass-weighted rigid motions as columns [3n, k], not orthogonal."""
    root = masses.sqrt()[:, None, None]
    unit = torch.eye(3, dtype=masses.dtype, device=masses.device)
    columns = [positions.new_zeros(3 * len(masses), 0).to(masses)]
    if remove != "none":
        columns.append((root * unit).reshape(-1, 3))
    if remove == "all":
        centre = (masses[:, None] * positions).sum(0) / masses.sum()
        arm = (positions - centre).to(masses)
        turned = torch.linalg.cross(unit.expand(len(arm), 3, 3), arm[:, None, :], dim=-1)
        columns.append((root * turned.transpose(1, 2)).reshape(-1, 3))
    return torch.cat(columns, dim=1)


def _orthogonal_to(vectors: Tensor) -> Tensor:
    """Orthonormal columns that span everything orthogonal to the given columns."""
    if vectors.shape[1] == 0:
        return torch.eye(len(vectors), dtype=vectors.dtype, device=vectors.device)
    left, sizes, _ = torch.linalg.svd(vectors, full_matrices=True)
    rank = int((sizes > 1e-6 * sizes[0]).sum())
    return left[:, rank:]
