"""From a checked configuration and the data's statistics to model, stages and trainer options."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from ase.data import chemical_symbols

from fpmace import registry
from fpmace.config.schema import TrainConfig, model_class
from fpmace.conversion.foundation import apply_foundation
from fpmace.data.dataset import StructureDataset, make_loader
from fpmace.data.field_norms import average_field_feature_norms
from fpmace.data.statistics import DatasetStatistics
from fpmace.density_modes.base import DensityMode
from fpmace.electrostatics import (
    Electrostatics,
    ElectrostaticsOptions,
    build_electrostatics,
)
from fpmace.errors import ConfigError
from fpmace.models.base import Model
from fpmace.scf.options import ScfOptions
from fpmace.training.losses import build_losses
from fpmace.training.parameter_groups import WeightDecays
from fpmace.training.schedulers import RateOptions
from fpmace.training.stages import Stage
from fpmace.training.trainer import TrainerOptions

logger = logging.getLogger(__name__)


def available_outputs(config: TrainConfig) -> frozenset[str]:
    """Fields of ``Observables`` that the configured model can return."""
    return model_class(config.model).outputs


def electrostatics_options(config: TrainConfig) -> ElectrostaticsOptions:
    """The electrostatics that the configured model will have."""
    return ElectrostaticsOptions(
        density_max_l=config.atomic_multipoles_max_l,
        smearing_width=config.atomic_multipoles_smearing_width,
        feature_max_l=config.field_feature_max_l,
        feature_widths=tuple(config.field_feature_widths),
        kspace_cutoff_factor=config.kspace_cutoff_factor,
        pbc_method=config.electrostatic_pbc_method,
        include_energy_self_interaction=config.include_electrostatic_self_interaction,
        include_field_self_interaction=config.include_field_si,
        quadrupole_feature_corrections=config.quadrupole_feature_corrections,
        kspace_window=config.kspace_window,
    )


def model_config(config: TrainConfig, statistics: DatasetStatistics) -> dict[str, Any]:
    """The ``{"type": ..., ...}`` that ``build("model", ...)`` makes the model from.

    ``statistics.field_feature_norms`` must be there if the configuration asks for averages.

    Raises:
        ConfigError: if a scale is asked for that the data cannot give.
    """
    entry = registry.get("model", config.model, where="model")
    options = _backbone_options(config, statistics) | _density_options(config, statistics)
    for name, make in _FROM_DATA.items():
        if entry.option(name):
            options[name] = make(config, statistics)
    return {"type": config.model, **{k: v for k, v in options.items() if entry.option(k)}}


def _backbone_options(config: TrainConfig, statistics: DatasetStatistics) -> dict[str, Any]:
    numbers = list(statistics.atomic_numbers)
    neighbours = config.avg_num_neighbors
    return {
        "atomic_numbers": numbers,
        "atomic_energies": [statistics.atomic_energies[number] for number in numbers],
        "r_max": config.r_max,
        "num_bessel": config.num_radial_basis,
        "num_polynomial_cutoff": config.num_cutoff_basis,
        "max_ell": config.max_ell,
        "num_interactions": config.num_interactions,
        "hidden_irreps": config.hidden_irreps,
        "MLP_irreps": config.MLP_irreps,
        "avg_num_neighbors": statistics.avg_num_neighbors if neighbours is None else neighbours,
        "correlation": _listed(config.correlation),
        "gate": None if config.gate == "None" else config.gate,
        "radial_MLP": list(config.radial_MLP),
        "radial_type": _short(config.radial_type),
        "interaction_cls_first": _short(config.interaction_first),
        "interaction_cls": _short(config.interaction),
        "atomic_inter_scale": statistics.rms,
        "atomic_inter_shift": statistics.mean,
    }


def _density_options(config: TrainConfig, statistics: DatasetStatistics) -> dict[str, Any]:
    return {
        "kspace_cutoff_factor": config.kspace_cutoff_factor,
        "kspace_window": config.kspace_window,
        "atomic_multipoles_max_l": config.atomic_multipoles_max_l,
        "atomic_multipoles_smearing_width": config.atomic_multipoles_smearing_width,
        "field_feature_max_l": config.field_feature_max_l,
        "field_feature_widths": list(config.field_feature_widths),
        "field_si": config.include_field_si,
        "include_electrostatic_self_interaction": config.include_electrostatic_self_interaction,
        "quadrupole_feature_corrections": config.quadrupole_feature_corrections,
        "pbc_handling": config.electrostatic_pbc_method,
        "electrostatics": _short(config.electrostatics),
        "fermi_level_offset": fermi_level_offset(config, statistics),
        "use_linear_local_charges": config.use_linear_local_charges,
        "local_density_config": config.local_density_config,
        "fixedpoint_update_config": config.fixedpoint_update_config,
        "field_readout_config": config.field_readout_config,
        "add_local_electron_energy": config.include_local_electron_energy,
        "return_electrostatic_potentials": config.return_electrostatic_potentials,
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(part: Any) -> Any:
    """A part without options by its name alone."""
    return part["type"] if isinstance(part, dict) and set(part) == {"type"} else part


def fermi_level_offset(config: TrainConfig, statistics: DatasetStatistics) -> float:
    """Zero of the Fermi level in eV: as given, or the mean over the data (0 without any)."""
    if config.fermi_level_offset != "average":
        return float(config.fermi_level_offset)
    return statistics.fermi_level_offset or 0.0


def _norms(config: TrainConfig, statistics: DatasetStatistics) -> list[float] | None:
    if config.field_feature_norms == "None":
        return None
    if config.field_feature_norms != "average":
        return [float(value) for value in config.field_feature_norms]
    if statistics.field_feature_norms is None:
        raise ConfigError(
            "the statistics hold no average norms; give a list or 'None'",
            where="field_feature_norms",
        )
    return list(statistics.field_feature_norms)


def _density_scales(config: TrainConfig, statistics: DatasetStatistics) -> list[float] | None:
    scaling = config.atom_density_scaling
    if scaling == "None":
        return None
    if scaling == "average":
        if statistics.atom_density_scaling is None:
            raise ConfigError(
                "average needs reference atomic_multipoles, and no training configuration has "
                "them; give {atomic number: scale} or 'None'",
                where="atom_density_scaling",
            )
        scaling = statistics.atom_density_scaling
    missing = [number for number in statistics.atomic_numbers if number not in scaling]
    if missing:
        names = ", ".join(f"{chemical_symbols[z]} ({z})" for z in missing)
        raise ConfigError(f"has no scale for {names}", where="atom_density_scaling")
    return [float(scaling[number]) for number in statistics.atomic_numbers]


_FROM_DATA = {"field_feature_norms": _norms, "atom_density_scaling": _density_scales}
"""Options that may need statistics which not every data set has."""


def with_field_norms(
    config: TrainConfig, statistics: DatasetStatistics, train: StructureDataset
) -> DatasetStatistics:
    """Add average field-feature norms where the configuration asks for them.

    Norms that the statistics hold already are kept if they were made with the same electrostatics.
    """
    if not _has_option(config, "field_feature_norms") or config.field_feature_norms != "average":
        return statistics
    electrostatics = build_electrostatics(config.electrostatics, electrostatics_options(config))
    offset = fermi_level_offset(config, statistics)
    if _made_with(statistics, electrostatics, offset):
        return statistics
    norms = average_field_feature_norms(make_loader(train, 8), electrostatics, offset)
    return statistics.with_norms(norms, electrostatics)


def _has_option(config: TrainConfig, name: str) -> bool:
    return registry.get("model", config.model, where="model").option(name) is not None


def _made_with(
    statistics: DatasetStatistics, electrostatics: Electrostatics, offset: float
) -> bool:
    """Whether the statistics hold norms of the same features."""
    if statistics.field_feature_norms is None or statistics.fermi_level_offset != offset:
        return False
    known = {"summation": "direct", **(statistics.electrostatics or {})}
    return all(
        known.get(name) == value
        for name, value in electrostatics.record().items()
        if name != "include_energy_self_interaction"
    )


def check_model(config: TrainConfig) -> None:
    """Build the model once with stand-ins for what comes from the data.

    Blocks that do not go together are refused before any data is read.

    Raises:
        ConfigError: naming the option.
    """
    changes: dict[str, Any] = {}
    if config.has_density:
        changes = {"fermi_level_offset": 0.0, "atom_density_scaling": "None"}
        if config.field_feature_norms == "average":
            changes["field_feature_norms"] = "None"
    stand_in = DatasetStatistics((1,), {1: 0.0}, config.r_max, 1.0, 0.0, 1.0, 1.0, 1, 1)
    options = model_config(dataclasses.replace(config, **changes), stand_in)
    with torch.random.fork_rng(devices=[]):
        registry.build("model", options, where="model")


def build_model(
    config: TrainConfig, statistics: DatasetStatistics, *, device: torch.device
) -> Model:
    """Build the model in the configured precision on the device.

    Raises:
        ConfigError: if an option does not fit the data.
    """
    made: Model = registry.build("model", model_config(config, statistics), where="model")
    if config.foundation_model is not None:
        logger.info("%s", apply_foundation(made, config.foundation_model))
    return made.to(device=device, dtype=torch_dtype(config))


def torch_dtype(config: TrainConfig) -> torch.dtype:
    """Precision of model and data."""
    return {"float64": torch.float64, "float32": torch.float32}[config.default_dtype]


def evaluation_mode(config: TrainConfig, *, diagnostics: bool = False) -> DensityMode | None:
    """Self-consistent solutions, for evaluations; None for models without a density."""
    if not config.has_density:
        return None
    given = {"on_failure": "ignore", "diagnostics": diagnostics, **config.scf_options}
    options = ScfOptions(**given)
    return registry.build("training_mode", "scf", where="scf_options", scf=options)


def build_stages(config: TrainConfig) -> list[Stage]:
    """The stages of the schedule with their losses and modes."""
    stages = []
    for item in config.stages:
        mode: DensityMode | None = None
        if item.mode is not None:
            mode = registry.build(
                "training_mode",
                item.mode,
                where=f"{item.where}.fixed_point_training_options",
                scf=ScfOptions(**{"on_failure": "ignore", **item.scf}),
            )
        stages.append(
            Stage(
                index=item.index,
                name=item.name,
                start=item.start,
                end=item.end,
                losses=build_losses(item.loss, where=f"{item.where}.loss"),
                mode=mode,
                valid_mode=evaluation_mode(config) if config.valid_mode == "scf" else mode,
                lr=item.lr,
                group_lrs=item.group_lrs,
            )
        )
    return stages


def trainer_options(config: TrainConfig, device: torch.device) -> TrainerOptions:
    """How to train, apart from what a stage says."""
    own_average = _optimizer_name(config) == "schedulefree"
    return TrainerOptions(
        optimizer=config.optimizer,
        decays=WeightDecays(
            weight_decay=config.weight_decay,
            field_block=config.field_block_weight_decay,
            local_charges=config.local_charges_weight_decay,
        ),
        rates=RateOptions(
            scheduler=config.scheduler,
            factor=config.lr_factor,
            patience=config.scheduler_patience,
            gamma=config.lr_scheduler_gamma,
        ),
        ema_decay=config.ema_decay if config.ema and not own_average else None,
        clip_grad=config.clip_grad,
        patience=config.patience,
        eval_interval=config.eval_interval,
        device=device,
    )


def _optimizer_name(config: TrainConfig) -> str:
    part = config.optimizer
    return part if isinstance(part, str) else str(part["type"])
