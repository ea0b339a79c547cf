"""The electrostatics that is cheaper for each structure: direct sums, or sums on a mesh."""

from __future__ import annotations

import logging
from functools import lru_cache
from math import pi

from fpmace.boundaries import OPEN
from fpmace.electrostatics.base import Electrostatics
from fpmace.electrostatics.gto import GTOElectrostatics
from fpmace.electrostatics.mesh.accuracy import n_points
from fpmace.electrostatics.mesh.grids import Grid
from fpmace.electrostatics.mesh.summation import Accuracy, MeshElectrostatics, SplineOrder
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.electrostatics.parts import PartsPlan
from fpmace.electrostatics.plan import BatchGeometry
from fpmace.registry import register_electrostatics

logger = logging.getLogger(__name__)

_PAIR_TERM = 0.115
"""Microseconds for each pair of atoms, times multipoles, times multipoles and features."""
_WAVE, _PHASES = 0.1, 15.0
"""For each atom and k-vector, and for each atom."""
_STENCIL, _POINT, _SETUP = 0.21, 0.45, 4000.0
"""For each atom and point of its splines, for each point of the FFT, and for a mesh."""


@register_electrostatics("auto")
class AutoElectrostatics(Electrostatics):
    """Direct sums for small structures and sums on a mesh for large ones, by estimated cost.

    The estimate is that of one energy with forces and twelve evaluations of the features, from
    times measured on a CPU (``benchmarks/scaling.py``); it depends on nothing but the structure.

    Attributes:
        direct, mesh: the two.
    """

    def __init__(
        self,
        options: ElectrostaticsOptions,
        *,
        accuracy: Accuracy = 1e-6,
        order: SplineOrder = 8,
    ) -> None:
        super().__init__(options)
        self.direct = GTOElectrostatics(options)
        self.mesh = MeshElectrostatics(options, accuracy=accuracy, order=order)

    def make_plan(self, geometry: BatchGeometry) -> PartsPlan:
        graphs = range(geometry.n_graphs)
        on_mesh = [graph for graph in graphs if self.prefers_mesh(geometry, graph)]
        others = [graph for graph in graphs if graph not in on_mesh]
        parts = (*self.direct.parts(geometry, others), *self.mesh.parts(geometry, on_mesh))
        return PartsPlan(self, geometry, parts)

    def prefers_mesh(self, geometry: BatchGeometry, graph: int) -> bool:
        """Whether a structure is cheaper on a mesh."""
        n_atoms = geometry.offsets[graph + 1] - geometry.offsets[graph]
        direct = self._direct_cost(geometry, graph, n_atoms)
        if direct < _SETUP:
            return False
        grid = self.mesh.grid(geometry, graph)
        chosen = self._mesh_cost(grid, n_atoms) < direct
        if chosen:
            _report(n_atoms, geometry.boundaries[graph], "x".join(map(str, grid.sizes.padded)))
        return chosen

    def _direct_cost(self, geometry: BatchGeometry, graph: int, n_atoms: int) -> float:
        if geometry.boundaries[graph] == OPEN:
            n_density = self.n_density
            return _PAIR_TERM * n_density * (n_density + self.n_features) * n_atoms**2
        volume = abs(float(geometry.host_cell[graph].det()))
        n_waves = volume * self.mesh.rule.cutoff**3 / (12.0 * pi**2)
        return (_PHASES + _WAVE * n_waves) * n_atoms

    def _mesh_cost(self, grid: Grid, n_atoms: int) -> float:
        stencil = self.mesh.order**3
        return _SETUP + _STENCIL * stencil * n_atoms + _POINT * n_points(grid.sizes.padded)


@lru_cache(maxsize=1024)
def _report(n_atoms: int, boundary: str, points: str) -> None:
    """Once for structures that are alike."""
    logger.info("electrostatics: %d atoms (%s) on a mesh of %s", n_atoms, boundary, points)
