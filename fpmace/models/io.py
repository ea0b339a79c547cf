"""Model files: configuration, weights and where they came from; read without running code.

A file is an archive (:mod:`fpmace.archive`)::

    {"format": "fpmace.model", "format_version": 1, "config": JSON of model.config,
     "state_dict": {name: tensor}, "metadata": JSON, "checksum": of all this}

``metadata`` holds ``fpmace_version``, ``parts`` (kind, name and source of every registered part of
the model), ``plugins`` (the sources that are not fpmace itself), ``checksum`` (of the weights),
``dtype``, ``n_parameters``, ``inputs`` and ``required_inputs``, and what the training adds:
``training_config``, ``data``, ``history``, ``keys`` (of the labels) and ``trained_range`` (of the
inputs).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fpmace import __version__, registry
from fpmace.annotations import Options, Values
from fpmace.archive import nonfinite_tensor, open_archive, write_archive
from fpmace.errors import ConfigError, ModelFileError, RegistryError, closest
from fpmace.models.base import Model

FORMAT = "fpmace.model"
FORMAT_VERSION = 1

_UNSTATED: dict[str, Values] = {"FixedPoint": {"kspace_window": 0.0}}
"""What files mean that were written before the option existed."""


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file; nothing is built yet.

    Attributes:
        path: the file.
        config: ``{"type": NAME, ...options}``.
        state_dict: weights by name, on the CPU.
        metadata: see the module's text.
    """

    path: str
    config: Options
    state_dict: dict[str, Tensor]
    metadata: Values

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        for value in self.state_dict.values():
            if value.is_floating_point():
                return value.dtype
        return torch.float64

    @property
    def plugins(self) -> list[str]:
        """Files or modules that register parts of the model."""
        return list(self.metadata.get("plugins", []))


def save_model(
    path: str | Path,
    model: nn.Module,
    metadata: Mapping[str, object] | None = None,
    *,
    save_cpu: bool = False,
) -> None:
    """Write a model file; the name appears only when the file is whole.

    Args:
        model: has ``config``, from which ``build("model", config)`` makes its equal.
        metadata: JSON-able additions, such as ``training_config``, ``data`` and ``history``.
        save_cpu: store the tensors as CPU tensors.

    Raises:
        ModelFileError: if configuration or metadata are not JSON-able, or weights not finite.
    """
    state = {name: value.detach() for name, value in model.state_dict().items()}
    if save_cpu:
        state = {name: value.cpu() for name, value in state.items()}
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping) or "type" not in config:
        raise ModelFileError(
            f"{path}: {type(model).__name__} has no config with 'type', so it could not be rebuilt"
        )
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": _json(path, "config", dict(config)),
        "state_dict": state,
        "metadata": _json(path, "metadata", {**describe_model(model), **(metadata or {})}),
    }
    _check_finite(path, state)
    write_archive(path, content)


def describe_model(model: nn.Module) -> Values:
    """The part of the metadata that follows from the model itself."""
    parts = registered_parts(model)
    sources = [item["source"] for item in parts if item["source"] is not None]
    state = model.state_dict()
    return {
        "fpmace_version": __version__,
        "parts": parts,
        "plugins": list(dict.fromkeys(sources)),
        "checksum": weights_checksum(state),
        "dtype": str(next((v.dtype for v in state.values() if v.is_floating_point()), None)),
        "n_parameters": sum(item.numel() for item in model.parameters()),
        "inputs": sorted(getattr(model, "inputs", ())),
        "required_inputs": sorted(getattr(model, "required_inputs", ())),
    }


def registered_parts(model: nn.Module) -> list[Values]:
    """Kind, name and source of every part that the model's config names or that it is made of."""
    by_class = {
        entry.target: entry for kind in registry.kinds() for entry in registry.describe(kind.name)
    }
    entries = registry.used_parts("model", model.config)  # type: ignore[arg-type]
    entries += [by_class[type(item)] for item in model.modules() if type(item) in by_class]
    found = {(entry.kind, entry.name): entry.source for entry in entries}
    return [
        {"kind": kind, "name": name, "source": source} for (kind, name), source in found.items()
    ]


