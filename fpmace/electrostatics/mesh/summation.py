"""The electrostatics by sums on meshes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import pi, sqrt
from typing import Annotated, Literal

import torch
from torch import Tensor

from fpmace.annotations import Bounds, Doc
from fpmace.boundaries import OPEN, PERIODIC, SLAB
from fpmace.electrostatics import kspace
from fpmace.electrostatics.base import Electrostatics
from fpmace.electrostatics.corrections import make_correction, make_flat
from fpmace.electrostatics.gto import cutoff_of
from fpmace.electrostatics.mesh.accuracy import spacing_for
from fpmace.electrostatics.mesh.grids import Grid, GridRule, make_grid, spans_of
from fpmace.electrostatics.mesh.kernels import (
    Box,
    Kernels,
    OpenKernels,
    periodic_kernels,
    slab_kernels,
)
from fpmace.electrostatics.mesh.part import MeshPart, mesh_part
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.electrostatics.parts import PartsPlan
from fpmace.electrostatics.plan import BatchGeometry
from fpmace.electrostatics.tables import upload
from fpmace.errors import ConfigError
from fpmace.registry import register_electrostatics

Accuracy = Annotated[
    float,
    Bounds(minimum=1e-10, maximum=1e-2),
    Doc("relative error of the forces that the spacing of the mesh is chosen for"),
]
SplineOrder = Annotated[
    int,
    Bounds(minimum=6, maximum=10),
    Doc("order of the splines: 6, 8 or 10, the more the fewer points"),
]
SlabMesh = Annotated[
    Literal["box", "vacuum"],
    Doc(
        "slabs: box sums over images along z and corrects for them as the direct sum does, "
        "vacuum has none and is the limit of much vacuum"
    ),
]
_SAFETY = 3.0
"""Over the estimate, for structures that are not random; energies are ten times better then."""
_TAIL = 6.5
"""Widths of a Gaussian beyond which erf is 1 to 1e-10."""


@register_electrostatics("mesh")
class MeshElectrostatics(Electrostatics):
    """Sums on a mesh: B-splines, one real FFT for a density and one for each feature width.

    All boundaries, derivatives of any order; cost and memory grow with the number of atoms. In
    cells the waves are those of the direct sum, in the open there is no cutoff, as in the closed
    forms.

    Attributes:
        kspace_cutoff: k_c in 1/Angstrom.
        rule: spacing and order of the meshes.
    """

    def __init__(
        self,
        options: ElectrostaticsOptions,
        *,
        accuracy: Accuracy = 1e-6,
        order: SplineOrder = 8,
        slab: SlabMesh = "box",
    ) -> None:
        super().__init__(options)
        if order % 2:
            raise ConfigError(f"electrostatics.order: needs 6, 8 or 10, got {order}")
        self.kspace_cutoff = cutoff_of(options)
        self.accuracy, self.order, self.slab = accuracy, order, slab
        widths, sigma = options.feature_widths, options.smearing_width
        cutoff = self.kspace_cutoff * (1.0 + options.kspace_window)
        variance = sigma**2 + min(sigma, *widths) ** 2
        spacing = spacing_for(
            accuracy / _SAFETY,
            order,
            variance,
            max(options.density_max_l, options.feature_max_l),
            cutoff,
        )
        margin = _TAIL * sqrt(sigma**2 + max(sigma, *widths) ** 2)
        self.rule = GridRule(min(spacing, 0.95 * pi / cutoff), order, cutoff, margin)

    def make_plan(self, geometry: BatchGeometry) -> PartsPlan:
        return PartsPlan(self, geometry, self.parts(geometry, range(geometry.n_graphs)))

    def parts(self, geometry: BatchGeometry, graphs: Sequence[int]) -> tuple[MeshPart, ...]:
        """Some graphs, those with equal meshes together."""
        groups: dict[tuple[object, ...], dict[int, Grid]] = {}
        for graph, grid in self._grids(geometry, graphs).items():
            key = (grid.kind, grid.sizes)
            groups.setdefault(key, {})[graph] = grid
        return tuple(self._part(geometry, group) for group in groups.values())

    def grid(self, geometry: BatchGeometry, graph: int) -> Grid:
        """The mesh that a graph would get."""
        return self._grids(geometry, [graph])[graph]

    def _kind(self, boundary: str) -> str:
        return (
            boundary if boundary == OPEN or (boundary, self.slab) == (SLAB, "vacuum") else PERIODIC
        )

    def _grids(self, geometry: BatchGeometry, graphs: Sequence[int]) -> dict[int, Grid]:
        kinds = {graph: self._kind(geometry.boundaries[graph]) for graph in graphs}
        lengths = geometry.host_cell.norm(dim=-1).tolist()
        spans: list[list[tuple[float, float]]] = [[(0.0, 0.0)] * 3] * geometry.n_graphs
        if set(kinds.values()) != {PERIODIC}:
            slabs = [graph for graph, kind in kinds.items() if kind == SLAB]
            coordinates = _along_normals(geometry, slabs)
            spans = spans_of(coordinates, geometry.batch, geometry.n_graphs)
        return {
            graph: make_grid(self.rule, kind, lengths[graph], spans[graph])
            for graph, kind in kinds.items()
        }

    def _part(self, geometry: BatchGeometry, grids: dict[int, Grid]) -> MeshPart:
        graphs = list(grids)
        every = len(graphs) == geometry.n_graphs
        padding = geometry.padding(None if every else graphs)
        positions = padding.pad(geometry.positions)
        correction = flat = None
        if grids[graphs[0]].kind == PERIODIC:
            volume = kspace.reciprocal_cell(padding.of_graphs(geometry.cell))[1]
            kinds = [geometry.boundaries[graph] for graph in graphs]
            correction = make_correction(self, positions, volume, kinds)
            flags = [geometry.flags[graph] for graph in graphs]
            flat = make_flat(self, positions, volume, flags)
        counts = [geometry.offsets[graph + 1] - geometry.offsets[graph] for graph in graphs]
        return mesh_part(
            self,
            padding,
            positions,
            tuple(counts),
            self._kernels(geometry, grids),
            partial(self._around, geometry, graphs, grids),
            correction,
            flat,
        )

    def _around(
        self,
        geometry: BatchGeometry,
        graphs: list[int],
        grids: dict[int, Grid],
        row: int,
        points: Tensor,
    ) -> Kernels:
        """Kernels of one graph on a mesh with room for points [1, n, 3]."""
        graph = graphs[row]
        grid = grids[graph]
        if grid.kind != PERIODIC:
            normal = _normal(geometry.cell[graph]) if grid.kind == SLAB else None
            coordinates = (
                points[0] if normal is None else (points[0] @ normal)[:, None].expand(-1, 3)
            )
            batch = torch.zeros(len(coordinates), dtype=torch.int64, device=points.device)
            spans = spans_of(coordinates, batch, 1)[0]
            lengths = geometry.host_cell[graph].norm(dim=-1).tolist()
            grid = make_grid(self.rule, grid.kind, lengths, spans)
        return self._kernels(geometry, {graph: grid})

    def _kernels(self, geometry: BatchGeometry, grids: dict[int, Grid]) -> Kernels:
        """Of graphs whose meshes are equally large."""
        graphs, grid = list(grids), next(iter(grids.values()))
        spacing, window = self.rule.spacing, self.options.kspace_window
        like = geometry.positions
        cell, host_cell = geometry.cell[graphs], geometry.host_cell[graphs]
        if grid.kind == OPEN:
            cell = torch.diag(like.new_tensor(grid.sizes.padded) * spacing).expand_as(cell)
        elif grid.kind == SLAB:
            height = grid.sizes.padded[2] * spacing
            cell, host_cell = _with_normal(cell, height), _with_normal(host_cell, height)
        reciprocal = kspace.reciprocal_cell(cell)[0] / (2.0 * pi)
        points = like.new_tensor(grid.sizes.padded)
        origin = torch.tensor([item.origin for item in grids.values()], dtype=like.dtype)
        box = Box(
            grid.sizes,
            reciprocal.transpose(1, 2) * points,
            upload(origin, like.device),
            self.order,
        )
        if grid.kind == OPEN:
            return OpenKernels(box, spacing)
        if grid.kind == SLAB:
            reach = grid.sizes.points[2] * spacing + self.rule.margin
            return slab_kernels(box, cell, host_cell, self.kspace_cutoff, window, reach)
        return periodic_kernels(box, cell, host_cell, self.kspace_cutoff, window)


def _normal(cell: Tensor) -> Tensor:
    """Unit normal of the first two vectors: [..., 3, 3] -> [..., 3]."""
    a, b = cell[..., 0, :], cell[..., 1, :]
    normal = torch.linalg.cross(a, b, dim=-1)
    unit: Tensor = normal / normal.norm(dim=-1, keepdim=True)
    return unit


def _with_normal(cell: Tensor, height: float) -> Tensor:
    """Cells whose third vector stands on the others, with the given length."""
    return torch.cat([cell[:, :2], height * _normal(cell)[:, None]], dim=1)


def _along_normals(geometry: BatchGeometry, slabs: list[int]) -> Tensor:
    """Positions, z replaced by the coordinate along the normal where a graph is a slab."""
    positions = geometry.positions.detach()
    if not slabs:
        return positions
    frames = torch.eye(3, dtype=positions.dtype).repeat(geometry.n_graphs, 1, 1)
    frames[slabs, 2] = _normal(geometry.host_cell[slabs]).to(positions.dtype)
    frames = upload(frames, positions.device)
    return torch.einsum("nx,nax->na", positions, frames[geometry.batch])
