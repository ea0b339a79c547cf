"""Fill in what follows from other values, and check what must fit together."""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from typing import Any

from fpmace import registry
from fpmace.annotations import Options
from fpmace.config.option import Need
from fpmace.config.replay import replay_heads
from fpmace.config.schema import OPTIONS, TrainConfig, model_class
from fpmace.config.stages import (
    StageConfig,
    StageDefaults,
    check_losses,
    check_training_options,
    parse_schedule,
)
from fpmace.data.heads import OF_FOUNDATION, Head, parse_heads
from fpmace.data.split import DEFAULT_VALID_FRACTION
from fpmace.errors import ConfigError
from fpmace.models.base import GROUPS
from fpmace.scf.options import check_scf

_FLOAT32_TOLERANCE = 1e-7


def complete(
    given: Options, wrong: Set[str] = frozenset()
) -> tuple[TrainConfig, list[ConfigError]]:
    """Make a complete configuration of typed values; return it with all problems.

    Args:
        given: option -> value, for options that were given.
        wrong: options already found wrong; checks that need them are passed over.
    """
    draft = _Draft(given, wrong)
    for check in _CHECKS:
        draft.run(check)
    return TrainConfig(**draft.values), draft.problems


class _Draft:
    """Values under construction."""

    def __init__(self, given: Options, wrong: Set[str]) -> None:
        self.given = given
        self.wrong = {item.split(".")[0] for item in wrong}
        options = {name: item for name, item in OPTIONS.items() if not item.model_option}
        self.values: Options = {name: item.default for name, item in options.items()}
        self.values |= given
        self.problems: list[ConfigError] = []

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def was_given(self, name: str) -> bool:
        return self.given.get(name) is not None

    def problem(self, where: str, message: str) -> None:
        self.problems.append(ConfigError(message, where=where))

    def run(self, check: Callable[[_Draft], None]) -> None:
        """Run a check; an error it raises is one more problem."""
        try:
            check(self)
        except ConfigError as error:
            located = _located(error)
            if located.where.split(".")[0] not in self.wrong:
                self.problems.append(located)

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self["model"]["type"])

    def model_is(self, fact: Need) -> bool:
        """Whether a fact holds for the model; models that are not known have all."""
        if self.model not in registry.names("model"):
            return True
        kind = model_class(self.model)
        solves = fact == "solves_self_consistency"
        return kind.solves(self["model"]) if solves else bool(getattr(kind, fact))


def _located(error: ConfigError) -> ConfigError:
    """Find the place in the text of an error that does not keep it apart."""
    place, separator, text = error.message.partition(": ")
    if error.where or not separator or place.split(".")[0] not in OPTIONS:
        return error
    return ConfigError(text, where=place)


def _expand_replay(draft: _Draft) -> None:
    """``multiheads_finetuning`` as the heads that it stands for."""
    if draft["multiheads_finetuning"]:
        draft.values |= replay_heads(draft.values)
        return
    for name in ("pt_train_file", "num_samples_pt", "weight_pt_head"):
        if draft.was_given(name) and draft[name] != OPTIONS[name].default:
            draft.problem(name, "is for multiheads_finetuning, which is not asked for")


def _check_files(draft: _Draft) -> None:
    heads = parse_heads(draft["heads"])
    if len(heads) == 1:
        _take_files(draft, heads[0])
    absent = [head.name for head in heads if head.train_file is None]
    if not draft["train_file"] and absent and "train_file" not in draft.wrong:
        text = "missing; give the training data (.xyz, .h5 or a folder)"
        if len(heads) > 1:
            text += f", or heads.{absent[0]}.train_file"
        draft.problem("train_file", text)
    if draft.was_given("valid_file") and draft.was_given("valid_fraction"):
        draft.problem(
            "valid_fraction", "valid_file is given too; validation data comes from one of them"
        )
    if not draft["valid_file"] and draft["valid_fraction"] is None:
        draft.values["valid_fraction"] = DEFAULT_VALID_FRACTION
    if draft.was_given("split_by") and draft["valid_file"]:
        draft.problem("split_by", "splits train_file, but valid_file is given; leave one out")