def read_model_file(path: str | Path) -> ModelFile:
    """Open a model file without building the model or running anything from the file.

    Raises:
        ModelFileError: if the file is missing, damaged, foreign, or of a newer format.
    """
    content = open_archive(path, FORMAT, FORMAT_VERSION, "model file")
    try:
        result = ModelFile(
            path=str(path),
            config=_mapping(content, "config"),
            state_dict=dict(content["state_dict"]),
            metadata=_mapping(content, "metadata"),
        )
        kind = result.config["type"]
        if not isinstance(kind, str):
            raise TypeError(f"type {kind!r}")
        if not all(isinstance(value, Tensor) for value in result.state_dict.values()):
            raise TypeError("state_dict: not only tensors")
        for part in result.metadata.get("parts", []):
            if not isinstance(part["kind"] + part["name"], str) or "source" not in part:
                raise TypeError(f"parts: {part!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: is damaged (no valid {error})") from error
    known = result.metadata.get("checksum")
    if known is not None and known != weights_checksum(result.state_dict):
        raise ModelFileError(f"{path}: is damaged (the weights do not match their checksum)")
    _check_finite(path, result.state_dict)
    return result


def _mapping(content: Values, name: str) -> Values:
    value = json.loads(content[name])
    if not isinstance(value, dict):
        raise TypeError(f"{name}: {type(value).__name__}")
    return value


def _check_finite(path: str | Path, state: Mapping[str, object]) -> None:
    lost = nonfinite_tensor(state)
    if lost is not None:
        raise ModelFileError(f"{path}: weights '{lost}' are not finite; the model is of no use")


def load_model(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    plugins: Sequence[str] = (),
) -> Model:
    """Rebuild a saved model, in evaluation mode.

    Args:
        device: the CPU if not given.
        dtype: precision; that of the file if not given.
        plugins: files or modules to import first; the file names those it needs but none is
            imported because a file says so.

    Raises:
        ModelFileError: see :func:`read_model_file`; also for a part or plugin that is missing and
            for weights that do not fit the configuration.
    """
    content = read_model_file(path)
    registry.load_entry_points()
    registry.load_plugins(plugins)
    return model_from_file(content).to(device=device, dtype=dtype or content.dtype)


def model_from_file(content: ModelFile) -> Model:
    """Build the model of an opened file, on the CPU, in evaluation mode.

    Raises:
        ModelFileError: for a missing part or plugin, or weights that do not fit.
    """
    _check_parts(content)
    try:
        config = {**_UNSTATED.get(content.config["type"], {}), **content.config}
        model: Model = registry.build("model", config, where="config")
    except Exception as error:  # options of a file that is no file of ours can do anything
        reason = " ".join(str(error).split())[:300]
        text = reason if isinstance(error, ConfigError) else f"{type(error).__name__}: {reason}"
        raise ModelFileError(f"{content.path}: the model cannot be built ({text})") from error
    model.to(dtype=content.dtype)
    _load_weights(model, content)
    model.metadata = content.metadata
    return model.eval()


def _check_parts(content: ModelFile) -> None:
    for part in content.metadata.get("parts", []):
        kind, name, source = part["kind"], part["name"], part["source"]
        try:
            present = registry.get(kind, name).source
        except RegistryError as error:
            if source is not None:
                raise _missing_plugin(content.path, part) from error
            version = content.metadata.get("fpmace_version", "?")
            raise ModelFileError(
                f"{content.path}: needs the {kind} '{name}' of fpmace {version}, which this "
                f"fpmace ({__version__}) does not have"
            ) from error
        if source is not None and present is None:
            # The plugin had replaced a part of fpmace; the original would be silently wrong.
            raise _missing_plugin(content.path, part)


def _missing_plugin(path: str, part: Values) -> ModelFileError:
    return ModelFileError(
        f"{path}: needs the {part['kind']} '{part['name']}' from the plugin '{part['source']}', "
        "which is not imported; name it with --plugins or load_model(..., plugins=[...])"
    )


def _load_weights(model: nn.Module, content: ModelFile) -> None:
    expected, given = model.state_dict(), dict(content.state_dict)
    complete = getattr(model, "complete_state_dict", None)
    if complete is not None:  # adds what files of earlier versions lack
        complete(given)
    for name, value in expected.items():
        if name not in given:
            raise ModelFileError(f"{content.path}: has no weights '{name}'")
        if given[name].shape != value.shape:
            raise ModelFileError(
                f"{content.path}: weights '{name}' have shape {list(given[name].shape)}, the "
                f"configuration needs {list(value.shape)}"
            )
        if given[name].is_floating_point() != value.is_floating_point():
            raise ModelFileError(
                f"{content.path}: weights '{name}' are {given[name].dtype}, not {value.dtype}"
            )
    for name in given:
        if name not in expected:
            match = closest(name, expected)
            hint = f" (closest: '{match}')" if match else ""
            raise ModelFileError(f"{content.path}: has unknown weights '{name}'{hint}")
    model.load_state_dict(given)


def weights_checksum(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values; equal for bitwise equal weights."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _json(path: str | Path, what: str, value: object) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: {what} cannot be stored as JSON ({error})") from error
