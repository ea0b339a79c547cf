"""The electrostatics of Gaussian multipoles: energy, field features and potentials."""

from __future__ import annotations

from collections.abc import Callable

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.electrostatics import gaussian, periodic
from fpmace.electrostatics.builder import build_parts
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.electrostatics.plan import OpenPart, PeriodicPart, Plan
from fpmace.electrostatics.realspace import as_operator, pair_kernel, pair_vectors


class GTOElectrostatics(nn.Module):
    """Electrostatics of a density of Gaussian multipoles, batched over graphs.

    All geometry-dependent work is in :meth:`plan`; the other methods are linear or quadratic in
    the density and cost a few small matrix products. Everything is differentiable twice by
    positions, cell and density. Densities are [n_atoms, n_density] in e Angstrom^l, components
    Q, (d_y, d_z, d_x), (xy, yz, z^2, zx, x^2-y^2); features are [n_atoms, n_features] in V,
    l slowest, then width, then m.

    Attributes:
        options: the settings.
        n_density, n_features: numbers of columns.
        density_irreps, field_irreps: the same as irreps.
        kspace_cutoff: k_c in 1/Angstrom.
    """

    self_features: Tensor
    self_energy: Tensor
    feature_scale: Tensor

    def __init__(self, options: ElectrostaticsOptions) -> None:
        super().__init__()
        self.options = options
        widths = options.feature_widths
        self.columns = gaussian.feature_columns(options.feature_max_l, widths)
        self.n_density = (options.density_max_l + 1) ** 2
        self.n_features = len(self.columns)
        self.density_irreps = _irreps(options.density_max_l, 1)
        self.field_irreps = _irreps(options.feature_max_l, len(widths))
        self.kspace_cutoff = gaussian.kspace_cutoff(
            options.kspace_cutoff_factor,
            max(options.density_max_l, options.feature_max_l),
            (options.smearing_width, *widths),
        )
        constants = {
            "self_features": self._self_feature_matrix(),
            "self_energy": self._self_energies(),
            "feature_scale": [column.scale for column in self.columns],
        }
        for name, value in constants.items():
            tensor = torch.tensor(value, dtype=torch.float64)
            self.register_buffer(name, tensor, persistent=False)

    def _self_feature_matrix(self) -> list[list[float]]:
        sigma = self.options.smearing_width
        return [
            [
                gaussian.self_overlap(
                    column.ell,
                    sigma,
                    self.options.feature_widths[column.width_index],
                    receiver=True,
                )
                if column.component == component
                else 0.0
                for column in self.columns
            ]
            for component in range(self.n_density)
        ]

    def _self_energies(self) -> list[float]:
        sigma = self.options.smearing_width
        degrees = gaussian.degree_of_components(self.options.density_max_l)
        return [gaussian.self_overlap(ell, sigma, sigma, receiver=False) for ell in degrees]

    def plan(
        self, positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor, ptr: Tensor
    ) -> Plan:
        """Do all geometry-dependent work.

        Args:
            positions: [n_atoms, 3] Angstrom; absolute positions enter slab and molecule
                corrections, they are not wrapped.
            cell: [n_graphs, 3, 3] Angstrom, lattice vectors are rows; unused for open graphs.
            pbc: [n_graphs, 3] bool; decides the mode in ``mixed_periodic`` and ``auto``.
            batch: [n_atoms] graph of each atom, ascending.
            ptr: [n_graphs + 1] first atom of each graph.

        Raises:
            DataError: if a cell or pbc does not fit ``pbc_method``.
        """
        return build_parts(self, positions, cell, pbc, batch, ptr)

    def potential_features(self, plan: Plan, density: Tensor) -> Tensor:
        """Field features of the density's potential, linear in the density, not normalised.

        v_lm^w(i) = m_l(w) C_lm(grad) V_w(R_i) with V_w the potential smoothed by a Gaussian of
        width w; each atom's own part is left out unless ``include_field_self_interaction``.

        Args:
            density: [n_atoms, n_density].

        Returns:
            [n_atoms, n_features] V.
        """
        pieces = []
        for part in plan.parts:
            padded = part.padding.pad(density)
            if isinstance(part, OpenPart):
                flat = padded.flatten(1)[..., None]
                values = torch.bmm(part.features, flat).view(*padded.shape[:2], -1)
            else:
                values = periodic.features(part, padded, self._own_features(density))
            pieces.append(part.padding.unpad(values))
        return _join(plan, pieces)

    def _own_features(self, like: Tensor) -> Tensor | None:
        """Own contributions to remove from features, None to keep them."""
        keep = self.options.include_field_self_interaction
        return None if keep else self.self_features.to(like)

    def potential_features_transpose(self, plan: Plan, features: Tensor) -> Tensor:
        """Adjoint of :meth:`potential_features`: <f, A q> = <A^T f, q>.

        Args:
            features: [n_atoms, n_features].

        Returns:
            [n_atoms, n_density].
        """
        pieces = []
        for part in plan.parts:
            padded = part.padding.pad(features)
            if isinstance(part, OpenPart):
                flat = padded.flatten(1)[:, None]
                values = torch.bmm(flat, part.features).view(*padded.shape[:2], -1)
            else:
                values = periodic.transpose(part, padded, self._own_features(features))
            pieces.append(part.padding.unpad(values))
        return _join(plan, pieces)

    def energy(self, plan: Plan, density: Tensor) -> Tensor:
        """Electrostatic energy of each graph, quadratic in the density.

        Args:
            density: [n_atoms, n_density].

        Returns:
            [n_graphs] eV.
        """
        own = self._own_energy(density)
        total = density.new_zeros(plan.n_graphs)
        for part in plan.parts:
            padded = part.padding.pad(density)
            if isinstance(part, OpenPart):
                flat = padded.flatten(1)[..., None]
                value = 0.5 * (flat * torch.bmm(part.energy, flat)).sum((1, 2))
            else:
                value = periodic.energy(part, padded, own)
            if part.padding.graphs is None:
                return value
            total = total.index_copy(0, part.padding.graphs, value)
        return total

    def _own_energy(self, like: Tensor) -> Tensor | None:
        """Second derivatives of the own energies to remove, None to keep them."""
        keep = self.options.include_energy_self_interaction
        return None if keep else self.self_energy.to(like)

    def conjugate_potential(self, plan: Plan, density: Tensor) -> Tensor:
        """Derivative of :meth:`energy` by the density, linear in it and symmetric.

        The potential conjugate to each multipole: phi_i,lm = dE/dq_i,lm = sum_j C_ij q_j, so that
        E = q.phi / 2. The own term is that of the energy. It costs as much as
        :meth:`potential_features` and is differentiable in positions and cell.

        Args:
            density: [n_atoms, n_density] e Angstrom^l.

        Returns:
            [n_atoms, n_density] V/Angstrom^l.
        """
        pieces = []
        for part in plan.parts:
            padded = part.padding.pad(density)
            if isinstance(part, OpenPart):
                flat = padded.flatten(1)[..., None]
                values = torch.bmm(part.energy, flat).view_as(padded)
            else:
                values = periodic.conjugate(part, padded, self._own_energy(density))
            pieces.append(part.padding.unpad(values))
        return _join(plan, pieces)

    def external_potential(
        self, positions: Tensor, batch: Tensor, field: Tensor, level: Tensor | None = None
    ) -> Tensor:
        """Derivative of ``field . dipole + level * charge`` by the multipoles.

        ``level + field . R_i`` for the charge, the field (order y, z, x) for the dipole, nothing
        for the quadrupole (it is traceless and the field is uniform).

        Args:
            positions: [n_atoms, 3] Angstrom.
            batch: [n_atoms].
            field: [n_graphs, 3] V/Angstrom, gradient of the potential felt by positive charge.
            level: [n_graphs] V, or None for zero.

        Returns:
            [n_atoms, n_density] V/Angstrom^l.
        """
        rows = _linear_potential(positions, batch, field, level)[:, : self.n_density]
        return nn.functional.pad(rows, (0, self.n_density - rows.shape[1]))

    def potential_at_atoms(self, plan: Plan, density: Tensor) -> Tensor:
        """Potential of the smeared density at the atoms, own contribution included.

        Graphs with pbc TTF that are summed periodically get the slab term 4 pi C D_z z / V in
        every mode, the correction for a molecule in a box is never included, and neither is an
        external field.

        Returns:
            [n_atoms] V.
        """
        pieces = []
        for part in plan.parts:
            padded = part.padding.pad(density)
            positions = part.padding.pad(plan.positions)
            if isinstance(part, OpenPart):
                values = self._open_potential(positions, padded)
            else:
                graphs = part.padding.graphs
                pbc = plan.pbc if graphs is None else plan.pbc[graphs]
                values = periodic.potential(part, padded, positions, pbc)
            pieces.append(part.padding.unpad(values))
        return _join(plan, pieces)

    def _open_potential(self, positions: Tensor, padded: Tensor) -> Tensor:
        sigma = self.options.smearing_width
        kernel = pair_kernel(pair_vectors(positions), [sigma**2], 0, self.options.density_max_l)
        operator = as_operator(kernel.squeeze(-3))
        return torch.bmm(operator, padded.flatten(1)[..., None]).squeeze(-1)

    def external_features(
        self, positions: Tensor, batch: Tensor, field: Tensor, constant: Tensor | None = None
    ) -> Tensor:
        """Features of the potential constant + field . r (absolute positions).

        Args:
            positions: [n_atoms, 3] Angstrom.
            batch: [n_atoms].
            field: [n_graphs, 3] V/Angstrom, gradient of the potential felt by positive charge
                (minus the physical field); its energy is ``+ field . dipole``.
            constant: [n_graphs] V, or None for zero.

        Returns:
            [n_atoms, n_features] V.
        """
        rows = _linear_potential(positions, batch, field, constant)
        linear = [column.component for column in self.columns if column.ell <= 1]
        features = rows[:, linear] * self.feature_scale[: len(linear)].to(rows)
        return nn.functional.pad(features, (0, self.n_features - len(linear)))

    def fermi_features(self, node_constant: Tensor) -> Tensor:
        """Features of a constant potential: sqrt(4 pi) c in l = 0, nothing in higher l.

        Args:
            node_constant: [n_atoms] V.

        Returns:
            [n_atoms, n_features] V.
        """
        n_scalar = len(self.options.feature_widths)
        scaled = node_constant[:, None] * self.feature_scale[:n_scalar].to(node_constant)
        return nn.functional.pad(scaled, (0, self.n_features - n_scalar))

    def dipole(self, positions: Tensor, density: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
        """Dipole sum_i (Q_i R_i + d_i) about the origin, components x, y, z.

        Args:
            positions: [n_atoms, 3] Angstrom.
            density: [n_atoms, n_density].
            batch: [n_atoms].
            n_graphs: number of graphs.

        Returns:
            [n_graphs, 3] e Angstrom.
        """
        atomic = density[:, :1] * positions
        if self.options.density_max_l >= 1:
            atomic = atomic + density[:, [3, 1, 2]]
        return atomic.new_zeros(n_graphs, 3).index_add(0, batch, atomic)

    def dense_operator(self, plan: Plan) -> Tensor:
        """The map of :meth:`potential_features` as one matrix per graph, for small graphs.

        Returns:
            [n_graphs, n_max * n_features, n_max * n_density], rows and columns atom-major; zero
            in rows and columns of padding.
        """
        own = self._own_features(plan.positions)
        return self._dense(
            plan,
            self.n_features,
            lambda part: (
                part.features if isinstance(part, OpenPart) else periodic.operator(part, own)
            ),
        )

    def conjugate_dense(self, plan: Plan) -> Tensor:
        """C, the second derivative of the energy by the density, for small graphs.

        Returns:
            [n_graphs, n_max * n_density, n_max * n_density] in eV per product of multipoles,
            atom-major, symmetric; zero in rows and columns of padding.
        """
        own = self._own_energy(plan.positions)
        return self._dense(
            plan,
            self.n_density,
            lambda part: (
                part.energy
                if isinstance(part, OpenPart)
                else periodic.conjugate_operator(part, own)
            ),
        )

    def _dense(
        self,
        plan: Plan,
        n_rows: int,
        matrix_of: Callable[[PeriodicPart | OpenPart], Tensor],
    ) -> Tensor:
        """The matrices of all parts, without what padding left in them."""
        n = plan.n_max
        total = plan.positions.new_zeros(plan.n_graphs, n * n_rows, n * self.n_density)
        for part in plan.parts:
            matrix = matrix_of(part) * self._present(plan, part, n_rows)
            if part.padding.graphs is None:
                return matrix
            pad = (0, total.shape[2] - matrix.shape[2], 0, total.shape[1] - matrix.shape[1])
            total = total.index_copy(0, part.padding.graphs, nn.functional.pad(matrix, pad))
        return total

    def _present(self, plan: Plan, part: PeriodicPart | OpenPart, n_rows: int) -> Tensor:
        atoms = part.padding.pad(torch.ones_like(plan.positions[:, :1]))
        rows = atoms.expand(-1, -1, n_rows).flatten(1)
        columns = atoms.expand(-1, -1, self.n_density).flatten(1)
        return rows[:, :, None] * columns[:, None, :]


def _linear_potential(
    positions: Tensor, batch: Tensor, field: Tensor, constant: Tensor | None
) -> Tensor:
    """Value and gradient (y, z, x) of constant + field . r at the atoms, [n_atoms, 4]."""
    gradient = field[batch]
    value = (gradient * positions).sum(-1)
    if constant is not None:
        value = value + constant[batch]
    return torch.cat([value[:, None], gradient[:, [1, 2, 0]]], dim=1)


def _irreps(max_l: int, multiplicity: int) -> Irreps:
    return Irreps([(multiplicity, (ell, (-1) ** ell)) for ell in range(max_l + 1)])


def _join(plan: Plan, pieces: list[Tensor]) -> Tensor:
    """Put the atoms of the parts back into the order of the batch."""
    if len(pieces) == 1 and plan.parts[0].padding.atoms is None:
        return pieces[0]
    total = pieces[0].new_zeros(plan.n_atoms, *pieces[0].shape[1:])
    for part, piece in zip(plan.parts, pieces, strict=True):
        assert part.padding.atoms is not None
        total = total.index_copy(0, part.padding.atoms, piece)
    return total
