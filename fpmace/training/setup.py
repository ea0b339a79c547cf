"""From a checked configuration and the data's statistics to model, stages and trainer options."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import torch

from fpmace import registry
from fpmace.annotations import plain
from fpmace.config.aliases import electrostatics_options
from fpmace.config.schema import TrainConfig, model_class
from fpmace.conversion.foundation import apply_foundation
from fpmace.data.dataset import StructureDataset, make_loader
from fpmace.data.field_norms import average_field_feature_norms
from fpmace.data.statistics import DatasetStatistics, HeadStatistics
from fpmace.density_modes.base import DensityMode
from fpmace.electrostatics import (
    Electrostatics,
    build_electrostatics,
)
from fpmace.errors import ConfigError
from fpmace.models.base import GROUPS, Model
from fpmace.models.initial import load_initial, rebuilt, with_atomic_energies
from fpmace.models.options import scale_per_element
from fpmace.scf.options import ScfOptions
from fpmace.training.losses import build_losses
from fpmace.training.parameter_groups import WeightDecays
from fpmace.training.schedulers import RateOptions
from fpmace.training.stages import Stage
from fpmace.training.trainer import TrainerOptions

logger = logging.getLogger(__name__)


def available_outputs(config: TrainConfig) -> frozenset[str]:
    """Fields of ``Observables`` that the configured model can return."""
    return model_class(config.model_name).outputs_with(config.model_options)


def model_config(config: TrainConfig, statistics: DatasetStatistics) -> dict[str, object]:
    """The ``{"type": ..., ...}`` that ``build("model", ...)`` makes the model from.

    ``statistics.field_feature_norms`` must be there if the configuration asks for averages.

    Raises:
        ConfigError: if a value is asked for that the data cannot give.
    """
    options = {"type": config.model_name}
    for option in registry.get("model", config.model_name, where="model").options:
        value = config.model_options.get(option.name, registry.LATER)
        word = option.from_data.word if option.from_data else None
        if value is registry.LATER or (word is not None and value == word):
            value = _from_data(option.name, statistics)
        elif option.name == "atom_density_scaling" and value is not None:
            value = scale_per_element(value, statistics.atomic_numbers)
        options[option.name] = value
    return dict(plain(options))


def _from_data(name: str, statistics: DatasetStatistics) -> object:
    if name not in _FROM_DATA:
        known = ", ".join(_FROM_DATA)
        raise ConfigError(f"the data does not give it (it gives {known})", where=f"model.{name}")
    return _FROM_DATA[name](statistics)


def _mean_fermi_level(statistics: DatasetStatistics) -> float:
    return statistics.fermi_level_offset or 0.0


def fermi_level_offset(config: TrainConfig, statistics: DatasetStatistics) -> float:
    """Zero of the Fermi level in eV: as given, or the mean over the data (0 without any)."""
    given = config.fermi_level_offset
    return _mean_fermi_level(statistics) if given == "average" else float(given)


def _mean_norms(statistics: DatasetStatistics) -> tuple[float, ...]:
    if statistics.field_feature_norms is None:
        raise ConfigError(
            "the statistics hold no average norms; give a list or None",
            where="field_feature_norms",
        )
    return statistics.field_feature_norms


def _mean_scales(statistics: DatasetStatistics) -> list[float]:
    if statistics.atom_density_scaling is None:
        raise ConfigError(
            "average needs reference atomic_multipoles or charges, and no training configuration "
            "has them; give {atomic number: scale} or None",
            where="atom_density_scaling",
        )
    return scale_per_element(statistics.atom_density_scaling, statistics.atomic_numbers)


def _energies(found: DatasetStatistics | HeadStatistics) -> list[float]:
    """In ascending order of the elements."""
    return [energy for _, energy in sorted(found.atomic_energies.items())]


def _per_head(
    found: DatasetStatistics, value: Callable[[DatasetStatistics | HeadStatistics], object]
) -> object:
    """A value of the whole set; with several heads, a list of that of each."""
    return [value(item) for item in found.heads.values()] if found.heads else value(found)


_FROM_DATA: dict[str, Callable[[DatasetStatistics], object]] = {
    "heads": lambda found: tuple(found.heads or ("Default",)),
    "atomic_numbers": lambda found: found.atomic_numbers,
    "atomic_energies": lambda found: _per_head(found, _energies),
    "avg_num_neighbors": lambda found: found.avg_num_neighbors,
    "atomic_inter_scale": lambda found: _per_head(found, lambda item: item.rms),
    "atomic_inter_shift": lambda found: _per_head(found, lambda item: item.mean),
    "fermi_level_offset": _mean_fermi_level,
    "field_feature_norms": _mean_norms,
    "atom_density_scaling": _mean_scales,
}
"""What the data gives for options that are marked with ``FromData``."""


def with_field_norms(
    config: TrainConfig, statistics: DatasetStatistics, train: StructureDataset
) -> DatasetStatistics:
    """Add average field-feature norms where the configuration asks for them.

    Norms that the statistics hold already are kept if they were made with the same electrostatics.
    """
    if config.field_feature_norms != "average":
        if config.field_feature_norms is None and "fermi_level_offset" in config.model_options:
            logger.warning(
                "field_feature_norms: None leaves field features at their size (often tens of V), "
                "with which an untrained rule diverges; use average, or a list of norms"
            )
        return statistics
    options = dataclasses.replace(
        electrostatics_options(lambda name: getattr(config, name)),
        include_energy_self_interaction=config.include_electrostatic_self_interaction,
    )
    electrostatics = build_electrostatics(config.electrostatics, options)
    offset = fermi_level_offset(config, statistics)
    if _made_with(statistics, electrostatics, offset):
        return statistics
    levels = train.info.properties.get("fermi_level", 0) > 0
    norms = average_field_feature_norms(
        make_loader(train, 8), electrostatics, offset, with_levels=levels
    )
    return statistics.with_norms(norms, electrostatics)


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
    without_data = {"field_feature_norms": None, "atom_density_scaling": None}
    changes = {name: value for name, value in without_data.items() if name in config.model_options}
    if config.field_feature_norms != "average":
        changes.pop("field_feature_norms", None)
    config = dataclasses.replace(config, model=config.model_options | changes)
    stand_in = DatasetStatistics((1,), {1: 0.0}, config.r_max, 1.0, 0.0, 1.0, 1.0, 1, 1)
    heads = config.model_options.get("heads", registry.LATER)
    if heads is not registry.LATER and len(heads) > 1:
        one = HeadStatistics({1: 0.0}, 0.0, 1.0, 1.0, 1)
        stand_in = dataclasses.replace(stand_in, heads=dict.fromkeys(heads, one))
    options = model_config(config, stand_in)
    with torch.random.fork_rng(devices=[]):
        registry.build("model", options, where="model")


def build_model(
    config: TrainConfig,
    statistics: DatasetStatistics,
    *,
    device: torch.device,
    own_energies: bool = False,
) -> Model:
    """Build the model in the configured precision on the device, or take it from ``init_from``.

    Args:
        own_energies: whether atomic energies were asked for, in place of those of ``init_from``.

    Raises:
        ConfigError: if an option does not fit the data.
    """
    if config.init_from is not None:
        start = load_initial(config.init_from)
        free = {n: config.model_options[n] for n in start.free_options if n in start.config}
        if any(start.config[name] != value for name, value in free.items()):
            start = rebuilt(start, **free)
        if own_energies:
            found = [item.atomic_energies for item in (statistics.heads or {}).values()]
            start = with_atomic_energies(start, found or [statistics.atomic_energies])
            logger.info("init_from: atomic energies of the configuration in place of the file's")
        return start.train().to(device=device, dtype=torch_dtype(config))
    made: Model = registry.build("model", model_config(config, statistics), where="model")
    if config.foundation_model is not None:
        logger.info("%s", apply_foundation(made, config.foundation_model, config.foundation_head))
    return made.to(device=device, dtype=torch_dtype(config))


def torch_dtype(config: TrainConfig) -> torch.dtype:
    """Precision of model and data."""
    return {"float64": torch.float64, "float32": torch.float32}[config.default_dtype]


def evaluation_mode(config: TrainConfig, *, diagnostics: bool = False) -> DensityMode | None:
    """Self-consistent solutions, for evaluations; None for models that solve nothing."""
    if not config.solves_self_consistency:
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
                freeze=item.freeze,
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
            groups={
                group: decay
                for group in GROUPS
                if group not in ("field_block", "local_charges")
                and (decay := getattr(config, f"{group}_weight_decay")) is not None
            },
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
        accumulate=config.accumulate,
        seed=config.seed,
        device=device,
    )


def _optimizer_name(config: TrainConfig) -> str:
    part = config.optimizer
    return part if isinstance(part, str) else str(part["type"])
