"""The electrostatics by closed forms (open) and direct reciprocal sums (periodic)."""

from __future__ import annotations

from collections.abc import Sequence

from fpmace.boundaries import OPEN
from fpmace.electrostatics import gaussian, kspace
from fpmace.electrostatics.base import Electrostatics
from fpmace.electrostatics.corrections import make_correction, make_flat
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.electrostatics.padding import Padding
from fpmace.electrostatics.parts import PartsPlan, SummedPart
from fpmace.electrostatics.periodic import PeriodicPart, periodic_part
from fpmace.electrostatics.plan import BatchGeometry
from fpmace.electrostatics.realspace import OpenPart, open_part
from fpmace.registry import register_electrostatics


@register_electrostatics("direct")
class GTOElectrostatics(Electrostatics):
    """Closed forms between all pairs where open, direct sums over k-vectors where periodic.

    Exact derivatives of any order, all boundaries; cost and memory grow with the square of the
    number of atoms.

    Attributes:
        kspace_cutoff: k_c in 1/Angstrom.
    """

    def __init__(self, options: ElectrostaticsOptions) -> None:
        super().__init__(options)
        self.kspace_cutoff = cutoff_of(options)

    def make_plan(self, geometry: BatchGeometry) -> PartsPlan:
        return PartsPlan(self, geometry, self.parts(geometry, range(geometry.n_graphs)))

    def parts(self, geometry: BatchGeometry, graphs: Sequence[int]) -> tuple[SummedPart, ...]:
        """Some graphs, those in the open and the others apart."""
        parts: list[SummedPart] = []
        for wanted, make in ((False, self.periodic), (True, self.open)):
            chosen = [graph for graph in graphs if (geometry.boundaries[graph] == OPEN) == wanted]
            if chosen:
                every = len(chosen) == geometry.n_graphs
                parts.append(make(geometry, geometry.padding(None if every else chosen)))
        return tuple(parts)

    def open(self, geometry: BatchGeometry, padding: Padding) -> OpenPart:
        """The part of the open graphs."""
        return open_part(self, padding, padding.pad(geometry.positions))

    def periodic(self, geometry: BatchGeometry, padding: Padding) -> PeriodicPart:
        """The part of the graphs summed in reciprocal space."""
        positions = padding.pad(geometry.positions)
        host_cell = geometry.host_cell[list(padding.members)]
        k = kspace.make_kvectors(
            padding.of_graphs(geometry.cell),
            self.kspace_cutoff,
            self.options.kspace_window,
            host_cell,
        )
        kinds = [geometry.boundaries[graph] for graph in padding.members]
        flags = [geometry.flags[graph] for graph in padding.members]
        return periodic_part(
            self,
            padding,
            positions,
            k,
            make_correction(self, positions, k.volume, kinds),
            make_flat(self, positions, k.volume, flags),
        )


def cutoff_of(options: ElectrostaticsOptions) -> float:
    """k_c of sums over reciprocal lattice vectors, 1/Angstrom."""
    return gaussian.kspace_cutoff(
        options.kspace_cutoff_factor,
        max(options.density_max_l, options.feature_max_l),
        (options.smearing_width, *options.feature_widths),
    )
