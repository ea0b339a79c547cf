"""The model of a training that starts from another: every option from the file."""

from __future__ import annotations

from collections.abc import Mapping

from fpmace.annotations import Options
from fpmace.config.aliases import FLAT
from fpmace.config.resolve_model import resolve_model
from fpmace.config.schema import model_class
from fpmace.errors import ConfigError, FpmaceError
from fpmace.models.initial import load_initial
from fpmace.registry import LATER

_OF_FILE = ("atomic_numbers", "atomic_energies")
"""Options that come with the weights; a configuration cannot give them."""


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
