"""Comparison of the MACE models with a directory of reference numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fpmace.conversion.weights import check_constants, copy_weights
from fpmace.data.batch import Batch
from fpmace.errors import ConfigError, FpmaceError
from fpmace.models.mace import MACE, ScaleShiftMACE
from fpmace.parts import import_builtin_parts
from fpmace.registry import build
from fpmace.testing.systems import structure_batch
from verification import tolerances
from verification.rows import GoldenRow, compare, unsupported

Array = NDArray[Any]
Arrays = dict[str, Array]
MaceModel = MACE | ScaleShiftMACE

_PROVENANCE = ("num_elements", "torch_seed", "model")
_FIXED = {"pair_repulsion": False, "distance_transform": "None"}


def check_backbone(directory: Path) -> list[GoldenRow]:
    """Recompute every stored quantity of a directory laid out like ``mace_backbone``.

    Expects ``systems.npz`` and, for each model, ``<name>.config.json``,
    ``<name>.state_dict.npz`` and ``<name>.outputs.npz``. Errors are absolute.
    """
    import_builtin_parts()
    systems = _load(directory / "systems.npz")
    rows: list[GoldenRow] = []
    for path in sorted(directory.glob("*.config.json")):
        name = path.name.removesuffix(".config.json")
        outputs = directory / f"{name}.outputs.npz"
        weights = directory / f"{name}.state_dict.npz"
        if not outputs.exists() or not weights.exists():
            rows.append(unsupported(name, "model", "its outputs or state_dict file is missing"))
            continue
        try:
            model = reference_model(json.loads(path.read_text()), _load(weights), path.name)
        except FpmaceError as error:
            rows.append(unsupported(name, "model", str(error)))
            continue
        rows += _check_model(name, model, systems, _load(outputs))
    return rows


def reference_model(config: dict[str, Any], state: Arrays, where: str) -> MaceModel:
    """Build a model from a reference configuration and its weights.

    Raises:
        FpmaceError: if the configuration asks for something unknown or the weights do not fit.
    """
    options = {key: value for key, value in config.items() if key not in _PROVENANCE}
    for key, value in _FIXED.items():
        if options.get(key) == value:
            del options[key]
    model = build("model", {"type": config["model"], **options}, where=where)
    if not isinstance(model, MaceModel):
        raise ConfigError(
            f"{where}: model: expected MACE or ScaleShiftMACE, got {config['model']}"
        )
    load_weights(model, {k: torch.from_numpy(v) for k, v in state.items()}, where)
    return model


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Copy a reference state dict into ``model``, all of it.

    Raises:
        ModelFileError: if it is that of another model.
    """
    check_constants(model, state, where)
    copy_weights(model, state, where).require_complete(where)


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as data:
        return dict(data)


def _check_model(name: str, model: MaceModel, systems: Arrays, outputs: Arrays) -> list[GoldenRow]:
    cases: dict[str, Arrays] = {}
    rows: list[GoldenRow] = []
    for key, value in outputs.items():
        case, _, quantity = key.rpartition("/")
        if case:
            cases.setdefault(case, {})[quantity] = value
        else:
            rows.append(unsupported(name, key, "expected a key '<system>/<quantity>'"))
    for case, stored in cases.items():
        parts = case.split("+")
        known = {key.rsplit("/", 1)[0] for key in systems}
        if not set(parts) <= known:
            rows.append(unsupported(f"{name} {case}", "structure", "not in systems.npz"))
            continue
        structures = [
            {key: systems[f"{part}/{key}"] for key in ("positions", "numbers", "cell", "pbc")}
            for part in parts
        ]
        computed = compute(model, structure_batch(structures, model.r_max))
        rows += [
            _compare_one(f"{name} {case}", quantity, computed, value)
            for quantity, value in stored.items()
        ]
    return rows


def _compare_one(case: str, quantity: str, computed: Arrays, value: Array) -> GoldenRow:
    if quantity not in computed:
        return unsupported(case, quantity, "not computed by this version")
    mine = computed[quantity]
    if mine.shape != value.shape:
        return compare(case, quantity, float("nan"), 0.0, f"shape {mine.shape}, not {value.shape}")
    error = float(np.abs(mine - value).max()) if value.size else 0.0
    return compare(
        case,
        quantity,
        error,
        tolerances.BACKBONE.get(quantity, tolerances.BACKBONE_OTHERS),
        "absolute",
    )


def compute(model: MaceModel, batch: Batch) -> Arrays:
    """Energies, derivatives and features of a MACE model as arrays."""
    positions = batch.positions.clone().requires_grad_(True)
    strain = torch.zeros_like(batch.cell, requires_grad=True)
    geometry = model.geometry(replace(batch, positions=positions), strain)
    result = model(geometry)
    d_positions, d_strain = torch.autograd.grad(result.energy.sum(), [positions, strain])
    last = model.backbone.layer_irreps[-1].dim
    found = {
        "energy": result.energy,
        "node_energy": result.node_energy,
        "forces": -d_positions,
        "stress": d_strain / geometry.volume[:, None, None],
        "virials": -d_strain,
        "node_feats_all_layers": result.node_feats,
        "node_feats_last": result.node_feats[:, -last:],
        "contributions": result.contributions,
        "interaction_energy": result.interaction_energy,
        "n_directed_edges": torch.tensor(batch.edge_index.shape[1]),
    }
    return {key: value.detach().numpy() for key, value in found.items()}
