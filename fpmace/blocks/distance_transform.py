"""Distances in units of the two elements, for the radial basis to act on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from fpmace.annotations import Doc
from fpmace.registry import register_distance_transform, set_base

Trainable = Annotated[bool, Doc("train its numbers, which are constants otherwise")]


def constant(module: nn.Module, name: str, value: float | Sequence[float], train: bool) -> None:
    """Give a module a number that its file keeps, trained or not."""
    tensor = torch.tensor(value, dtype=torch.float64)
    if train:
        module.register_parameter(name, nn.Parameter(tensor))
    else:
        module.register_buffer(name, tensor)


class ElementPairs(nn.Module):
    """Covalent radii of the elements, Angstrom; those of ASE unless a file has others.

    B. Cordero et al., Dalton Trans. 2832 (2008).
    """

    covalent_radii: Tensor

    def __init__(self, atomic_numbers: Sequence[int]) -> None:
        super().__init__()
        constant(self, "covalent_radii", [float(covalent_radii[z]) for z in atomic_numbers], False)

    def sum_of_radii(self, source: Tensor, target: Tensor) -> Tensor:
        """[n_edges] Angstrom, of the elements [n_edges] at the two ends."""
        return self.covalent_radii[source] + self.covalent_radii[target]


class DistanceTransform(ElementPairs, ABC):
    """Maps the distance of two atoms to what the radial basis sees.

    The constructor may ask for the context argument ``atomic_numbers``.
    """

    @abstractmethod
    def forward(self, lengths: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Transform distances.

        Args:
            lengths: [n_edges] Angstrom.
            source, target: [n_edges] int64, elements at the two ends.
        """


set_base("distance_transform", DistanceTransform)


@register_distance_transform("Agnesi")
class AgnesiTransform(DistanceTransform):
    """``1 / (1 + a u^q / (1 + u^(q - p)))`` with u = 2 d / (sum of covalent radii).

    Falls from 1 to 0, steepest near the length of a bond. W. C. Witt et al., J. Chem. Phys. 159,
    164101 (2023), with a, q and p as given there.
    """

    a: Tensor
    q: Tensor
    p: Tensor

    def __init__(self, *, trainable: Trainable = False, atomic_numbers: Sequence[int]) -> None:
        super().__init__(atomic_numbers)
        for name, value in (("q", 0.9183), ("p", 4.5791), ("a", 1.0805)):
            constant(self, name, value, trainable)

    def forward(self, lengths: Tensor, source: Tensor, target: Tensor) -> Tensor:
        u = 2.0 * lengths / self.sum_of_radii(source, target)
        return 1.0 / (1.0 + self.a * u**self.q / (1.0 + u ** (self.q - self.p)))


@register_distance_transform("Soft")
class SoftTransform(DistanceTransform):
    """The distance, but nearly constant (Angstrom) below 3/4 of the sum R of covalent radii.

    ``p + (d - p) (1 + tanh(alpha (d - m) / (s - p))) / 2`` with p = 3/4 R, s = 4/3 R and m
    halfway between them.
    """

    alpha: Tensor

    def __init__(self, *, trainable: Trainable = False, atomic_numbers: Sequence[int]) -> None:
        super().__init__(atomic_numbers)
        constant(self, "alpha", 4.0, trainable)

    def forward(self, lengths: Tensor, source: Tensor, target: Tensor) -> Tensor:
        radii = self.sum_of_radii(source, target)
        low, high = 0.75 * radii, (4.0 / 3.0) * radii
        step = torch.tanh(self.alpha * (lengths - 0.5 * (low + high)) / (high - low))
        return low + (lengths - low) * 0.5 * (1.0 + step)
