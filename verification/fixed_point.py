"""Comparison of fixed-point models with a directory of reference numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fpmace.data.batch import Batch
from fpmace.density_modes.base import DensityMode
from fpmace.errors import FpmaceError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.parts import import_builtin_parts
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.systems import structure_batch
from verification import tolerances
from verification.backbone import load_weights
from verification.reference_conventions import use_reference_conventions
from verification.rows import GoldenRow, compare, unsupported

Array = NDArray[Any]
Arrays = dict[str, Array]

_PROVENANCE = ("num_elements", "torch_seed", "element_select_out_scale", "field_norm_factor")
_LITERAL = {"solver": "linear", "mixing_parameter": 0.3, "initial_fermi_level": "from_data"}
_TIGHT = {**_LITERAL, "num_scf_steps": 300, "scf_tolerance": 1e-9}
SCF_CASES: dict[str, dict[str, Any]] = {
    "constant_charge": _TIGHT,
    "constant_charge_12steps_from_data": {
        **_LITERAL,
        "num_scf_steps": 12,
        "scf_tolerance": 1e-6,
        "initial_density": "from_data",
        "on_failure": "ignore",
    },
    "constant_fermi": {**_TIGHT, "constant_charge": False},
    "constant_fermi_last_step_grad": {
        **_TIGHT,
        "constant_charge": False,
        "use_autograd_forces": False,
    },
}
_FIELDS = {
    "energy": "energy",
    "forces": "forces",
    "contributions": "contributions",
    "density_coefficients": "density",
    "fermi_level": "fermi_level",
    "dipole": "dipole",
    "electrostatic_energy": "electrostatic_energy",
    "electron_energy": "electron_energy",
    "electrostatic_features": "electrostatic_features",
    "field_independent_charge_density": "field_independent_density",
    "esps": "electrostatic_potentials",
}


def check_fixed_point(directory: Path) -> list[GoldenRow]:
    """Recompute every stored case of a directory laid out like ``fixed_point``.

    The SCF is the literal algorithm of the reference (linear mixing, derivatives through the
    passes), with the reference's numerical conventions for open boundaries and boxes.
    """
    import_builtin_parts()
    rows: list[GoldenRow] = []
    for path in sorted(directory.glob("*.config.json")):
        name = path.name.removesuffix(".config.json")
        files = {
            kind: directory / f"{name}.{kind}.npz" for kind in ("state_dict", "inputs", "outputs")
        }
        absent = [file.name for file in files.values() if not file.exists()]
        if absent:
            rows.append(unsupported(name, "model", f"{', '.join(absent)} missing"))
            continue
        loaded = {kind: _load(file) for kind, file in files.items()}
        try:
            model = reference_model(json.loads(path.read_text()), loaded["state_dict"], name)
        except FpmaceError as error:
            rows.append(unsupported(name, "model", str(error)))
            continue
        rows += _check_case(name, model, loaded["inputs"], loaded["outputs"])
    return rows


def reference_model(config: dict[str, Any], state: Arrays, where: str) -> FixedPointCore:
    """Build a model from a reference configuration and its weights.

    Raises:
        FpmaceError: if the configuration asks for something unknown or the weights do not fit.
    """
    options = {key: value for key, value in config.items() if key not in _PROVENANCE}
    unstated = {"kspace_window": 0.0}  # the reference cuts its sums sharply
    model = build("model", {"type": "FixedPoint", **unstated, **options}, where=where)
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}
    load_weights(model, tensors, where)
    return use_reference_conventions(model)


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as data:
        return dict(data)


def _check_case(
    name: str, model: FixedPointCore, inputs: Arrays, outputs: Arrays
) -> list[GoldenRow]:
    cases: dict[str, Arrays] = {}
    for key, value in outputs.items():
        case, _, quantity = key.rpartition("/")
        cases.setdefault(case, {})[quantity] = value
    graphs = sorted({key.split("/")[0] for key in inputs})
    rows: list[GoldenRow] = []
    for case, stored in cases.items():
        prefix, _, kind = case.partition("/")
        where = f"{name} {case}"
        members = graphs if prefix == "batch" else [prefix]
        if not set(members) <= set(graphs):
            rows.append(unsupported(where, "structure", "not among the inputs"))
            continue
        batch = reference_batch([_structure(inputs, g) for g in members], model.r_max)
        if not kind:
            rows += _check_edges(where, batch, stored)
        elif kind == "local":
            rows += _check_local(where, model, batch, stored)
        elif kind == "direct":
            mode = build("training_mode", "direct")
            rows += _compare_all(where, _run(model, batch, mode), stored, model, batch)
        elif kind in SCF_CASES:
            rows += _check_scf(where, model, batch, kind, stored, cases, members)
        else:
            rows.append(unsupported(where, "case", f"no case named '{kind}' is known"))
    return rows


def _structure(inputs: Arrays, graph: str) -> Arrays:
    prefix = f"{graph}/"
    return {key.removeprefix(prefix): v for key, v in inputs.items() if key.startswith(prefix)}


def reference_batch(structures: list[Arrays], r_max: float) -> Batch:
    """Batch with the reference density, Fermi level, charge and field of each structure."""

    def stacked(key: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.asarray(item[key], float) for item in structures]))

    density = np.concatenate([item["reference_density"] for item in structures])
    return dataclasses.replace(
        structure_batch(structures, r_max),
        total_charge=stacked("total_charge"),
        external_field=stacked("external_field"),
        fermi_level=stacked("fermi_level"),
        labels={"atomic_multipoles": torch.from_numpy(density)},
    )


def _run(model: FixedPointCore, batch: Batch, mode: DensityMode) -> Observables:
    return predict(model, batch, mode=mode, outputs=("forces",))


def _check_edges(where: str, batch: Batch, stored: Arrays) -> list[GoldenRow]:
    if "n_directed_edges" not in stored:
        return [unsupported(where, quantity, "unknown quantity") for quantity in stored]
    error = abs(int(stored["n_directed_edges"]) - batch.edge_index.shape[1])
    return [compare(where, "n_directed_edges", float(error), 0.0)]


def _check_local(
    where: str, model: FixedPointCore, batch: Batch, stored: Arrays
) -> list[GoldenRow]:
    from fpmace.models.geometry import element_index, make_geometry

    geometry = make_geometry(batch, element_index(model.atomic_numbers, batch))
    local = model.local_part(geometry, batch.external_field)
    own = {
        "node_feats_last": local.last_feats,
        "mixed_layer_feats": local.mixed_feats,
        "external_field_features": local.external_features,
        "kspace_cutoff": torch.tensor(model.electrostatics.kspace_cutoff),
    }
    return [_compare_one(where, quantity, own, value) for quantity, value in stored.items()]


def _check_scf(
    where: str,
    model: FixedPointCore,
    batch: Batch,
    kind: str,
    stored: Arrays,
    cases: dict[str, Arrays],
    members: list[str],
) -> list[GoldenRow]:
    options = ScfOptions(history="full_history", **SCF_CASES[kind])
    mode = build("training_mode", "unroll_scf", scf=options)
    observables = _run(model, batch, mode)
    if len(members) == 1:
        return _compare_all(where, observables, stored, model, batch)
    # The reference lets all graphs of a batch iterate together; here each is on its own.
    note = "against the single structures"
    rows = []
    for quantity in ("energy", "forces", "density_coefficients", "fermi_level"):
        single = [cases[f"{g}/{kind}"].get(quantity) for g in members]
        value = getattr(observables, _FIELDS[quantity])
        if any(item is None for item in single) or value is None:
            continue
        joined = np.concatenate([np.asarray(item) for item in single])
        row = _compare_one(where, quantity, {quantity: value}, joined)
        rows.append(dataclasses.replace(row, note=note))
    return rows


def _compare_all(
    where: str, observables: Observables, stored: Arrays, model: FixedPointCore, batch: Batch
) -> list[GoldenRow]:
    own: dict[str, torch.Tensor | None] = {
        quantity: getattr(observables, field) for quantity, field in _FIELDS.items()
    }
    own["fermi_features"] = model.electrostatics.fermi_features(
        batch.fermi_level[batch.batch] - model.fermi_level_offset
    )
    scf = observables.scf
    if scf is not None and scf.history is not None:
        n_history = stored["density_history_first5"].shape[-1] if _has_history(stored) else 0
        own |= {
            "n_loop_steps": scf.n_steps.max(),
            "final_avg_abs_change": scf.density_change,
        }
        if n_history and len(scf.history.densities) >= n_history:
            own["density_history_first5"] = torch.stack(scf.history.densities[:n_history], dim=-1)
    return [
        _compare_one(where, quantity, own, value)
        for quantity, value in stored.items()
        if quantity != "status"
    ]


def _has_history(stored: Arrays) -> bool:
    return "density_history_first5" in stored


def _compare_one(where: str, quantity: str, own: Any, value: Array) -> GoldenRow:
    mine = own.get(quantity)
    if mine is None:
        return unsupported(where, quantity, "not computed by this version")
    reference = np.asarray(value, float)
    numbers = mine.detach().numpy().astype(float).reshape(reference.shape)
    error = float(np.abs(numbers - reference).max(initial=0.0))
    if quantity == "n_loop_steps":
        return compare(where, quantity, error, 0.0)
    tolerance = tolerances.FIXED_POINT
    if quantity == "forces":
        tolerance = tolerances.FIXED_POINT_FORCES
    return compare(where, quantity, error / max(1.0, float(np.abs(reference).max())), tolerance)
