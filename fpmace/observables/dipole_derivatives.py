"""Derivatives of the dipole by field and positions, by automatic differentiation.

They carry the graph of a training step, and are exact to the order to which the density is
attached; :mod:`fpmace.observables.linear_responses` has the same quantities of one converged
solution.
"""

from __future__ import annotations

import torch
from torch import Tensor


def polarizability(dipole: Tensor, external_field: Tensor, *, create_graph: bool) -> Tensor:
    """[n_graphs, 3, 3] element (a, b) is d(dipole_a)/dE_b, E = -external_field; e Angstrom^2/V."""
    return -torch.stack(_rows(dipole, external_field, create_graph), dim=1)


def born_charges(dipole: Tensor, positions: Tensor, *, create_graph: bool) -> Tensor:
    """[n_atoms, 3, 3] element (i, a, b) is d(dipole_b)/d(R_ia), e."""
    return torch.stack(_rows(dipole, positions, create_graph), dim=-1)


def _rows(dipole: Tensor, leaf: Tensor, create_graph: bool) -> list[Tensor]:
    """Gradient of each component of [n_graphs, 3], summed over graphs, by a leaf.

    Zeros for a dipole that does not depend on the leaf, such as that of fixed charges on a field.
    """
    if not dipole.requires_grad:
        return [torch.zeros_like(leaf)] * 3
    rows = [
        torch.autograd.grad(
            dipole[:, axis].sum(),
            leaf,
            create_graph=create_graph,
            retain_graph=True,
            allow_unused=True,
        )[0]
        for axis in range(3)
    ]
    return [torch.zeros_like(leaf) if row is None else row for row in rows]
