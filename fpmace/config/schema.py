"""The training configuration: one frozen dataclass that flags, YAML keys and docs come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fpmace import registry
from fpmace.config.option import Option, options_of
from fpmace.config.options_model import BackboneOptions, DensityOptions, FieldOptions
from fpmace.config.options_run import DataFileOptions, RunOptions
from fpmace.config.options_training import EvaluationOptions, OptimizerOptions, ScheduleOptions
from fpmace.config.stages import StageConfig, stages_from_schedule
from fpmace.models.base import Model


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    RunOptions,
    DataFileOptions,
    BackboneOptions,
    DensityOptions,
    FieldOptions,
    ScheduleOptions,
    OptimizerOptions,
    EvaluationOptions,
):
    """Everything a training run is told, read once and never changed.

    Made by :func:`fpmace.config.load.load_config` or :func:`fpmace.config.load.resolve`, which
    check the values and fill in those that follow from others (``hidden_irreps`` from
    ``num_channels`` and ``max_L``, a ``train_schedule`` of one stage, defaults of parts).
    """

    @cached_property
    def stages(self) -> tuple[StageConfig, ...]:
        """The stages of ``train_schedule``."""
        return stages_from_schedule(self.train_schedule)

    @cached_property
    def has_density(self) -> bool:
        """Whether the model has charges or multipoles on its atoms."""
        return model_class(self.model).has_density

    @cached_property
    def solves_self_consistency(self) -> bool:
        """Whether the model needs a mode to find its density (and so has SCF options)."""
        return model_class(self.model).solves_self_consistency


def model_class(name: str) -> type[Model]:
    """The class registered as a model under ``name``; what it is stands in its attributes."""
    found: type[Model] = registry.get("model", name, where="model").target
    return found


OPTIONS: dict[str, Option] = options_of(TrainConfig)
"""Every option by name."""


def applicable_options(config: TrainConfig) -> list[Option]:
    """The options that have a meaning for the configured model."""
    return [item for item in OPTIONS.values() if config.has_density or not item.meta.density_only]