def _take_files(draft: _Draft, head: Head) -> None:
    """Files and atomic energies of the only head are those of the run."""
    for name in ("train_file", "valid_file", "test_file", "E0s"):
        own = getattr(head, name)
        if own is None:
            continue
        if draft.was_given(name) and draft[name] != own:
            draft.problem(name, f"contradicts heads.{head.name}.{name}; leave one out")
        draft.values[name] = own
    if head.weight != 1.0:
        draft.problem(
            f"heads.{head.name}.weight", "weighs heads against each other, but there is one"
        )


def _check_data(draft: _Draft) -> None:
    heads, foundation = parse_heads(draft["heads"]), draft["foundation_model"]
    if foundation and not draft.was_given("E0s") and heads[0].E0s is None:
        draft.values["E0s"] = "estimated"
    if draft["foundation_head"] and not foundation:
        draft.problem("foundation_head", "names a head, but there is no foundation_model")
    asked = {f"heads.{head.name}.E0s": head.E0s for head in heads if head.E0s is not None}
    for where, energies in {"E0s": draft["E0s"], **asked}.items():
        words = ("IsolatedAtom", "average", *OF_FOUNDATION)
        if isinstance(energies, str) and energies not in words:
            draft.problem(
                where,
                f"expects {', '.join(words)} or a mapping {{atomic number: eV}}, got {energies!r}",
            )
        if isinstance(energies, str) and energies in OF_FOUNDATION and not foundation:
            draft.problem(
                where, f"is '{energies}', but there is no foundation_model; name its file"
            )
    if draft["init_from"] and draft["foundation_model"]:
        draft.problem("init_from", "foundation_model is given too; leave one out")


def _check_heads(draft: _Draft) -> None:
    """Several heads are an option of the model."""
    names = [head.name for head in parse_heads(draft["heads"])]
    if draft.model not in registry.names("model"):
        return
    if registry.get("model", draft.model).option("heads") is None:
        if len(names) > 1:
            draft.problem(
                "heads", f"{len(names)} given ({', '.join(names)}), but a {draft.model} has one"
            )
        return
    given = draft["model"].get("heads", registry.LATER)
    known = names if given is registry.LATER else list(given)
    if max(len(known), len(names)) > 1 and known != names:
        draft.problem(
            "heads",
            f"has {', '.join(names)}, but the model has {', '.join(known)}; give all of them in "
            "this order, or take one out of the model: fpmace-convert --head NAME",
        )
    elif len(names) > 1:
        draft.values["model"] = {**draft["model"], "heads": names}


def _check_run(draft: _Draft) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", draft["device"]):
        draft.problem("device", f"expects cpu, cuda or cuda:N, got {draft['device']!r}")
    if not draft["name"] or "/" in draft["name"]:
        draft.problem("name", f"expects a file name without '/', got {draft['name']!r}")


def _check_model(draft: _Draft) -> None:
    for name in draft.given:
        need = OPTIONS[name].role.needs
        if need and not draft.model_is(need) and draft[name] != OPTIONS[name].default:
            draft.problem(name, f"has no meaning for model '{draft.model}'; leave it out")


def _check_parts(draft: _Draft) -> None:
    for name, item in OPTIONS.items():
        if item.part_kind in (None, "model") or item.model_option or name in draft.wrong:
            continue
        draft.run(lambda draft, name=name: _normalise_part(draft, name))  # type: ignore[misc]


def _normalise_part(draft: _Draft, name: str) -> None:
    kind = OPTIONS[name].part_kind
    assert kind is not None
    value = draft[name]
    if OPTIONS[name].role.repeatable:
        draft.values[name] = tuple(
            registry.normalise(kind, item, where=f"{name}.{n}") for n, item in enumerate(value)
        )
        return
    draft.values[name] = registry.normalise(kind, value, where=name)


