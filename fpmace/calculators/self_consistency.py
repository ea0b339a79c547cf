"""The self-consistency as calculators run it: from earlier solutions, and from a fresh start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fpmace.calculators.history import DensityHistory, Snapshot
from fpmace.calculators.scf_mode import InferenceScf, report_unconverged
from fpmace.data.batch import Batch
from fpmace.density_modes.base import Start
from fpmace.errors import ScfError
from fpmace.models.base import Model
from fpmace.observables.converged import response_scf_options
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.scf.options import ScfOptions, check_scf
from fpmace.scf.state import ScfState

DEFAULT_SCF = ScfOptions(scf_tolerance=1e-6, charge_tolerance=1e-6)
"""Tighter in the charge than the training default: a charge error times the Fermi level is an
error of the energy."""

_FIELD_SCALE = 1.0
"""Angstrom per V/Angstrom (or eV): weight of inputs among displacements in the extrapolation."""


def make_scf_options(options: ScfOptions | Mapping[str, object] | None) -> ScfOptions:
    """Settings from a mapping; what it leaves out is taken from :data:`DEFAULT_SCF`.

    Raises:
        ConfigError: for an unknown name or a value out of range.
    """
    if options is None:
        return DEFAULT_SCF
    if isinstance(options, ScfOptions):
        return options
    return dataclasses.replace(DEFAULT_SCF, **check_scf(options, "scf_options"))


class SelfConsistency:
    """Solves one structure after another, each from the best start there is.

    Args:
        model: solves a self-consistency.
        options: settings of the loop.
        restart: how earlier solutions are used, see :class:`DensityHistory`.
    """

    def __init__(self, model: Model, options: ScfOptions, restart: str) -> None:
        self.model, self.options = model, options
        self.history = DensityHistory(restart, noise=options.scf_tolerance)
        self._cold = InferenceScf(scf=_with_level_from_batch(options))
        self._warm = InferenceScf(scf=options, strict=True)
        self.tolerant = InferenceScf(scf=_with_level_from_batch(options), tolerant=True)

    def response_options(self, dtype: torch.dtype) -> ScfOptions:
        """Tight tolerances at the same held charge or Fermi level."""
        tight = response_scf_options(dtype)
        return _with_level_from_batch(
            dataclasses.replace(
                self.options,
                scf_tolerance=min(self.options.scf_tolerance, tight.scf_tolerance),
                charge_tolerance=min(self.options.charge_tolerance, tight.charge_tolerance),
                on_failure="raise",
            )
        )

    def solve(self, batch: Batch, outputs: frozenset[str]) -> Observables:
        """Predictions for a batch of one structure.

        Raises:
            ScfError: the loop ran away, or ran out of steps and the options say ``raise``.
        """
        geometry = self._geometry(batch)
        observables = self._solve_warm(batch, geometry, outputs)
        if observables is None:
            self.history.clear()
            observables = predict(self.model, batch, mode=self._cold, outputs=outputs)
        if observables.scf is not None:
            report_unconverged(observables.scf, self.options.on_failure)
            if bool(observables.scf.converged.all()):
                self._remember(batch, geometry, observables)
        return observables

    def _solve_warm(
        self, batch: Batch, geometry: Snapshot, outputs: frozenset[str]
    ) -> Observables | None:
        """Start from earlier solutions; None where there are none or they lead nowhere."""
        known = self.history.predict(geometry)
        if known is None:
            return None
        level = known.fermi_level if self.options.constant_charge else batch.fermi_level
        start = Start(ScfState(known.density, level), above_local=True)
        try:
            return predict(self.model, batch, mode=self._warm, outputs=outputs, start=start)
        except ScfError:
            return None

    def _remember(self, batch: Batch, geometry: Snapshot, observables: Observables) -> None:
        """Keep what the density has beyond its field-independent part, which is made anew."""
        density, local = observables.density, observables.field_independent_density
        if observables.unknowns is not None:
            density, local = observables.unknowns.found, observables.unknowns.local
            density, local = density.detach(), local.detach()
        if density is None:
            return
        level = observables.fermi_level
        response = density if local is None else density - local
        self.history.store(
            geometry, ScfState(response, batch.fermi_level if level is None else level)
        )

    def _geometry(self, batch: Batch) -> Snapshot:
        drives = [batch.external_field[0]]
        held = batch.total_charge if self.options.constant_charge else None
        spin = batch.total_spin if "total_spin" in self.model.inputs else None
        if held is None:
            drives.append(batch.fermi_level)
        return Snapshot(
            signature=(
                _numpy(batch.atomic_numbers).tobytes(),
                _numpy(batch.pbc).tobytes(),
                *(None if item is None else float(item) for item in (held, spin)),
            ),
            positions=_numpy(batch.positions),
            cell=_numpy(batch.cell[0]),
            pbc=_numpy(batch.pbc[0]),
            drives=_FIELD_SCALE * _numpy(torch.cat(drives)),
        )


def _with_level_from_batch(options: ScfOptions) -> ScfOptions:
    """The level of every structure is in the batch, wherever it came from."""
    return dataclasses.replace(options, initial_fermi_level="from_data")


def _numpy(value: Tensor) -> np.ndarray:
    return np.asarray(value.detach().cpu().numpy())
