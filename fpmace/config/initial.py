"""The model of a training that starts from another: every option from the file."""

from __future__ import annotations

from collections.abc import Mapping

from fpmace import registry
from fpmace.annotations import Options
from fpmace.config.aliases import FLAT
from fpmace.config.resolve_model import DEFAULT_MODEL, resolve_model
from fpmace.config.schema import OPTIONS, model_class
from fpmace.conversion.foundation import MUST_MATCH, load_foundation
from fpmace.errors import ConfigError, FpmaceError
from fpmace.models.initial import load_initial
from fpmace.registry import LATER

_OF_FILE = ("atomic_numbers", "atomic_energies")
"""Options that come with the weights; a configuration cannot give them."""

_OWN = (*_OF_FILE, "type", "heads", "atomic_inter_scale", "atomic_inter_shift")
"""What a foundation model does not fix: the elements and heads are those of the data."""

_NEIGHBOURS = "avg_num_neighbors"
"""Is that of the file if not given; if it is, weights are rescaled."""

_MODE = "fixed_point_training_options"


def model_of_file(path: str, given: Mapping[str, object]) -> tuple[Options, list[str]]:
    """The options of the model in a file, and what of those given differs from them.

    Args:
        path: a model file or checkpoint.
        given: ``model`` and flat options, as they were given; the file wins, but for the
            ``free_options`` of the model.

    Raises:
        ConfigError: the file cannot be used.
    """
    try:
        config = load_initial(path).config
    except FpmaceError as error:
        raise ConfigError(str(error), where="init_from") from error
    options = {name: value for name, value in config.items() if name not in _OF_FILE}
    inside = given.get("model", {})
    asked = dict(inside) if isinstance(inside, Mapping) else {"type": inside}
    mine, _ = resolve_model({**given, "model": {**asked, "type": config["type"]}})
    theirs, _ = resolve_model({"model": options})
    names = {FLAT[name] for name in given if name != "model"} | set(asked)
    free = names & model_class(config["type"]).free_options
    options |= {name: mine[name] for name in free}
    theirs |= {name: mine[name] for name in free}
    wanted = {**mine, "type": asked.get("type", config["type"])}
    return options, [
        f"{name}: {wanted[name]!r} is asked for, {theirs[name]!r} of {path} is kept"
        for name in sorted(names & set(wanted) & set(theirs))
        if wanted[name] != theirs[name] and wanted[name] is not LATER
    ]


def model_on_foundation(
    path: str, given: Mapping[str, object], others: Mapping[str, object]
) -> tuple[Options, list[str], list[ConfigError]]:
    """``given``, completed by what a foundation model fixes: the form of its backbone, and of a
    model of the same type everything that does not come from the data.

    Without ``model`` the type is that of the file, unless options are given that only the default
    model has.

    Args:
        path: a model file, of fpmace or another package.
        given: ``model`` and flat options, as they were given.
        others: the other options that were given.

    Returns:
        The options of the model, the names of those that come from the file, and an error for each
        option that contradicts the file.

    Raises:
        ConfigError: the file cannot be used.
    """
    try:
        config = load_foundation(path).config
    except FpmaceError as error:
        raise ConfigError(str(error), where="foundation_model") from error
    inside = given.get("model", {})
    asked = dict(inside) if isinstance(inside, Mapping) else {"type": inside}
    flat = {name: value for name, value in given.items() if name != "model"}
    kind = str(asked.setdefault("type", _type_without_model(str(config["type"]), flat, others)))
    known = {item.name for item in registry.get("model", kind, where="model.type").options}
    free = {*_OWN, *model_class(kind).free_options}
    same = kind == config["type"]
    fixed = {
        name: value
        for name, value in config.items()
        if name in known - free and (same or name in {*MUST_MATCH, _NEIGHBOURS})
    }
    named = set(asked) | set(flat)
    mine, wrong = resolve_model({"model": asked, **flat})
    if wrong:
        return {"model": asked, **flat}, [], []  # reported when the model is resolved
    theirs, _ = resolve_model({"model": {"type": kind, **fixed}})
    problems = []
    for name in sorted(named - {"type", _NEIGHBOURS}):
        option = FLAT.get(name, name)
        if option in fixed and mine[option] not in (theirs[option], LATER):
            problems.append(
                ConfigError(
                    f"{mine[option]!r} is given, but {path} has {theirs[option]!r}; leave it out, "
                    "or start from another model",
                    where=name if name in flat else f"model.{name}",
                )
            )
    rest = {n: v for n, v in asked.items() if FLAT.get(n, n) not in fixed or n == _NEIGHBOURS}
    flat = {n: v for n, v in flat.items() if FLAT[n] not in fixed or FLAT[n] == _NEIGHBOURS}
    if _NEIGHBOURS in {FLAT.get(name, name) for name in named}:
        fixed.pop(_NEIGHBOURS)
    return {"model": {**fixed, **rest}, **flat}, sorted(fixed), problems


def _type_without_model(
    of_file: str, flat: Mapping[str, object], others: Mapping[str, object]
) -> str:
    """The type of the file, or the default where the options given make sense there alone."""
    known = {item.name for item in registry.get("model", of_file).options}
    foreign = [name for name in flat if FLAT[name] not in known]
    schedule = others.get("train_schedule")
    stages = schedule.values() if isinstance(schedule, Mapping) else ()
    scf = any(OPTIONS[name].role.needs for name in others)
    scf |= any(isinstance(stage, Mapping) and _MODE in stage for stage in stages)
    solves = model_class(of_file).solves_self_consistency
    return DEFAULT_MODEL if foreign or (scf and not solves) else of_file
