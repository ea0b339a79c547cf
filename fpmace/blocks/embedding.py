"""What is known of an atom from its element alone: feature vector and reference energy."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn


class NodeEmbedding(nn.Module):
    """Scalar features of each element, ``h_v = W[z, v] / sqrt(n_elements)``."""

    def __init__(self, n_elements: int, n_channels: int) -> None:
        super().__init__()
        self.n_elements, self.n_channels = n_elements, n_channels
        self.linear = _Table(n_elements * n_channels)

    def forward(self, element: Tensor) -> Tensor:
        """Element indices [n_atoms] to features [n_atoms, n_channels]."""
        return self.table()[element]

    def table(self) -> Tensor:
        """[n_elements, n_channels]."""
        weight = self.linear.weight.view(self.n_elements, self.n_channels)
        return weight * (1.0 / sqrt(self.n_elements))


class _Table(nn.Module):
    def __init__(self, numel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(numel, dtype=torch.float64))


class AtomicEnergies(nn.Module):
    """Reference energy of each element in eV, not trained."""

    atomic_energies: Tensor

    def __init__(self, energies: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("atomic_energies", torch.tensor(energies, dtype=torch.float64))

    def forward(self, element: Tensor) -> Tensor:
        """Element indices [n_atoms] to energies [n_atoms] in eV."""
        return self.atomic_energies[element]
