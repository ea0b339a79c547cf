"""Stages of a training: which epochs, which losses, which learning rates, which mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fpmace import registry
from fpmace.annotations import Options, Positive, check, type_name
from fpmace.config.options_training import Rate
from fpmace.errors import ConfigError, suggestion
from fpmace.models.base import GROUPS
from fpmace.scf.options import ScfOptions, check_scf

WHERE = "train_schedule"
_KEYS = ("name", "start", "end", "loss", "lr", "freeze", "fixed_point_training_options")


@dataclass(frozen=True)
class StageConfig:
    """One stage of the schedule.

    Attributes:
        name: shown in logs and tables.
        start, end: first and last epoch, both included.
        loss: loss name -> weight, or mapping with ``weight`` and options.
        lr: learning rate.
        group_lrs: parameter group -> learning rate, where it differs.
        mode: training mode as a part (``{"type": "direct"}``); None for models without density.
        scf: the ``scf`` block as given, checked; empty for modes without one.
        index: position in the schedule.
        freeze: parts of the model that are not trained.
    """

    name: str
    start: int
    end: int
    loss: Options
    lr: float
    group_lrs: dict[str, float] = field(default_factory=dict)
    mode: Options | None = None
    scf: Options = field(default_factory=dict)
    index: int = 0
    freeze: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Place in the configuration, for messages."""
        return f"{WHERE}.{self.index}"

    @property
    def n_epochs(self) -> int:
        return self.end - self.start + 1

    def scf_options(self) -> ScfOptions:
        """Self-consistency settings: the defaults, changed by the ``scf`` block."""
        return ScfOptions(**self.scf)

    def to_dict(self) -> Options:
        """The stage as it would stand in ``train_schedule``."""
        result: Options = {
            "name": self.name,
            "start": self.start,
            "end": self.end,
            "loss": dict(self.loss),
            "lr": self.lr,
            **{f"{group}_lr": value for group, value in self.group_lrs.items()},
        }
        if self.freeze:
            result["freeze"] = list(self.freeze)
        if self.mode is not None:
            options = {key: value for key, value in self.mode.items() if key != "type"}
            result["fixed_point_training_options"] = {"mode": self.mode["type"], **options}
            if self.scf:
                result["fixed_point_training_options"]["scf"] = dict(self.scf)
        return result


@dataclass(frozen=True)
class StageDefaults:
    """What a stage uses for the keys that it leaves out."""

    loss: Mapping[str, object]
    lr: float
    group_lrs: Mapping[str, float]
    training_options: Mapping[str, object] | None
    freeze: tuple[str, ...] = ()

    @property
    def solves_self_consistency(self) -> bool:
        return self.training_options is not None


def parse_schedule(
    schedule: Mapping[int, object], defaults: StageDefaults
) -> tuple[tuple[StageConfig, ...], list[ConfigError]]:
    """Read and check a schedule; return its stages and everything that is wrong with it."""
    problems: list[ConfigError] = []
    stages: list[StageConfig] = []
    for position, (key, given) in enumerate(schedule.items()):
        if key != position:
            problems.append(
                ConfigError(
                    f"stages are numbered 0, 1, 2, ... in order; expected {position}, got {key!r}",
                    where=f"{WHERE}.{key}",
                )
            )
        parser = _StageParser(position, given, defaults)
        stage = parser.parse()
        problems += parser.problems
        if stage is not None:
            stages.append(stage)
    if not problems:
        problems += _check_epochs(stages)
    return tuple(stages), problems


def _check_epochs(stages: list[StageConfig]) -> list[ConfigError]:
    problems = []
    expected = 0
    names: dict[str, int] = {}
    for stage in stages:
        if stage.name in names:
            problems.append(
                ConfigError(
                    f"the name '{stage.name}' is that of stage {names[stage.name]} too",
                    where=f"{stage.where}.name",
                )
            )
        names[stage.name] = stage.index
        if stage.start != expected:
            problems.append(
                ConfigError(_epoch_message(stage, expected), where=f"{stage.where}.start")
            )
        expected = stage.end + 1
    return problems


def _epoch_message(stage: StageConfig, expected: int) -> str:
    if stage.index == 0:
        return f"the first stage must start at epoch 0, got {stage.start}"
    fault = "overlaps" if stage.start < expected else "leaves a gap after"
    return (
        f"stage {stage.index} starts at epoch {stage.start} and {fault} stage "
        f"{stage.index - 1}, which ends at {expected - 1}; expected start: {expected}"
    )


