"""ASE calculator of the models that solve a self-consistency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fpmace.calculators.base import ModelCalculator
from fpmace.calculators.inputs import InputKeys
from fpmace.errors import ConfigError, ModelFileError
from fpmace.models.base import Model
from fpmace.scf.options import ScfOptions


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

    def __init__(
        self,
        model_path: str | Path | nn.Module | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        *,
        scf_options: ScfOptions | Mapping[str, object] | None = None,
        charge_key: str = InputKeys.total_charge,
        external_field_key: str = InputKeys.external_field,
        fermi_level_key: str = InputKeys.fermi_level,
        density_key: str = InputKeys.density,
        **options: Any,
    ) -> None:
        if "keys" in options:
            raise ConfigError("give charge_key, external_field_key, ... instead", where="keys")
        keys = InputKeys(charge_key, external_field_key, fermi_level_key, density_key)
        super().__init__(
            model_path,
            device=device,
            dtype=dtype,
            scf_options=scf_options,
            keys=keys,
            **options,
        )

    def check_model(self, model: Model, source: object) -> None:
        """Refuse a model that solves nothing.

        Raises:
            ModelFileError: naming the calculator that fits.
        """
        if not model.solves_self_consistency:
            raise ModelFileError(
                f"{_name(source)}: is a {type(model).__name__} model without a self-consistent "
                "density; use MACECalculator"
            )


def _name(source: object) -> str:
    return "model" if isinstance(source, nn.Module) else str(source)


FixedPointSCF = FixedPointSCFCalculator
"""Short alias."""
