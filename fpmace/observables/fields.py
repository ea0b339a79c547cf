"""Potential and charge density of a structure on points, lines, planes and grids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io.cube import write_cube
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fpmace.boundaries import PbcMethod
from fpmace.electrostatics import Electrostatics, ElectrostaticsOptions, build_electrostatics
from fpmace.errors import ConfigError, DataError
from fpmace.files import atomic_write

Array = NDArray[np.float64]
QUANTITIES = ("potential", "density")


@dataclass(frozen=True)
class LineCut:
    """A quantity along a line: points [n, 3], distance from the first [n], values [n]."""

    points: Array
    distance: Array
    values: Array


@dataclass(frozen=True)
class Slice:
    """A quantity on a plane: points [nu, nv, 3], values [nu, nv], lengths of the two sides."""

    points: Array
    values: Array
    sides: tuple[float, float]


@dataclass(frozen=True)
class Grid:
    """A quantity on a grid of voxels: values [n1, n2, n3] at origin + (i/n1) box[0] + ..."""

    origin: Array
    box: Array
    values: Array


class DensitySource(NamedTuple):
    """What a calculator with a density gives: the arguments of :class:`ElectrostaticField`."""

    atoms: Atoms
    density: ArrayLike
    electrostatics: Electrostatics
    external_field: ArrayLike


def no_density(calculator: Calculator) -> ConfigError:
    """The error of a calculator without a density."""
    return ConfigError(
        f"a {type(calculator).__name__} has no charge density; use "
        "FixedPointSCFCalculator or GTOCoulombCalculator"
    )


def no_result() -> ConfigError:
    """The error of a calculator that was not run."""
    return ConfigError("the calculator holds no result; call get_potential_energy first")


class ElectrostaticField:
    """The potential and the smeared charge density of one structure, in its boundary condition.

    Quantities: ``potential`` in V (felt by positive charge; the external field's ``field . r``
    included) and ``density`` in e/Angstrom^3.

    Args:
        atoms: the structure.
        density: [n_atoms, (l_max + 1)^2] e Angstrom^l.
        electrostatics: width, boundary condition and cutoff.
        external_field: V/Angstrom, gradient of the potential felt by positive charge.
    """

    def __init__(
        self,
        atoms: Atoms,
        density: ArrayLike,
        electrostatics: Electrostatics,
        external_field: ArrayLike = (0.0, 0.0, 0.0),
    ) -> None:
        self.atoms = atoms.copy()
        self.atoms.calc = None
        self.external_field = np.asarray(external_field, dtype=np.float64)
        like = electrostatics.feature_scale
        self._density = torch.as_tensor(np.array(density, dtype=np.float64)).to(like)
        with torch.no_grad():
            self._plan = electrostatics.plan_structure(
                torch.from_numpy(np.array(atoms.positions)).to(like),
                torch.from_numpy(np.array(atoms.cell.array)).to(like),
                torch.from_numpy(np.array(atoms.pbc)).to(like.device),
            )

    @classmethod
    def from_multipoles(
        cls,
        atoms: Atoms,
        multipoles: ArrayLike,
        *,
        smearing_width: float = 1.5,
        pbc_handling: PbcMethod = "auto",
        kspace_cutoff_factor: float = 1.5,
        external_field: ArrayLike = (0.0, 0.0, 0.0),
    ) -> ElectrostaticField:
        """Field of supplied multipoles, [n_atoms] or [n_atoms, 1, 4 or 9].

        Raises:
            DataError: the multipoles have another shape, or the cell does not suit the mode.
        """
        values = np.asarray(multipoles, dtype=np.float64)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or len(values) != len(atoms) or values.shape[1] not in (1, 4, 9):
            raise DataError(
                f"multipoles: have shape {values.shape}, expected ({len(atoms)}, 1, 4 or 9)"
            )
        max_l = round(values.shape[1] ** 0.5) - 1
        options = ElectrostaticsOptions(
            density_max_l=max_l,
            smearing_width=smearing_width,
            feature_max_l=max_l,
            feature_widths=(smearing_width,),
            kspace_cutoff_factor=kspace_cutoff_factor,
            pbc_handling=pbc_handling,
        )
        return cls(atoms, values, build_electrostatics("auto", options), external_field)

    @classmethod
    def from_calculator(cls, calculator: Calculator) -> ElectrostaticField:
        """Field of the last result of a fixed-point or Coulomb calculator.

        Raises:
            ConfigError: the calculator has no density or has not been run.
        """
        source = getattr(calculator, "density_source", None)
        if source is None:
            raise no_density(calculator)
        return cls(*source())

    def potential(self, points: ArrayLike, *, external: bool = True) -> Array:
        """Potential in V at points [..., 3] (Angstrom); ``external``: with the applied field."""
        place = np.asarray(points, dtype=np.float64)
        values = self._at(self._plan.potential_at_points, place)
        return values + place @ self.external_field if external else values

    def density(self, points: ArrayLike) -> Array:
        """Smeared charge density in e/Angstrom^3 at points [..., 3] (Angstrom)."""
        return self._at(self._plan.density_at_points, np.asarray(points, dtype=np.float64))

    def sample(self, quantity: str, points: ArrayLike) -> Array:
        """``potential`` or ``density`` at points [..., 3].

        Raises:
            ConfigError: for another quantity.
        """
        if quantity not in QUANTITIES:
            raise ConfigError(f"quantity: got {quantity!r}, allowed: {', '.join(QUANTITIES)}")
        return self.potential(points) if quantity == "potential" else self.density(points)

    def line(
        self, quantity: str, start: ArrayLike, end: ArrayLike, n_points: int = 200
    ) -> LineCut:
        """A quantity on ``n_points`` points from ``start`` to ``end``, both included."""
        first, last = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
        fraction = np.linspace(0.0, 1.0, n_points)[:, None]
        points = first + fraction * (last - first)
        distance = fraction[:, 0] * float(np.linalg.norm(last - first))
        return LineCut(points, distance, self.sample(quantity, points))

    def plane(
        self,
        quantity: str,
        origin: ArrayLike,
        u: ArrayLike,
        v: ArrayLike,
        shape: tuple[int, int] = (60, 60),
    ) -> Slice:
        """A quantity on the parallelogram at ``origin`` with sides u and v (Angstrom)."""
        side_u, side_v = np.asarray(u, dtype=float), np.asarray(v, dtype=float)
        a, b = np.linspace(0.0, 1.0, shape[0]), np.linspace(0.0, 1.0, shape[1])
        points = (
            np.asarray(origin, dtype=float) + a[:, None, None] * side_u + b[None, :, None] * side_v
        )
        sides = (float(np.linalg.norm(side_u)), float(np.linalg.norm(side_v)))
        return Slice(points, self.sample(quantity, points), sides)

    def grid(
        self,
        quantity: str,
        shape: tuple[int, int, int] = (40, 40, 40),
        *,
        margin: float = 5.0,
    ) -> Grid:
        """A quantity on a grid over the cell; ``margin`` Angstrom about the atoms without one."""
        origin, box = self.box(margin)
        steps = [np.arange(n) / n for n in shape]
        fractions = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1)
        return Grid(origin, box, self.sample(quantity, origin + fractions @ box))

    def planar_average(
        self, quantity: str, axis: int = 2, n_points: int = 200, shape: tuple[int, int] = (12, 12)
    ) -> LineCut:
        """Average over the planes spanned by the other two cell vectors, along ``axis``.

        ``shape`` points per plane; exact for periodic sums once it is finer than the shortest
        wave, a sum of few points otherwise.
        """
        origin, box = self.box(5.0)
        others = [i for i in range(3) if i != axis]
        fractions = np.zeros((n_points, *shape, 3))
        fractions[..., axis] = (np.arange(n_points) / n_points)[:, None, None]
        fractions[..., others[0]] = (np.arange(shape[0]) / shape[0])[None, :, None]
        fractions[..., others[1]] = (np.arange(shape[1]) / shape[1])[None, None, :]
        values = self.sample(quantity, origin + fractions @ box).mean(axis=(1, 2))
        along = np.arange(n_points)[:, None] / n_points * box[axis]
        return LineCut(origin + along, np.linalg.norm(along, axis=1), values)

    def box(self, margin: float) -> tuple[Array, Array]:
        """Origin and vectors of the cell, or of a box about the atoms where there is none."""
        cell = np.asarray(self.atoms.cell.array)
        if abs(np.linalg.det(cell)) > 1e-8:
            return np.zeros(3), cell
        low = self.atoms.positions.min(axis=0) - margin
        high = self.atoms.positions.max(axis=0) + margin
        return low, np.diag(high - low)

    def write_cube(
        self,
        path: str | Path,
        quantity: str = "density",
        shape: tuple[int, int, int] = (40, 40, 40),
        *,
        margin: float = 5.0,
    ) -> None:
        """Write a Gaussian cube file; the values keep their units (V or e/Angstrom^3)."""
        grid = self.grid(quantity, shape, margin=margin)
        atoms = self.atoms.copy()
        atoms.set_cell(grid.box)
        unit = "V" if quantity == "potential" else "e/Angstrom^3"
        with atomic_write(path) as temporary, temporary.open("w") as stream:
            write_cube(
                stream,
                atoms,
                data=grid.values,
                origin=grid.origin,
                comment=f"{quantity} in {unit}",
            )

    def _at(self, function: Callable[[Tensor, Tensor], Tensor], points: Array) -> Array:
        flat = torch.from_numpy(points.reshape(-1, 3)).to(self._density)
        with torch.no_grad():
            values = function(self._density, flat)
        return np.asarray(values.double().cpu().numpy()).reshape(points.shape[:-1])
