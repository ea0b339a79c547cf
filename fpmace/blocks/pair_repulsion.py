"""Repulsion of nuclei at short distance, added to the energy of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from fpmace.annotations import Doc
from fpmace.blocks.distance_transform import ElementPairs, Trainable, constant
from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.radial import polynomial_cutoff
from fpmace.registry import register_pair_repulsion, set_base

COULOMB, BOHR = 14.3996, 0.529
"""eV Angstrom and Angstrom, rounded as the published models have them."""


class PairRepulsion(nn.Module, ABC):
    """Energy of pairs of atoms that does not depend on the features.

    The constructor may ask for the context arguments ``atomic_numbers`` and ``cutoff_power``
    (``num_polynomial_cutoff`` of the model).
    """

    @abstractmethod
    def forward(self, lengths: Tensor, element: Tensor, edges: EdgeLayout) -> Tensor:
        """Half of the energy of its pairs for each atom.

        Args:
            lengths: [n_edges] Angstrom.
            element: [n_atoms] int64.
            edges: connectivity.

        Returns:
            [n_atoms] eV.
        """


set_base("pair_repulsion", PairRepulsion)


@register_pair_repulsion("ZBL")
class ZBLRepulsion(PairRepulsion, ElementPairs):
    """Screened Coulomb repulsion up to the sum of the covalent radii.

    ``V = Z_i Z_j e^2/(4 pi eps0 d) phi(d/a) f(d)``, ``a = 0.4543 a_0 / (Z_i^0.3 + Z_j^0.3)``, phi
    a sum of four exponentials and f the polynomial cutoff at the sum of the covalent radii.
    J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Solids (1985).
    """

    c: Tensor
    a_exp: Tensor
    a_prefactor: Tensor
    numbers: Tensor

    def __init__(
        self,
        *,
        trainable: Trainable = False,
        scale: Annotated[float, Doc("factor on the energy")] = 1.0,
        atomic_numbers: Sequence[int],
        cutoff_power: int,
    ) -> None:
        super().__init__(atomic_numbers)
        self.scale, self.power = scale, cutoff_power
        numbers = torch.tensor(list(atomic_numbers), dtype=torch.float64)
        self.register_buffer("numbers", numbers, persistent=False)
        constant(self, "c", (0.1818, 0.5099, 0.2802, 0.02817), False)
        constant(self, "a_exp", 0.300, trainable)
        constant(self, "a_prefactor", 0.4543, trainable)

    def forward(self, lengths: Tensor, element: Tensor, edges: EdgeLayout) -> Tensor:
        source, target = element[edges.sender], element[edges.receiver]
        z_source, z_target = self.numbers[source], self.numbers[target]
        screening = self.a_prefactor * BOHR / (z_source**self.a_exp + z_target**self.a_exp)
        x = lengths / screening
        terms = [
            c * torch.exp(-rate * x)
            for c, rate in zip(self.c, (3.2, 0.9423, 0.4028, 0.2016), strict=True)
        ]
        cutoff = polynomial_cutoff(lengths, self.sum_of_radii(source, target), self.power)
        energy = COULOMB * z_source * z_target / lengths * sum(terms) * cutoff
        return (0.5 * self.scale) * edges.sum_to_receivers(energy)
