"""``multiheads_finetuning``, written as the heads that it stands for."""

from __future__ import annotations

from collections.abc import Mapping

from fpmace.annotations import Options
from fpmace.errors import ConfigError

REPLAY_HEAD = "pt_head"
"""The head that keeps to the data of the foundation model; its name in mace-torch."""

_FILES = ("train_file", "valid_file", "test_file")


def replay_heads(values: Mapping[str, object]) -> Options:
    """Changes of the options: ``heads`` with one for replay, files moved to the other head.

    Args:
        values: all options.

    Raises:
        ConfigError: no foundation model, no data to replay, or heads without files.
    """
    if not values["foundation_model"]:
        raise ConfigError("needs a foundation_model to start from", where="multiheads_finetuning")
    heads = values["heads"]
    given = dict(heads) if isinstance(heads, Mapping) else {}
    replay = dict(given.pop(REPLAY_HEAD, None) or {})
    if values["pt_train_file"]:
        replay["train_file"] = values["pt_train_file"]
    if not replay.get("train_file"):
        raise ConfigError(
            "missing; multiheads_finetuning replays data of the foundation model",
            where="pt_train_file",
        )
    own = {name: values[name] for name in _FILES if values[name]}
    others = given or {"Default": {}}
    if len(others) == 1:
        name, block = next(iter(others.items()))
        others = {name: {**own, **dict(block or {})}}
    elif own:
        raise ConfigError(
            f"whose? there are the heads {', '.join(others)}; give heads.NAME.{next(iter(own))}",
            where=next(iter(own)),
        )
    replay = {"E0s": "foundation", "weight": values["weight_pt_head"], **replay}
    return {"heads": {**others, REPLAY_HEAD: replay}, **dict.fromkeys(_FILES)}
