"""The graphs of a batch that are summed in one way, and how the parts of a batch go together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fpmace.electrostatics.corrections import Correction, Moments
from fpmace.electrostatics.layout import Layout
from fpmace.electrostatics.padding import Padding
from fpmace.electrostatics.plan import Plan


@dataclass(frozen=True)
class SummedPart(ABC):
    """Some graphs of a batch and how they are summed; all in padded tensors.

    A density is [g, n_max, n_density], features are [g, n_max, n_features]. See
    :class:`~fpmace.electrostatics.plan.Plan` for what the methods mean.

    Attributes:
        layout: columns of densities and features.
        padding: which atoms of the batch lie where.
        positions: [g, n_max, 3] Angstrom.
    """

    layout: Layout
    padding: Padding
    positions: Tensor

    name: ClassVar[str] = "direct"
    """How it sums."""
    chunk: ClassVar[int | None] = 4096
    """Points at once in :meth:`potential_at` and :meth:`density_at`; None: all."""
    has_dense: ClassVar[bool] = True
    """Whether the matrices are built at once rather than column by column."""

    @abstractmethod
    def features(self, density: Tensor) -> Tensor: ...

    @abstractmethod
    def features_transpose(self, features: Tensor) -> Tensor: ...

    @abstractmethod
    def conjugate(self, density: Tensor) -> Tensor: ...

    @abstractmethod
    def energy(self, density: Tensor) -> Tensor:
        """[g] eV."""

    @abstractmethod
    def at_atoms(self, density: Tensor) -> Tensor:
        """[g, n_max] V."""

    @abstractmethod
    def potential_at(self, row: int, density: Tensor, points: Tensor) -> Tensor:
        """Potential of the graph in ``row`` (density [1, n_max, n_density]) at [n, 3]: [n] V."""

    @abstractmethod
    def density_at(self, row: int, density: Tensor, points: Tensor) -> Tensor:
        """Charge density of the graph in ``row``: [n] e/Angstrom^3."""

    @abstractmethod
    def features_matrix(self) -> Tensor:
        """[g, n_max * n_features, n_max * n_density]."""

    @abstractmethod
    def conjugate_matrix(self) -> Tensor:
        """[g, n_max * n_density, n_max * n_density]."""


@dataclass(frozen=True)
class CorrectedPart(SummedPart):
    """Graphs whose sums include own contributions and leave out what boundaries add.

    Attributes:
        correction: of slabs and molecules in boxes, None if no graph is one.
        flat: the slab term of graphs with flags TTF in :meth:`at_atoms`, None if there is none.
    """

    correction: Correction | None
    flat: Moments | None

    @abstractmethod
    def summed_features(self, density: Tensor) -> Tensor: ...

    @abstractmethod
    def summed_features_transpose(self, features: Tensor) -> Tensor: ...

    @abstractmethod
    def summed_conjugate(self, density: Tensor) -> Tensor: ...

    @abstractmethod
    def summed_energy(self, density: Tensor) -> Tensor: ...

    @abstractmethod
    def summed_at_atoms(self, density: Tensor) -> Tensor: ...

    @abstractmethod
    def summed_potential_at(self, row: int, density: Tensor, points: Tensor) -> Tensor: ...

    def features(self, density: Tensor) -> Tensor:
        values = self.summed_features(density)
        own = self.layout.removed_features(density)
        if own is not None:
            values = values - density @ own
        if self.correction is not None:
            values = values + self.correction.features(density).view_as(values)
        return values

    def features_transpose(self, features: Tensor) -> Tensor:
        values = self.summed_features_transpose(features)
        own = self.layout.removed_features(features)
        if own is not None:
            values = values - features @ own.T
        if self.correction is not None:
            values = values + self.correction.features_transpose(features).view_as(values)
        return values

    def conjugate(self, density: Tensor) -> Tensor:
        values = self.summed_conjugate(density)
        own = self.layout.removed_energy(density)
        if own is not None:
            values = values - density * own
        if self.correction is not None:
            values = values + self.correction.moments.potential(density).view_as(values)
        return values

    def energy(self, density: Tensor) -> Tensor:
        value = self.summed_energy(density)
        own = self.layout.removed_energy(density)
        if own is not None:
            value = value - 0.5 * (density.square() * own).sum((1, 2))
        if self.correction is not None:
            value = value + self.correction.moments.energy(density)
        return value

    def at_atoms(self, density: Tensor) -> Tensor:
        values = self.summed_at_atoms(density)
        if self.flat is None:
            return values
        return values + self.flat.potential_at(density, self.positions)

    def potential_at(self, row: int, density: Tensor, points: Tensor) -> Tensor:
        values = self.summed_potential_at(row, density, points)
        if self.correction is None:
            return values
        moments = self.correction.moments.of_graph(row)
        return values + moments.potential_at(density, points[None])[0]


@dataclass(frozen=True)
class PartsPlan(Plan):
    """A plan whose graphs are summed by parts; one part unless boundaries or sizes are mixed."""

    parts: tuple[SummedPart, ...]

    @property
    def has_dense(self) -> bool:
        return all(part.has_dense for part in self.parts)

    @property
    def summations(self) -> tuple[str, ...]:
        """How each graph is summed."""
        names = [(graph, part.name) for part in self.parts for graph in part.padding.members]
        return tuple(name for _, name in sorted(names))

    def potential_features(self, density: Tensor) -> Tensor:
        return self._of_atoms(density, lambda part, padded: part.features(padded))

    def potential_features_transpose(self, features: Tensor) -> Tensor:
        return self._of_atoms(features, lambda part, padded: part.features_transpose(padded))

    def conjugate_potential(self, density: Tensor) -> Tensor:
        return self._of_atoms(density, lambda part, padded: part.conjugate(padded))

    def potential_at_atoms(self, density: Tensor) -> Tensor:
        return self._of_atoms(density, lambda part, padded: part.at_atoms(padded))

    def energy(self, density: Tensor) -> Tensor:
        total = density.new_zeros(self.geometry.n_graphs)
        for part in self.parts:
            value = part.energy(part.padding.pad(density))
            if part.padding.graphs is None:
                return value
            total = total.index_copy(0, part.padding.graphs, value)
        return total

    def potential_at_points(self, density: Tensor, points: Tensor, graph: int = 0) -> Tensor:
        part, row, padded = self._graph(density, graph)
        return in_chunks(points, lambda chunk: part.potential_at(row, padded, chunk), part.chunk)

    def density_at_points(self, density: Tensor, points: Tensor, graph: int = 0) -> Tensor:
        part, row, padded = self._graph(density, graph)
        return in_chunks(points, lambda chunk: part.density_at(row, padded, chunk), part.chunk)

    def dense_features(self) -> Tensor:
        return self._matrices(self.layout.n_features, lambda part: part.features_matrix())

    def conjugate_dense(self) -> Tensor:
        return self._matrices(self.layout.n_density, lambda part: part.conjugate_matrix())

    def _of_atoms(self, values: Tensor, sums: Callable[[SummedPart, Tensor], Tensor]) -> Tensor:
        """Apply the parts to their atoms; atoms in the order of the batch."""
        pieces = [part.padding.unpad(sums(part, part.padding.pad(values))) for part in self.parts]
        if len(pieces) == 1:
            return pieces[0]
        total = pieces[0].new_zeros(self.geometry.n_atoms, *pieces[0].shape[1:])
        for part, piece in zip(self.parts, pieces, strict=True):
            assert part.padding.atoms is not None
            total = total.index_copy(0, part.padding.atoms, piece)
        return total

    def _graph(self, density: Tensor, graph: int) -> tuple[SummedPart, int, Tensor]:
        for part in self.parts:
            if graph in part.padding.members:
                row = part.padding.members.index(graph)
                return part, row, part.padding.pad(density)[row : row + 1]
        raise IndexError(f"graph {graph} is not in a batch of {self.geometry.n_graphs}")

    def _matrices(self, n_rows: int, matrix_of: Callable[[SummedPart], Tensor]) -> Tensor:
        """The matrices of all parts, without what padding left in them."""
        n, n_columns = self.geometry.n_max, self.layout.n_density
        like = self.geometry.positions
        total = like.new_zeros(self.geometry.n_graphs, n * n_rows, n * n_columns)
        for part in self.parts:
            atoms = part.padding.pad(torch.ones_like(like[:, :1]))
            rows = atoms.expand(-1, -1, n_rows).flatten(1)
            columns = atoms.expand(-1, -1, n_columns).flatten(1)
            matrix = matrix_of(part) * (rows[:, :, None] * columns[:, None, :])
            if part.padding.graphs is None:
                return matrix
            pad = (0, total.shape[2] - matrix.shape[2], 0, total.shape[1] - matrix.shape[1])
            total = total.index_copy(0, part.padding.graphs, nn.functional.pad(matrix, pad))
        return total


def in_chunks(points: Tensor, function: Callable[[Tensor], Tensor], size: int | None) -> Tensor:
    """[n, 3] -> [n], ``size`` points at a time (None: all)."""
    pieces = [function(chunk) for chunk in torch.split(points, size or max(1, len(points)))]
    return torch.cat(pieces) if pieces else points.new_zeros(0)
