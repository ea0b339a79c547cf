"""Models to start a training from: model files and checkpoints, with their best weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fpmace import registry
from fpmace.archive import open_archive
from fpmace.errors import ConfigError, DataError, ModelFileError
from fpmace.models.base import Model
from fpmace.models.heads import energies_by_head
from fpmace.models.io import model_from_file, read_model_file

_SUFFIX = ".pt"
"""Of checkpoints; everything else is a model file."""


def load_initial(path: str | Path) -> Model:
    """The model of a model file, or of a checkpoint with its averaged weights if it has them.

    Raises:
        ModelFileError: the file is missing, damaged, needs a plugin, or does not say what the
            model is, as checkpoints of earlier versions.
    """
    if Path(path).suffix != _SUFFIX:
        return model_from_file(read_model_file(path))
    content = open_archive(path, "fpmace.checkpoint", 1, "checkpoint")
    if not content.get("model_config"):
        raise ModelFileError(
            f"{path}: was written by an earlier version and does not say what the model is; "
            "give the _best.model beside it"
        )
    try:
        model: Model = registry.build("model", json.loads(content["model_config"]), where="model")
        model.to(dtype=_precision(content["model"]))
        model.load_state_dict(content["model"])
    except (ConfigError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path}: {str(error).splitlines()[0]}") from error
    if content["ema"] is not None:
        _average(model, content["ema"])
    return model.eval()


def with_atomic_energies(model: Model, energies: Sequence[Mapping[int, float]]) -> Model:
    """The same model with other energies of the free atoms.

    Args:
        energies: eV by atomic number, of each head; elements without one keep theirs.
    """
    numbers = [int(z) for z in model.atomic_numbers]
    known = energies_by_head(model.config)
    made = [
        [float(new.get(z, old[z])) for z in numbers]
        for old, new in zip(known, energies, strict=True)
    ]
    config = {**model.config, "atomic_energies": made if len(made) > 1 else made[0]}
    other: Model = registry.build("model", config, where="model")
    fresh, state = other.state_dict(), model.state_dict()
    kept = {n: fresh[n] if n.endswith("atomic_energies") else v for n, v in state.items()}
    other.load_state_dict(kept)
    return other


def rebuilt(model: Model, **changes: Any) -> Model:
    """The same weights under options that have none, such as ``recursion`` of a PolarMACE.

    Raises:
        ConfigError: for an option that the model does not have, or a value that does not fit.
    """
    made: Model = registry.build("model", {**model.config, **changes}, where="model")
    first = next(model.parameters())
    made.to(device=first.device, dtype=first.dtype).load_state_dict(model.state_dict())
    made.metadata = model.metadata
    return made.train(model.training)


def check_known_elements(
    model: Model, numbers: list[int], path: str, option: str = "init_from"
) -> None:
    """Refuse data with elements that the model does not know.

    Raises:
        DataError: naming the first of them.
    """
    known = [int(z) for z in model.atomic_numbers]
    foreign = [z for z in numbers if z not in known]
    if foreign:
        raise DataError(
            f"{path}: holds atomic number {foreign[0]}, but the model of {option} knows {known}; "
            "leave these structures out, or train a new model"
        )


def _precision(state: Mapping[str, torch.Tensor]) -> torch.dtype:
    return next(value.dtype for value in state.values() if value.is_floating_point())


def _average(model: nn.Module, average: Mapping[str, Any]) -> None:
    weights = [p for p in model.parameters() if p.requires_grad and p.numel() > 0]
    with torch.no_grad():
        for weight, mean in zip(weights, average["shadow_params"], strict=True):
            weight.copy_(mean)
