"""Comparison of converted foundation models with a directory of reference numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fpmace.conversion.convert import convert_file
from fpmace.data.atomic_data import batch_from_configurations
from fpmace.data.batch import Batch
from fpmace.data.extxyz import read_configurations
from fpmace.data.options import DataOptions
from fpmace.errors import FpmaceError
from fpmace.models.base import Model
from fpmace.parts import import_builtin_parts
from verification.foundation_mace import compute_mace
from verification.rows import GoldenRow, compare, unsupported

Array = NDArray[Any]
Arrays = dict[str, Array]
Compute = Callable[[Model, Batch], Arrays]
"""Of a model and a batch to arrays by quantity; the reference's shapes."""

FAMILIES: dict[str, Compute | str] = {
    "MACE": compute_mace,
    "ScaleShiftMACE": compute_mace,
    "PolarMACE": "verification.foundation_polar:compute_polar",
}
"""Class of the reference model -> how its quantities are computed, or where that is found."""

_OF_STRUCTURE = ("n_directed_edges", "cell_used", "volume_used")
_GROUPS = {
    "energy": ("energy", "node_energy", "interaction_energy", "contributions"),
    "forces": ("forces", "forces_fd"),
    "stress": ("stress", "stress_fd", "virials"),
}
_TOLERANCE_OF = {quantity: group for group, items in _GROUPS.items() for quantity in items}


def check_foundation(directory: Path) -> list[GoldenRow]:
    """Convert every model of a directory and recompute its stored numbers.

    Expects ``index.json`` and the files it names. Errors are relative to max(1, largest value).
    """
    import_builtin_parts()
    index = json.loads((directory / "index.json").read_text())["models"]
    rows: list[GoldenRow] = []
    for name, entry in index.items():
        rows += _check_model(_Case(name, directory, entry))
    return rows


@dataclass(frozen=True)
class _Case:
    """One model of the index."""

    name: str
    directory: Path
    entry: dict[str, Any]

    def file(self, kind: str) -> Path:
        return self.directory / str(self.entry["files"][kind])

    def tolerance(self, quantity: str) -> float:
        """The tolerance of a quantity; constants of float32 files are recomputed in float64."""
        given = self.entry["tolerance"]
        given = given.get("constants_recomputed_in_float64", given)
        return float(given[_TOLERANCE_OF.get(quantity, "densities")])


def _check_model(case: _Case) -> list[GoldenRow]:
    try:
        model = convert_file(case.file("model")).model.double()
        compute = _family(str(case.entry["class"]).rpartition(".")[2])
        options = DataOptions(split_by="name", check_keys=False, min_distance=0.0)
        structures = {c.group: c for c in read_configurations(case.file("systems"), options)}
    except FpmaceError as error:
        return [unsupported(case.name, "model", str(error))]
    assert isinstance(model, Model)
    rows: list[GoldenRow] = []
    outputs = _outputs(case.file("outputs"))
    for (system, head), stored in outputs.items():
        where = f"{case.name} {system} {head}"
        parts = system.split("+")
        if head not in model.heads or not set(parts) <= set(structures):
            rows.append(unsupported(where, "structure", "no such head or structure"))
            continue
        batch = batch_from_configurations(
            [structures[part] for part in parts], model.r_max, options
        )
        index = torch.full((batch.n_graphs,), model.heads.index(head))
        computed = compute(model, replace(batch, head=index))
        rows += _compare_all(case, where, {**computed, **_edges(batch)}, stored)
    return rows


def _family(name: str) -> Compute:
    found = FAMILIES.get(name)
    if found is None:
        raise FpmaceError(f"models of class {name} are not compared")
    if not isinstance(found, str):
        return found
    module, _, function = found.partition(":")
    compute: Compute = getattr(import_module(module), function)
    return compute


def _outputs(path: Path) -> dict[tuple[str, str], Arrays]:
    """Stored quantities by structure and head; what is known of a structure alone with each."""
    found: dict[tuple[str, str], Arrays] = {}
    of_structure: dict[str, Arrays] = {}
    with np.load(path, allow_pickle=False) as data:
        for key, value in data.items():
            system, *rest = key.split("/")
            if len(rest) == 1:
                of_structure.setdefault(system, {})[rest[0]] = value
            elif rest[0] != "internals":
                found.setdefault((system, "/".join(rest[:-1])), {})[rest[-1]] = value
    return {key: {**of_structure.get(key[0], {}), **value} for key, value in found.items()}


def _edges(batch: Batch) -> Arrays:
    return {"n_directed_edges": np.array(batch.edge_index.shape[1])}


def _compare_all(case: _Case, where: str, computed: Arrays, stored: Arrays) -> list[GoldenRow]:
    unreliable = set(case.entry.get("unreliable_outputs", ())) | {"cell_used", "volume_used"}
    if "virials" in computed and "volume_used" in stored:
        stress = -computed["virials"] / stored["volume_used"].reshape(-1, 1, 1)
        computed = {**computed, "stress": stress, "stress_fd": stress[0]}
    computed = {**computed, "forces_fd": computed["forces"]}
    rows = []
    for quantity, value in stored.items():
        if quantity in unreliable:
            continue
        if quantity not in computed:
            rows.append(unsupported(where, quantity, "not computed by this version"))
            continue
        error = _error(computed[quantity], value)
        rows.append(compare(where, quantity, error, case.tolerance(quantity)))
    return rows


def _error(mine: Array, theirs: Array) -> float:
    """Largest difference relative to max(1, largest reference); NaN for another shape."""
    if mine.shape != theirs.shape:
        return float("nan")
    known = np.isfinite(theirs)  # differences along directions that are not periodic are not
    if not known.any():
        return 0.0
    scale = max(1.0, float(np.abs(theirs[known]).max()))
    return float(np.abs(mine - theirs)[known].max()) / scale
