"""What an electrostatics computes once per geometry, and what it then does with densities."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from fpmace.boundaries import boundary, cell_problem, pbc_class
from fpmace.electrostatics.layout import Layout
from fpmace.electrostatics.padding import Padding, largest, make_padding, matrices_by_columns
from fpmace.errors import ConfigError, DataError


@dataclass(frozen=True)
class BatchGeometry:
    """Structures of a batch, with what a plan has to know on the host, read in one transfer.

    Attributes:
        positions: [n_atoms, 3] Angstrom; not wrapped, absolute positions enter corrections.
        cell: [n_graphs, 3, 3] Angstrom, lattice vectors are rows; unused where open.
        pbc: [n_graphs, 3] bool.
        batch: [n_atoms] graph of each atom, ascending.
        ptr: [n_graphs + 1] first atom of each graph.
        offsets: ``ptr`` on the host.
        flags: ``pbc`` on the host.
        host_cell: [n_graphs, 3, 3] float64 on the host, without gradient.
        boundaries: how each graph is summed, of :data:`fpmace.boundaries.BOUNDARIES`.
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    ptr: Tensor
    offsets: tuple[int, ...]
    flags: tuple[tuple[bool, ...], ...]
    host_cell: Tensor
    boundaries: tuple[str, ...]

    @classmethod
    def read(
        cls, method: str, positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor, ptr: Tensor
    ) -> BatchGeometry:
        """Look at flags and cells and choose boundaries.

        Raises:
            DataError: if a cell or pbc does not fit the boundary ``method``.
        """
        offsets, flags, host_cell = _on_host(ptr, pbc, cell.detach())
        boundaries = tuple(
            _boundary(method, graph, flag, rows)
            for graph, (flag, rows) in enumerate(zip(flags, host_cell.tolist(), strict=True))
        )
        return cls(positions, cell, pbc, batch, ptr, offsets, flags, host_cell, boundaries)

    @property
    def n_atoms(self) -> int:
        return self.positions.shape[0]

    @property
    def n_graphs(self) -> int:
        return self.cell.shape[0]

    @property
    def n_max(self) -> int:
        """Atoms of the largest graph."""
        return largest(self.offsets)

    def atoms_of(self, graph: int) -> slice:
        """The atoms of one graph."""
        return slice(self.offsets[graph], self.offsets[graph + 1])

    def padding(self, graphs: list[int] | None = None) -> Padding:
        """Padded tensors of all graphs, or of some."""
        return make_padding(self.offsets, graphs, self.positions.device)


def _on_host(
    ptr: Tensor, pbc: Tensor, cell: Tensor
) -> tuple[tuple[int, ...], tuple[tuple[bool, ...], ...], Tensor]:
    """Offsets, flags and cells on the host; one transfer from an accelerator, not three."""
    if cell.device.type == "cpu":
        return tuple(ptr.tolist()), tuple(tuple(row) for row in pbc.tolist()), cell.double()
    n = len(pbc)
    host = torch.cat((ptr.double(), pbc.double().flatten(), cell.double().flatten())).cpu()
    offsets, flags, vectors = torch.split(host, [n + 1, 3 * n, 9 * n])
    rows = flags.view(n, 3).bool().tolist()
    return tuple(offsets.long().tolist()), tuple(map(tuple, rows)), vectors.view(n, 3, 3)


def _boundary(method: str, graph: int, flags: tuple[bool, ...], cell: list[list[float]]) -> str:
    kind = boundary(method, flags)
    if kind is None:
        raise DataError(
            f"graph {graph}: pbc {pbc_class(flags)} has no electrostatics in "
            f"electrostatic_pbc_method '{method}' (FFF, TTF or TTT); change pbc or choose "
            "the method explicitly"
        )
    problem = cell_problem(method, kind, cell)
    if problem is not None:
        raise DataError(f"graph {graph}: {problem}")
    return kind


