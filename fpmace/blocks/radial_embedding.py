"""Radial features of the edges: transformed distance, basis, cutoff."""

from __future__ import annotations

from torch import Tensor, nn

from fpmace.blocks.distance_transform import DistanceTransform
from fpmace.blocks.radial import RadialBasis, polynomial_cutoff


class RadialEmbedding(nn.Module):
    """Radial functions and cutoff of the edges.

    Args:
        basis: functions of the distance.
        transform: what is done to the distance first; the cutoff sees it as it is.
        r_max: cutoff radius in Angstrom.
        num_polynomial_cutoff: order of the cutoff.
        apply_cutoff: multiply the basis with the cutoff; else the cutoff is given separately.
    """

    def __init__(
        self,
        basis: RadialBasis,
        transform: DistanceTransform | None = None,
        *,
        r_max: float,
        num_polynomial_cutoff: int,
        apply_cutoff: bool = True,
    ) -> None:
        super().__init__()
        self.basis, self.distance_transform = basis, transform
        self.apply_cutoff = apply_cutoff
        self.r_max = r_max
        self.order = num_polynomial_cutoff

    def forward(
        self, lengths: Tensor, source: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Functions [n_edges, n_basis], and the cutoff [n_edges] if they do not contain it.

        Args:
            lengths: [n_edges] Angstrom.
            source, target: [n_edges] int64, elements at the two ends.
        """
        cutoff = polynomial_cutoff(lengths, self.r_max, self.order)
        seen = lengths
        if self.distance_transform is not None:
            seen = self.distance_transform(lengths, source, target)
        functions = self.basis(seen)
        if self.apply_cutoff:
            return functions * cutoff.unsqueeze(-1), None
        return functions, cutoff
