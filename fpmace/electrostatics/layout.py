"""How densities and field features are laid out, whatever sums them."""

from __future__ import annotations

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.electrostatics import gaussian
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.electrostatics.tables import columns


class Layout(nn.Module):
    """Columns of densities and features, own terms, and potentials that need no sum.

    Densities are [n_atoms, n_density] in e Angstrom^l, components Q, (d_y, d_z, d_x),
    (xy, yz, z^2, zx, x^2-y^2); features are [n_atoms, n_features] in V, l slowest, then width,
    then m.

    Attributes:
        options: the settings.
        columns: what each feature is.
        n_density, n_features: numbers of columns.
        density_irreps, field_irreps: the same as irreps.
    """

    self_features: Tensor
    self_energy: Tensor
    feature_scale: Tensor

    def __init__(self, options: ElectrostaticsOptions) -> None:
        super().__init__()
        self.options = options
        widths, sigma = options.feature_widths, options.smearing_width
        self.columns = gaussian.feature_columns(options.feature_max_l, widths)
        self.n_density = (options.density_max_l + 1) ** 2
        self.n_features = len(self.columns)
        self.density_irreps = _irreps(options.density_max_l, 1)
        self.field_irreps = _irreps(options.feature_max_l, len(widths))
        degrees = gaussian.degree_of_components(options.density_max_l)
        constants = {
            "self_features": self._self_features(),
            "self_energy": [
                gaussian.self_overlap(ell, sigma, sigma, receiver=False) for ell in degrees
            ],
            "feature_scale": [column.scale for column in self.columns],
        }
        for name, value in constants.items():
            tensor = torch.tensor(value, dtype=torch.float64)
            self.register_buffer(name, tensor, persistent=False)

    def _self_features(self) -> list[list[float]]:
        options = self.options
        own = [
            gaussian.self_overlap(
                column.ell,
                options.smearing_width,
                options.feature_widths[column.width_index],
                receiver=True,
            )
            for column in self.columns
        ]
        return [
            [
                value if column.component == component else 0.0
                for column, value in zip(self.columns, own, strict=True)
            ]
            for component in range(self.n_density)
        ]

    def removed_features(self, like: Tensor) -> Tensor | None:
        """Own contributions to take off features, [n_density, n_features]; None: keep them."""
        keep = self.options.include_field_self_interaction
        return None if keep else self.self_features.to(like)

    def removed_energy(self, like: Tensor) -> Tensor | None:
        """Second derivatives of own energies to take off, [n_density]; None: keep them."""
        keep = self.options.include_energy_self_interaction
        return None if keep else self.self_energy.to(like)

    def arrange(self, by_width: Tensor) -> Tensor:
        """Features from C_lm(grad) on the smoothed potentials.

        Args:
            by_width: [n_atoms, n_widths, (feature_max_l + 1)^2] V/Angstrom^l.

        Returns:
            [n_atoms, n_features] V.
        """
        chosen = self._places()
        return columns(by_width.flatten(-2), chosen) * self.feature_scale.to(by_width)

    def arrange_transpose(self, features: Tensor) -> Tensor:
        """The adjoint of :meth:`arrange`."""
        chosen = self._places()
        back = tuple(chosen.index(place) for place in range(len(chosen)))
        scaled = columns(features * self.feature_scale.to(features), back)
        return scaled.unflatten(-1, (len(self.options.feature_widths), -1))

    def _places(self) -> tuple[int, ...]:
        n = (self.options.feature_max_l + 1) ** 2
        return tuple(column.width_index * n + column.component for column in self.columns)

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
        linear = tuple(column.component for column in self.columns if column.ell <= 1)
        features = columns(rows, linear) * self.feature_scale[: len(linear)].to(rows)
        return nn.functional.pad(features, (0, self.n_features - len(linear)))

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
            atomic = atomic + columns(density, (3, 1, 2))
        return atomic.new_zeros(n_graphs, 3).index_add(0, batch, atomic)


def _linear_potential(
    positions: Tensor, batch: Tensor, field: Tensor, constant: Tensor | None
) -> Tensor:
    """Value and gradient (y, z, x) of constant + field . r at the atoms, [n_atoms, 4]."""
    gradient = field[batch]
    value = (gradient * positions).sum(-1)
    if constant is not None:
        value = value + constant[batch]
    return torch.cat([value[:, None], columns(gradient, (1, 2, 0))], dim=1)


def _irreps(max_l: int, multiplicity: int) -> Irreps:
    return Irreps([(multiplicity, (ell, (-1) ** ell)) for ell in range(max_l + 1)])
