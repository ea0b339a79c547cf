"""ASE calculator of given Gaussian multipoles, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from fpmace.annotations import Options, Values
from fpmace.boundaries import pbc_class
from fpmace.calculators.inputs import InputKeys, configuration, read_inputs
from fpmace.calculators.keywords import options_of_ase
from fpmace.data.checks import check_cell, pbc_problem
from fpmace.electrostatics import Electrostatics, ElectrostaticsOptions, build_electrostatics
from fpmace.errors import DataError, suggestion
from fpmace.observables.fields import DensitySource, no_result
from fpmace.registry import PartConfig

_COLUMNS = (1, 4, 9)

_PROPERTIES = ["energy", "free_energy", "forces", "stress", "dipole", "charges"]


class GTOCoulombCalculator(Calculator):
    """Energy, forces, stress and dipole of Gaussian multipoles that the user supplies.

    The multipoles stand in ``atoms.arrays``: [n_atoms, (l_max + 1)^2] e Angstrom^l in the order
    Q, (d_y, d_z, d_x), (xy, yz, z^2, zx, x^2 - y^2), or [n_atoms] charges. They move with their
    atoms and do not respond. ``atoms.info['external_field']`` (V/Angstrom, gradient of the
    potential) adds ``field . dipole`` to the energy.

    Args:
        smearing_width: width of the Gaussians, Angstrom. Well below the distances between atoms
            it is the point-charge limit; the cost of periodic sums grows as its inverse cube.
        pbc_handling: boundary condition, see the documentation of boundary conditions.
        multipoles_key: name in ``atoms.arrays``.
        kspace_cutoff_factor, kspace_window: accuracy and smoothness of periodic sums.
        include_self_interaction: keep each multipole's energy in its own potential.
        electrostatics: name (and options) of the registered electrostatics that sums.
    """

    implemented_properties = _PROPERTIES

    def __init__(
        self,
        *,
        smearing_width: float = 1.5,
        pbc_handling: str = "auto",
        multipoles_key: str = "multipoles",
        kspace_cutoff_factor: float = 1.5,
        kspace_window: float = 0.0,
        include_self_interaction: bool = False,
        electrostatics: PartConfig = "auto",
        **more: Any,
    ) -> None:
        super().__init__(**options_of_ase(more, type(self)))
        self.multipoles_key = multipoles_key
        self._settings: Options = {
            "smearing_width": smearing_width,
            "feature_widths": (smearing_width,),
            "pbc_handling": pbc_handling,
            "kspace_cutoff_factor": kspace_cutoff_factor,
            "kspace_window": kspace_window,
            "include_energy_self_interaction": include_self_interaction,
        }
        self._summation = electrostatics
        self._models: dict[int, Electrostatics] = {}
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self.electrostatics(0)

    def electrostatics(self, max_l: int) -> Electrostatics:
        """The sums for multipoles up to ``max_l``."""
        if max_l not in self._models:
            options = ElectrostaticsOptions(
                density_max_l=max_l, feature_max_l=max_l, **self._settings
            )
            self._models[max_l] = build_electrostatics(self._summation, options)
        return self._models[max_l]

    def multipoles(self, atoms: Atoms) -> np.ndarray:
        """[n_atoms, (l_max + 1)^2] as given with the structure.

        Raises:
            DataError: they are missing, not finite, or of the wrong shape.
        """
        key = self.multipoles_key
        if key not in atoms.arrays:
            present = [name for name in atoms.arrays if name not in ("numbers", "positions")]
            raise DataError(
                f"structure: atoms.arrays has no '{key}' (multipoles){suggestion(key, present)} "
                f"(present: {', '.join(present) or 'nothing'})"
            )
        values = np.asarray(atoms.arrays[key], dtype=np.float64)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] not in _COLUMNS:
            raise DataError(
                f"structure: atoms.arrays['{key}']: has shape {values.shape}, expected 1, 4 or 9 "
                "numbers per atom"
            )
        if not np.isfinite(values).all():
            raise DataError(f"structure: atoms.arrays['{key}']: has a value that is not finite")
        return values

    def density_source(self) -> DensitySource:
        """What potentials and densities at points are made of, for the last structure.

        Raises:
            ConfigError: the calculator holds no result.
        """
        if self.atoms is None or not self.results:
            raise no_result()
        multipoles = self.multipoles(self.atoms)
        model = self.electrostatics(round(multipoles.shape[1] ** 0.5) - 1)
        field = self.atoms.info.get("external_field", (0.0, 0.0, 0.0))
        return DensitySource(self.atoms, multipoles, model, field)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """ASE's comparison of structures, and of multipoles and field."""
        changes: list[str] = list(super().check_state(atoms, tol=tol))
        if not changes and self._last is not None:
            field = read_inputs(atoms, InputKeys(), where="structure").external_field
            same = zip(self._last, (self.multipoles(atoms), field), strict=True)
            if not all(np.array_equal(old, new) for old, new in same):
                changes.append("info")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute everything that exists for the structure.

        Raises:
            DataError: multipoles, cell or periodicity are unusable.
            PropertyNotImplementedError: stress without three periodic directions.
        """
        super().calculate(atoms, list(properties or ["energy"]), list(system_changes))
        structure = self.atoms
        assert structure is not None
        if "stress" in (properties or ()) and not structure.pbc.all():
            raise PropertyNotImplementedError(
                "stress: is defined with three periodic directions, here pbc is "
                f"{pbc_class(structure.pbc)}"
            )
        inputs = read_inputs(structure, InputKeys(), where="structure")
        config = configuration(structure, inputs, source="structure", index=0)
        multipoles = self.multipoles(structure)
        check_cell(config)
        problem = pbc_problem(config, self._settings["pbc_handling"])
        if problem is not None:
            raise DataError(f"{config.where}: {problem}")
        model = self.electrostatics(round(multipoles.shape[1] ** 0.5) - 1)
        self.results = _properties(
            model,
            config.positions,
            config.cell,
            config.pbc,
            torch.from_numpy(multipoles),
            torch.from_numpy(inputs.external_field),
        )
        self.results["charges"] = multipoles[:, 0].copy()
        self._last = (multipoles.copy(), inputs.external_field.copy())


def _properties(
    model: Electrostatics,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    density: Tensor,
    field: Tensor,
) -> Values:
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    leaf = torch.from_numpy(positions).clone().requires_grad_()
    symmetric = 0.5 * (strain + strain.T)
    vectors = torch.from_numpy(cell)
    moved = leaf + leaf @ symmetric
    plan = model.plan_structure(moved, vectors + vectors @ symmetric, torch.from_numpy(pbc))
    dipole = model.dipole(moved, density, plan.geometry.batch, 1)[0]
    energy = plan.energy(density)[0] + (field * dipole).sum()
    by_position, by_strain = torch.autograd.grad(energy, [leaf, strain])
    value = float(energy.detach())
    results: Values = {
        "energy": value,
        "free_energy": value,
        "forces": -by_position.numpy(),
        "dipole": dipole.detach().numpy(),
    }
    if pbc.all():
        stress = by_strain.numpy() / abs(np.linalg.det(cell))
        results["stress"] = full_3x3_to_voigt_6_stress(stress)
    return results
