"""What is known of an atom from its element alone: feature vector and reference energy."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn


class ElementTable(nn.Module):
    """Trained numbers of each element, ``W[z, v] / sqrt(n_elements)``."""

    def __init__(self, n_elements: int, n_values: int) -> None:
        super().__init__()
        self.n_elements = n_elements
        self.weight = nn.Parameter(torch.randn(n_elements * n_values, dtype=torch.float64))

    def table(self) -> Tensor:
        """[n_elements, n_values]."""
        return self.weight.view(self.n_elements, -1) * (1.0 / sqrt(self.n_elements))


class NodeEmbedding(nn.Module):
    """Scalar features of each element."""

    def __init__(self, n_elements: int, n_channels: int) -> None:
        super().__init__()
        self.linear = ElementTable(n_elements, n_channels)

    def forward(self, element: Tensor) -> Tensor:
        """Element indices [n_atoms] to features [n_atoms, n_channels]."""
        return self.linear.table()[element]


class AtomicEnergies(nn.Module):
    """Reference energy of each element in eV, not trained.

    Args:
        energies: one for each element; for several heads, a list for each head.
    """

    atomic_energies: Tensor

    def __init__(self, energies: Sequence[float] | Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.register_buffer("atomic_energies", torch.tensor(energies, dtype=torch.float64))

    def forward(self, element: Tensor, head: Tensor | None = None) -> Tensor:
        """Element and head indices [n_atoms] to energies [n_atoms] in eV; one head needs none."""
        if self.atomic_energies.dim() == 1:
            return self.atomic_energies[element]
        return self.atomic_energies[head, element]
