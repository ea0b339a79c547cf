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
        """Whether the model predicts a density (and so has field, SCF and training modes)."""
        return model_has_density(self.model)


def model_has_density(name: str) -> bool:
    """Whether the registered model ``name`` has the options of the density."""
    return registry.get("model", name, where="model").option("atomic_multipoles_max_l") is not None


OPTIONS: dict[str, Option] = options_of(TrainConfig)
"""Every option by name."""


def applicable_options(config: TrainConfig) -> list[Option]:
    """The options that have a meaning for the configured model."""
    return [item for item in OPTIONS.values() if config.has_density or not item.meta.density_only]