def _check_optimizer(draft: _Draft) -> None:
    if not isinstance(draft["optimizer"], dict) or "type" not in draft["optimizer"]:
        return
    optimizer = dict(draft["optimizer"])
    entry = registry.get("optimizer", optimizer["type"])
    given = draft.given.get("optimizer")
    if entry.option("amsgrad") is None:
        if draft.was_given("amsgrad") and draft["amsgrad"]:
            draft.problem("amsgrad", f"the optimizer {entry.name} has no AMSGrad variant")
        draft.values["amsgrad"] = False
        return
    if isinstance(given, dict) and "amsgrad" in given:
        if draft.was_given("amsgrad") and draft["amsgrad"] != given["amsgrad"]:
            draft.problem("amsgrad", "contradicts the option of the same name under optimizer")
        draft.values["amsgrad"] = given["amsgrad"]
    draft.values["optimizer"] = optimizer | {"amsgrad": draft["amsgrad"]}


def _check_scf_options(draft: _Draft) -> None:
    if draft.model_is("solves_self_consistency"):
        draft.values["scf_options"] = check_scf(draft["scf_options"], "scf_options")
        _check_precision(draft, draft["scf_options"], "scf_options")


def _check_schedule(draft: _Draft) -> None:
    solves = draft.model_is("solves_self_consistency")
    options = draft["fixed_point_training_options"] if solves else None
    defaults = StageDefaults(
        loss=draft["loss"],
        lr=draft["lr"],
        group_lrs={
            group: draft[f"{group}_lr"] for group in GROUPS if draft[f"{group}_lr"] is not None
        },
        training_options=options,
        freeze=draft["freeze"],
    )
    schedule = draft["train_schedule"]
    if not schedule:
        schedule = _single_stage(draft, defaults)
        if schedule is None:
            return
    stages, problems = parse_schedule(schedule, defaults)
    draft.problems += problems
    for stage in stages:
        _check_precision(draft, stage.scf, f"{stage.where}.fixed_point_training_options.scf")
    if problems:
        return
    _check_epochs(draft, stages)
    draft.values["stages"] = stages
    draft.values["train_schedule"] = {stage.index: stage.to_dict() for stage in stages}


def _single_stage(draft: _Draft, defaults: StageDefaults) -> dict[int, Options] | None:
    """The schedule without a train_schedule; its faults are reported at the options it uses."""
    _, problems = check_losses(defaults.loss, "loss")
    if defaults.training_options is not None:
        try:
            check_training_options(defaults.training_options, "fixed_point_training_options")
        except ConfigError as error:
            problems.append(error)
    draft.problems += problems
    if problems:
        return None
    return {0: {"name": "train", "start": 0, "end": draft["max_num_epochs"] - 1}}


def _check_epochs(draft: _Draft, stages: tuple[StageConfig, ...]) -> None:
    total = stages[-1].end + 1
    if draft.was_given("max_num_epochs") and draft["max_num_epochs"] != total:
        draft.problem(
            "max_num_epochs",
            f"{draft['max_num_epochs']} contradicts train_schedule, which has {total} epochs; "
            f"leave it out, or change the end of the last stage (train_schedule.{len(stages) - 1}"
            f".end, now {total - 1})",
        )
    draft.values["max_num_epochs"] = total


def _check_precision(draft: _Draft, scf: Options, where: str) -> None:
    tolerance = scf.get("scf_tolerance", 1.0)
    if draft["default_dtype"] == "float32" and tolerance < _FLOAT32_TOLERANCE:
        draft.problem(
            f"{where}.scf_tolerance",
            f"{tolerance:g} is below what float32 resolves ({_FLOAT32_TOLERANCE:g}); raise it or "
            "use default_dtype float64",
        )


def _fill_batch_size(draft: _Draft) -> None:
    if draft["valid_batch_size"] is None:
        draft.values["valid_batch_size"] = draft["batch_size"]


_CHECKS: tuple[Callable[[_Draft], None], ...] = (
    _expand_replay,
    _check_files,
    _check_data,
    _check_heads,
    _check_run,
    _check_model,
    _check_parts,
    _check_optimizer,
    _check_scf_options,
    _check_schedule,
    _fill_batch_size,
)