class _StageParser:
    """Reads one stage, collecting problems instead of stopping at the first."""

    def __init__(self, index: int, given: object, defaults: StageDefaults) -> None:
        self.index, self.defaults = index, defaults
        self.given = given if isinstance(given, Mapping) else {}
        self.where = f"{WHERE}.{index}"
        self.problems: list[ConfigError] = []
        if not isinstance(given, Mapping):
            self._problem("", f"expected a mapping with {', '.join(_KEYS)}, got {given!r}")

    def parse(self) -> StageConfig | None:
        if self.problems:
            return None
        self._check_keys()
        start = self._value("start", int, None)
        end = self._value("end", int, None)
        if start is not None and end is not None and end < start:
            self._problem("end", f"the last epoch {end} is before the first, {start}")
        stage = {
            "name": self._value("name", str, f"stage_{self.index}"),
            "start": start,
            "end": end,
            "loss": self._loss(),
            "lr": self._value("lr", Positive, self.defaults.lr),
            "group_lrs": self._group_lrs(),
            "freeze": self._value("freeze", tuple[str, ...], self.defaults.freeze),
        }
        mode, scf = self._mode()
        if self.problems:
            return None
        return StageConfig(**stage, mode=mode, scf=scf, index=self.index)

    def _problem(self, key: str, message: str) -> None:
        self.problems.append(
            ConfigError(message, where=f"{self.where}.{key}" if key else self.where)
        )

    def _check_keys(self) -> None:
        known = [*_KEYS, *(f"{group}_lr" for group in GROUPS)]
        for key in self.given:
            if key not in known:
                self._problem(
                    str(key),
                    f"a stage has no key '{key}'{suggestion(str(key), known)} "
                    f"(accepts: {', '.join(known)})",
                )

    def _value(self, key: str, annotation: object, default: object) -> Any:
        value = self.given.get(key, default)
        if value is None:
            self._problem(key, f"missing; expects {type_name(annotation)}")
            return None
        try:
            return check(value, annotation, where=f"{self.where}.{key}")
        except ConfigError as error:
            self.problems.append(error)
            return None

    def _group_lrs(self) -> dict[str, float]:
        result = dict(self.defaults.group_lrs)
        for group in GROUPS:
            key = f"{group}_lr"
            if key in self.given:
                result[group] = self._value(key, Rate, None)
        return result

    def _loss(self) -> Options:
        given = self.given.get("loss", self.defaults.loss)
        loss, problems = check_losses(given, f"{self.where}.loss")
        self.problems += problems
        return loss

    def _mode(self) -> tuple[Options | None, Options]:
        key = "fixed_point_training_options"
        given = self.given.get(key, self.defaults.training_options)
        if given is None:
            return None, {}
        if not self.defaults.solves_self_consistency:
            self._problem(key, "has a meaning only for models that solve a self-consistency")
            return None, {}
        try:
            return check_training_options(given, f"{self.where}.{key}")
        except ConfigError as error:
            self.problems.append(error)
            return None, {}


def check_losses(given: object, where: str) -> tuple[Options, list[ConfigError]]:
    """Check ``{name: weight or {weight, **options}}``; return it with the problems found."""
    if not isinstance(given, Mapping) or not given:
        known = ", ".join(registry.names("loss"))
        message = f"expects a mapping from loss to weight, got {given!r} (known: {known})"
        return {}, [ConfigError(message, where=where)]
    problems = []
    for name, value in given.items():
        try:
            _check_loss(str(name), value, where)
        except ConfigError as error:
            problems.append(error)
    return dict(given), problems


def _check_loss(name: str, value: object, where: str) -> None:
    registry.get("loss", name, where=f"{where}.{name}")
    options = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = options.pop("weight", None)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
        raise ConfigError(
            f"expects a weight >= 0 or a mapping with 'weight' and options, got {value!r}",
            where=f"{where}.{name}",
        )
    registry.normalise("loss", {"type": name, **options}, where=f"{where}.{name}")


def check_training_options(given: object, where: str) -> tuple[Options, Options]:
    """Check ``{mode, scf: {...}, **options of the mode}``.

    Returns:
        The mode as a part, and the ``scf`` block with checked values.

    Raises:
        ConfigError: for an unknown mode, option or ``scf`` key, an ``scf`` block that the mode
            does not use, or one that lacks what the mode needs.
    """
    if not isinstance(given, Mapping) or "mode" not in given:
        raise ConfigError(
            f"expects a mapping with 'mode' (one of {', '.join(registry.names('training_mode'))})"
            f", got {given!r}",
            where=where,
        )
    options = dict(given)
    name = options.pop("mode")
    scf = options.pop("scf", None)
    entry = registry.get("training_mode", name, where=f"{where}.mode")
    mode = registry.normalise("training_mode", {"type": name, **options}, where=where)
    if "scf" not in entry.context:
        if scf is not None:
            raise ConfigError(
                f"mode '{name}' does not run an SCF loop; remove the scf block",
                where=f"{where}.scf",
            )
        return mode, {}
    checked = check_scf({} if scf is None else scf, f"{where}.scf")
    _check_required_scf(name, checked, f"{where}.scf")
    _check_build(mode, checked, where)
    return mode, checked


def _check_build(mode: Mapping[str, object], scf: Options, where: str) -> None:
    """Let the mode itself refuse settings that it cannot work with."""
    try:
        registry.build("training_mode", mode, where=where, scf=ScfOptions(**scf))
    except ConfigError as error:
        prefix = "fixed_point_training_options"
        if not str(error).startswith(prefix):
            raise
        place, _, text = str(error).removeprefix(prefix).partition(": ")
        raise ConfigError(text, where=where + place) from error


def _check_required_scf(mode: str, scf: Options, where: str) -> None:
    if mode not in ("unroll_scf", "implicit"):
        return
    solver = scf.get("solver", {"type": "linear"})["type"]
    mixes = solver == "linear" or (solver == "auto" and mode == "unroll_scf")
    needed = ["num_scf_steps", *(["mixing_parameter"] if mixes else [])]
    missing = [key for key in needed if scf.get(key) is None]
    if missing:
        raise ConfigError(
            f"mode '{mode}' needs {' and '.join(missing)} in its scf block "
            "(for example num_scf_steps: 10, mixing_parameter: 0.3)",
            where=where,
        )