@dataclass(frozen=True)
class Plan(ABC):
    """The geometry of a batch, ready to sum any number of densities.

    Everything is linear in the density (the energy quadratic) and differentiable by it, positions
    and cell. An external field is never included.

    Attributes:
        layout: columns of densities and features.
        geometry: the structures.
    """

    layout: Layout
    geometry: BatchGeometry

    @property
    def has_dense(self) -> bool:
        """Whether the matrices are built at once rather than column by column."""
        return False

    @abstractmethod
    def potential_features(self, density: Tensor) -> Tensor:
        """Field features of the density's potential, not normalised.

        v_lm^w(i) = m_l(w) C_lm(grad) V_w(R_i) with V_w the potential smoothed by a Gaussian of
        width w; each atom's own part is left out unless ``include_field_self_interaction``.

        Args:
            density: [n_atoms, n_density] e Angstrom^l.

        Returns:
            [n_atoms, n_features] V.
        """

    @abstractmethod
    def conjugate_potential(self, density: Tensor) -> Tensor:
        """Derivative of :meth:`energy` by the density, linear in it and symmetric.

        The potential conjugate to each multipole: phi_i,lm = dE/dq_i,lm = sum_j C_ij q_j, so that
        E = q.phi / 2. The own term is that of the energy.

        Args:
            density: [n_atoms, n_density] e Angstrom^l.

        Returns:
            [n_atoms, n_density] V/Angstrom^l.
        """

    @abstractmethod
    def potential_at_atoms(self, density: Tensor) -> Tensor:
        """Potential of the smeared density at the atoms, own contribution included, [n_atoms] V.

        Graphs with pbc TTF that are summed periodically get the slab term 4 pi C D_z z / V in
        every mode; the correction for a molecule in a box is never included.
        """

    def potential_features_transpose(self, features: Tensor) -> Tensor:
        """Adjoint of :meth:`potential_features`: <f, A q> = <A^T f, q>.

        Args:
            features: [n_atoms, n_features].

        Returns:
            [n_atoms, n_density].
        """
        zero = features.new_zeros(len(features), self.layout.n_density)
        pull = torch.func.vjp(self.potential_features, zero)[1]
        pulled: Tensor = pull(features)[0]
        return pulled

    def energy(self, density: Tensor) -> Tensor:
        """Electrostatic energy of each graph, quadratic in the density: [n_graphs] eV."""
        half = 0.5 * (density * self.conjugate_potential(density)).sum(-1)
        total = half.new_zeros(self.geometry.n_graphs)
        return total.index_add(0, self.geometry.batch, half)

    def potential_at_points(self, density: Tensor, points: Tensor, graph: int = 0) -> Tensor:
        """Potential of one graph's density, with the correction of its boundary.

        Args:
            density: [n_atoms, n_density] of the batch.
            points: [n_points, 3] Angstrom.
            graph: which structure of the batch.

        Returns:
            [n_points] V, positive where a positive charge is repelled.

        Raises:
            ConfigError: the electrostatics has no potential at points.
        """
        raise ConfigError(_no_points(self, "potential"), where="electrostatics")

    def density_at_points(self, density: Tensor, points: Tensor, graph: int = 0) -> Tensor:
        """Smeared charge density of one graph at points; as :meth:`potential_at_points`.

        Returns:
            [n_points] e/Angstrom^3.

        Raises:
            ConfigError: the electrostatics has no density at points.
        """
        raise ConfigError(_no_points(self, "charge density"), where="electrostatics")

    def dense_features(self) -> Tensor:
        """:meth:`potential_features` as one matrix per graph, for small graphs.

        Returns:
            [n_graphs, n_max * n_features, n_max * n_density], rows and columns atom-major; zero
            in rows and columns of padding.
        """
        return self._by_columns(self.potential_features)

    def conjugate_dense(self) -> Tensor:
        """C, the second derivative of the energy by the density, for small graphs.

        Returns:
            [n_graphs, n_max * n_density, n_max * n_density] in eV per product of multipoles,
            atom-major, symmetric; zero in rows and columns of padding.
        """
        return self._by_columns(self.conjugate_potential)

    def _by_columns(self, apply: Callable[[Tensor], Tensor]) -> Tensor:
        like = self.geometry.positions
        return matrices_by_columns(apply, self.padding, self.layout.n_density, like)

    @cached_property
    def padding(self) -> Padding:
        """Padded tensors of all graphs."""
        return self.geometry.padding()

    def detach(self) -> Self:
        """The same numbers without their history."""
        detached: Self = _detach(self)
        return detached


def _no_points(plan: Plan, what: str) -> str:
    return f"{type(plan).__name__} has no {what} at points; use an electrostatics that has"


def _detach(value: Any) -> Any:
    changed = value
    if isinstance(value, Tensor):
        changed = value.detach()
    elif isinstance(value, tuple):
        changed = tuple(_detach(item) for item in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _detach(getattr(value, f.name)) for f in dataclasses.fields(value)}
        changed = dataclasses.replace(value, **parts)
    return changed
