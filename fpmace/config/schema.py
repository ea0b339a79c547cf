"""The training configuration: one frozen dataclass that flags, YAML keys and docs come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from e3nn.o3 import Irreps

from fpmace import registry
from fpmace.annotations import Options
from fpmace.config.aliases import ALIASES, flat_options
from fpmace.config.option import RunOption, options_of
from fpmace.config.options_run import DataFileOptions, ModelOptions, RunOptions
from fpmace.config.options_training import EvaluationOptions, OptimizerOptions, ScheduleOptions
from fpmace.config.stages import StageConfig
from fpmace.models.base import Model


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    RunOptions,
    DataFileOptions,
    ModelOptions,
    ScheduleOptions,
    OptimizerOptions,
    EvaluationOptions,
):
    """Everything a training run is told, read once and never changed.

    Made by :func:`fpmace.config.load.load_config` or :func:`fpmace.config.load.resolve`, which
    check the values and fill in those that follow from others. ``model`` is then complete:
    ``{"type": name, ...}`` with every option that the data does not give. Its options can be read
    under their flat names too (``config.r_max``); None if the model has no such option.

    Attributes:
        stages: the stages of ``train_schedule``.
    """

    stages: tuple[StageConfig, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name in ALIASES:
            return self.model_options.get(ALIASES[name])
        raise AttributeError(f"a configuration has no option {name!r}")

    @property
    def model_options(self) -> Options:
        """``model`` as a mapping."""
        return {"type": self.model} if isinstance(self.model, str) else dict(self.model)

    @property
    def model_name(self) -> str:
        """The registered name of the model."""
        return str(self.model_options["type"])

    @property
    def num_channels(self) -> int | None:
        """Number of features of each order; None if it differs between orders."""
        counts = {mul for mul, _ in Irreps(self.hidden_irreps)}
        return counts.pop() if len(counts) == 1 else None

    @property
    def max_L(self) -> int:
        """Highest order of the features."""
        return int(Irreps(self.hidden_irreps).lmax)

    @cached_property
    def has_density(self) -> bool:
        """Whether the model has charges or multipoles on its atoms."""
        return model_class(self.model_name).has_density

    @cached_property
    def solves_self_consistency(self) -> bool:
        """Whether the model needs a mode to find its density (and so has SCF options)."""
        return model_class(self.model_name).solves(self.model_options)


def model_class(name: str) -> type[Model]:
    """The class registered as a model under ``name``; what it is stands in its attributes."""
    return cast(type[Model], registry.get("model", name, where="model").target)


def _all_options() -> dict[str, RunOption]:
    """Options of the schema, the flat ones of the model behind its own."""
    found = options_of(TrainConfig)
    before = list(found)[: list(found).index("init_from") + 1]
    return {
        **{name: found[name] for name in before},
        **flat_options(),
        **{name: item for name, item in found.items() if name not in before},
    }


OPTIONS: dict[str, RunOption] = _all_options()
"""Every flag and key by name."""


def applicable_options(config: TrainConfig) -> list[RunOption]:
    """The options that have a meaning for the configured model, without the flat ones."""
    return [
        item
        for item in OPTIONS.values()
        if not item.model_option and (not item.role.needs or getattr(config, item.role.needs))
    ]
