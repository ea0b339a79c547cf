"""Graphs summed on meshes: spread, convolve, gather."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fpmace.electrostatics import realspace
from fpmace.electrostatics.corrections import Correction, Moments
from fpmace.electrostatics.kspace import source_scales
from fpmace.electrostatics.layout import Layout
from fpmace.electrostatics.mesh.harmonics import derivative_basis
from fpmace.electrostatics.mesh.kernels import Box, Kernels, OpenKernels
from fpmace.electrostatics.mesh.transfer import Stencil, gather, spread
from fpmace.electrostatics.padding import Padding
from fpmace.electrostatics.parts import CorrectedPart, SummedPart, in_chunks

Direct = Callable[[Layout, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MeshPart(CorrectedPart):
    """Graphs whose meshes are equally large.

    Attributes:
        kernels: of their boundary.
        counts: atoms of each graph.
        extended: kernels of a mesh with room for points [1, n, 3] around the graph of a row.
        coordinates: [g * n_max, 3] of the atoms in mesh spacings.
        stencil: where they lie.
        spectra: of the energy, then of each feature width; those of equal widths are one.
        source: [g, n_density, n_derivatives] multipoles as derivatives along the mesh.
        receiver: [g, (feature_max_l + 1)^2, n_derivatives] the same for features.
    """

    kernels: Kernels
    counts: tuple[int, ...]
    extended: Callable[[int, Tensor], Kernels]
    coordinates: Tensor
    stencil: Stencil
    spectra: tuple[Tensor, ...]
    source: Tensor
    receiver: Tensor

    name = "mesh"
    chunk = None
    has_dense = False

    @property
    def box(self) -> Box:
        """The meshes."""
        return self.kernels.box

    def summed_features(self, density: Tensor) -> Tensor:
        mesh = self.box.convolve(self._spread(density), self.spectra[1:])
        by_width = self._gather(mesh, self.receiver, self.layout.options.feature_max_l)
        return self.layout.arrange(by_width.permute(1, 2, 0, 3))

    def summed_features_transpose(self, features: Tensor) -> Tensor:
        by_width = self.layout.arrange_transpose(features).permute(2, 0, 1, 3)
        degree = self.layout.options.feature_max_l
        meshes = self._spread_derivatives(self.receiver, by_width, degree)
        return self._potential(self.box.collect(meshes, self.spectra[1:]))

    def summed_conjugate(self, density: Tensor) -> Tensor:
        return self._potential(self.box.convolve(self._spread(density), self.spectra[:1]))

    def summed_energy(self, density: Tensor) -> Tensor:
        mesh = self._spread(density)
        potential = self.box.convolve(mesh, self.spectra[:1])
        return 0.5 * (mesh * potential).view(len(density), -1).sum(1)

    def summed_at_atoms(self, density: Tensor) -> Tensor:
        spectrum = self.kernels.coulomb(self.layout.options.smearing_width**2)
        mesh = self.box.convolve(self._spread(density), (spectrum,))
        return gather(mesh, self.coordinates, self.stencil, 0).view(density.shape[:2])

    def summed_potential_at(self, row: int, density: Tensor, points: Tensor) -> Tensor:
        kernels = self._around(row, points)
        if kernels is None:
            return self._directly(realspace.potential_at, row, density, points)
        spectrum = kernels.coulomb(self.layout.options.smearing_width**2)
        return self._at_points(kernels.box, spectrum, row, density, points)

    def density_at(self, row: int, density: Tensor, points: Tensor) -> Tensor:
        kernels = self._around(row, points)
        if kernels is None:
            return self._directly(realspace.density_at, row, density, points)
        spectrum = kernels.gaussian(self.layout.options.smearing_width**2)
        return self._at_points(kernels.box, spectrum, row, density, points)

    def features_matrix(self) -> Tensor:
        return self._by_columns(self.features)

    def conjugate_matrix(self) -> Tensor:
        return self._by_columns(self.conjugate)

    def _by_columns(self, apply: Callable[[Tensor], Tensor]) -> Tensor:
        shape = (*self.positions.shape[:2], self.layout.n_density)
        found = []
        for entry in range(shape[1] * shape[2]):
            unit = self.positions.new_zeros(shape)
            unit.flatten(1)[:, entry] = 1.0
            found.append(apply(unit).flatten(1))
        return torch.stack(found, dim=-1)

    def _around(self, row: int, points: Tensor) -> Kernels | None:
        """Kernels with room for points; None where pairs in the open are the lesser work."""
        here = self.positions[row, : self.counts[row]]
        kernels = self.extended(row, torch.cat([here, points])[None])
        n_pairs = len(here) * len(points)
        few = isinstance(kernels, OpenKernels) and n_pairs < prod(kernels.box.sizes.padded)
        return None if few else kernels

    def _directly(self, value: Direct, row: int, density: Tensor, points: Tensor) -> Tensor:
        n = self.counts[row]
        here, multipoles = self.positions[row, :n], density[0, :n]
        return in_chunks(
            points, lambda some: value(self.layout, here, multipoles, some), SummedPart.chunk
        )

    def _at_points(
        self, box: Box, spectrum: Tensor, row: int, density: Tensor, points: Tensor
    ) -> Tensor:
        """A kernel on the density of one graph, at points."""
        n, degree = self.counts[row], self.layout.options.density_max_l
        here = torch.cat([self.positions[row, :n], points])[None]
        coordinates = box.coordinates(here)[0]
        atoms, others = (box.stencil(item) for item in (coordinates[:n], coordinates[n:]))
        along = torch.matmul(density[:, :n], source_basis(self.layout, box)[0])
        mesh = spread(along, coordinates[:n], atoms, degree, box.n_points)
        mesh = box.convolve(mesh, (spectrum,))
        return gather(mesh, coordinates[n:], others, 0).flatten()

    def _spread(self, density: Tensor) -> Tensor:
        """[g, n_max, n_density] -> [1, g * n_points]."""
        degree = self.layout.options.density_max_l
        return self._spread_derivatives(self.source, density[None], degree)

    def _spread_derivatives(self, basis: Tensor, values: Tensor, degree: int) -> Tensor:
        """[n_channels, g, n_max, n_components] -> [n_channels, g * n_points]."""
        along = torch.matmul(values, basis).flatten(1, 2)
        n_points = len(basis) * self.box.n_points
        return spread(along, self.coordinates, self.stencil, degree, n_points)

    def _gather(self, mesh: Tensor, basis: Tensor, degree: int) -> Tensor:
        """[n_channels, g * n_points] -> [n_channels, g, n_max, n_components]."""
        found = gather(mesh, self.coordinates, self.stencil, degree)
        by_graph = found.unflatten(1, self.positions.shape[:2])
        return torch.matmul(by_graph, basis.transpose(1, 2))

    def _potential(self, mesh: Tensor) -> Tensor:
        """The potential conjugate to multipoles: [1, g * n_points] -> [g, n_max, n_density]."""
        degree = self.layout.options.density_max_l
        return self._gather(mesh, self.source, degree).squeeze(0)


def source_basis(layout: Layout, box: Box) -> Tensor:
    """Multipoles as derivatives along the mesh, [g, n_density, n_derivatives]."""
    return derivative_basis(box.transform, source_scales(layout.options.density_max_l))


def mesh_part(
    layout: Layout,
    padding: Padding,
    positions: Tensor,
    counts: tuple[int, ...],
    kernels: Kernels,
    extended: Callable[[int, Tensor], Kernels],
    correction: Correction | None,
    flat: Moments | None,
) -> MeshPart:
    """Stencils and spectra of graphs whose atoms lie at ``positions`` [g, n_max, 3]."""
    options, box = layout.options, kernels.box
    coordinates = box.coordinates(positions)
    sigma = options.smearing_width**2
    variances = [sigma + width**2 for width in (options.smearing_width, *options.feature_widths)]
    known = {variance: kernels.coulomb(variance) for variance in set(variances)}
    n_components = (options.feature_max_l + 1) ** 2
    return MeshPart(
        layout,
        padding,
        positions,
        correction=correction,
        flat=flat,
        kernels=kernels,
        counts=counts,
        extended=extended,
        coordinates=coordinates.flatten(0, 1),
        stencil=box.stencil(*coordinates.unbind(0)),
        spectra=tuple(known[variance] for variance in variances),
        source=source_basis(layout, box),
        receiver=derivative_basis(box.transform, (1.0,) * n_components),
    )
