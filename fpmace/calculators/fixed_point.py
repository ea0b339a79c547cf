"""ASE calculator of the fixed-point models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from fpmace.calculators.base import ModelCalculator
from fpmace.calculators.history import DensityHistory, Geometry
from fpmace.calculators.inputs import InputKeys, ModelInputs, read_inputs
from fpmace.calculators.loading import require_fixed_point
from fpmace.calculators.results import graph_results
from fpmace.calculators.scf_mode import InferenceScf, report_unconverged
from fpmace.config.stages import check_scf
from fpmace.data.batch import Batch
from fpmace.data.options import DataOptions
from fpmace.density_modes.base import DensityMode, Start
from fpmace.errors import ScfError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.observables.converged import response_scf_options
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.scf.options import ScfOptions
from fpmace.scf.state import ScfState

_PROPERTIES = ["energy", "free_energy", "forces", "stress", "dipole", "charges"]

DEFAULT_SCF = ScfOptions(scf_tolerance=1e-6, charge_tolerance=1e-6)
"""Tighter in the charge than the training default: a charge error times the Fermi level is an
error of the energy."""

_FIELD_SCALE = 1.0
"""Angstrom per V/Angstrom (or eV): weight of inputs among displacements in the extrapolation."""


def make_scf_options(options: ScfOptions | Mapping[str, Any] | None) -> ScfOptions:
    """Settings from a mapping; what it leaves out is taken from :data:`DEFAULT_SCF`.

    Raises:
        ConfigError: for an unknown name or a value out of range.
    """
    if options is None:
        return DEFAULT_SCF
    if isinstance(options, ScfOptions):
        return options
    return dataclasses.replace(DEFAULT_SCF, **check_scf(options, "scf_options"))


class FixedPointSCFCalculator(ModelCalculator):
    """Energy, forces, stress, dipole and charges at self-consistency.

    ``results`` also holds ``density_coefficients`` [n_atoms, (l_max + 1)^2], ``fermi_level``,
    ``total_charge``, ``electrostatic_energy``, ``electron_energy``, ``electrostatic_features``,
    ``electrostatic_potentials``, ``num_scf_steps``, ``num_map_evaluations``, ``num_matvecs``,
    ``scf_converged``, ``convergence_history`` and, with ``history: full_history`` in the options,
    ``full_scf_history``. Units: eV, Angstrom, e, V.

    ``atoms.info`` may hold ``total_charge`` (e, default 0), ``external_field`` (V/Angstrom,
    gradient of the potential, default 0) and ``initial_fermi_level`` (eV): the level held if
    ``constant_charge`` is false, else where the search starts. The level of the options counts
    where info has none.

    Args:
        model_path: a model file, or a model (copied).
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32`` or ``float64``; that of the file if not given.
        pbc_handling: boundary condition in place of the model's own.
        scf_options: :class:`~fpmace.scf.options.ScfOptions` or a mapping of its fields;
            ``on_failure`` says what to do when the steps run out (``warn`` or ``raise``).
        charge_key, external_field_key, fermi_level_key, density_key: where inputs stand; the
            density is read only with ``initial_density: from_data``.
        restart: start from solutions of earlier calls: ``extrapolate`` along the trajectory,
            the ``last`` one, or ``none``. Never across a change of composition, periodicity or
            total charge.
        skin: Angstrom by which neighbour lists are longer, so that they can be kept.

    Raises:
        ModelFileError: the file is not a fixed-point model of fpmace.
        ConfigError: an option is unusable.
    """

    implemented_properties = _PROPERTIES
    default_outputs = ("energy", "dipole", "density", "electrostatic_potentials")

    def __init__(
        self,
        model_path: str | Path | nn.Module,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        *,
        pbc_handling: str | None = None,
        scf_options: ScfOptions | Mapping[str, Any] | None = None,
        charge_key: str = InputKeys.total_charge,
        external_field_key: str = InputKeys.external_field,
        fermi_level_key: str = InputKeys.fermi_level,
        density_key: str = InputKeys.density,
        restart: str = "extrapolate",
        skin: float = 0.5,
        **options: Any,
    ) -> None:
        keys = InputKeys(charge_key, external_field_key, fermi_level_key, density_key)
        self.scf = make_scf_options(scf_options)
        super().__init__(
            model_path,
            device=device,
            dtype=dtype,
            pbc_handling=pbc_handling,
            skin=skin,
            keys=keys,
            **options,
        )
        require_fixed_point(self.model, model_path)
        self.history = DensityHistory(restart, noise=self.scf.scf_tolerance)
        self._cold = InferenceScf(scf=_with_level_from_batch(self.scf))
        self._warm = InferenceScf(scf=self.scf, strict=True)
        self._tolerant = InferenceScf(scf=_with_level_from_batch(self.scf), tolerant=True)

    @property
    def core(self) -> FixedPointCore:
        """The model."""
        assert isinstance(self.model, FixedPointCore)
        return self.model

    def data_options(self) -> DataOptions:
        electrostatics = self.core.electrostatics.options
        return dataclasses.replace(
            super().data_options(),
            pbc_method=electrostatics.pbc_method,
            multipoles_max_l=electrostatics.density_max_l,
        )

    def inputs(self, atoms: Atoms, where: str) -> ModelInputs:
        """Charge, field, Fermi level and, if the options ask for it, the initial density."""
        columns = self.core.electrostatics.n_density
        found = read_inputs(
            atoms,
            self.keys,
            where=where,
            density_columns=columns if self.scf.initial_density == "from_data" else None,
            need_fermi_level=self.scf.initial_fermi_level == "from_data",
        )
        if found.fermi_level is None:
            level = self.scf.initial_fermi_level
            number = float(level) if isinstance(level, int | float) else 0.0
            found = dataclasses.replace(found, fermi_level=number)
        return found

    def batch_mode(self) -> DensityMode:
        return self._tolerant

    def response_options(self) -> ScfOptions:
        """Tight tolerances at the same held charge or Fermi level."""
        tight = response_scf_options(self.dtype)
        return _with_level_from_batch(
            dataclasses.replace(
                self.scf,
                scf_tolerance=min(self.scf.scf_tolerance, tight.scf_tolerance),
                charge_tolerance=min(self.scf.charge_tolerance, tight.charge_tolerance),
                on_failure="raise",
            )
        )

    def solve(self, batch: Batch, outputs: frozenset[str]) -> dict[str, Any]:
        """Results of one structure, from the best start there is.

        Raises:
            ScfError: the loop ran away, or ran out of steps and the options say ``raise``.
        """
        geometry = self._geometry(batch)
        observables = self._solve_warm(batch, geometry, outputs)
        if observables is None:
            self.history.clear()
            observables = predict(self.model, batch, mode=self._cold, outputs=outputs)
        result = observables.scf
        assert result is not None
        report_unconverged(result, self.scf.on_failure)
        if bool(result.converged.all()):
            self._remember(geometry, observables)
        return {
            **graph_results(observables, batch, 0),
            "num_map_evaluations": result.n_map_evaluations,
            "num_matvecs": result.n_matvecs,
        }

    def _solve_warm(
        self, batch: Batch, geometry: Geometry, outputs: frozenset[str]
    ) -> Observables | None:
        """Start from earlier solutions; None where there are none or they lead nowhere."""
        start = self.history.predict(geometry)
        if start is None:
            return None
        level = start.fermi_level if self.scf.constant_charge else batch.fermi_level
        begin = Start(ScfState(start.density, level), above_local=True)
        try:
            return predict(self.model, batch, mode=self._warm, outputs=outputs, start=begin)
        except ScfError:
            return None

    def _remember(self, geometry: Geometry, observables: Observables) -> None:
        density, local = observables.density, observables.field_independent_density
        level = observables.fermi_level
        assert density is not None
        assert local is not None
        assert level is not None
        self.history.store(geometry, ScfState(density - local, level))

    def _geometry(self, batch: Batch) -> Geometry:
        drives = [batch.external_field[0]]
        held = batch.total_charge if self.scf.constant_charge else None
        if held is None:
            drives.append(batch.fermi_level)
        return Geometry(
            signature=(
                _numpy(batch.atomic_numbers).tobytes(),
                _numpy(batch.pbc).tobytes(),
                None if held is None else float(held),
            ),
            positions=_numpy(batch.positions),
            cell=_numpy(batch.cell[0]),
            pbc=_numpy(batch.pbc[0]),
            drives=_FIELD_SCALE * _numpy(torch.cat(drives)),
        )


FixedPointSCF = FixedPointSCFCalculator
"""Short alias."""


def _with_level_from_batch(options: ScfOptions) -> ScfOptions:
    """The level of every structure is in the batch, wherever it came from."""
    return dataclasses.replace(options, initial_fermi_level="from_data")


def _numpy(value: Tensor) -> np.ndarray:
    return np.asarray(value.detach().cpu().numpy())
