"""Comparison of the electrostatics with a directory of reference numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fpmace.electrostatics import PBC_METHODS, ElectrostaticsOptions, GTOElectrostatics, Plan
from fpmace.electrostatics.gaussian import MAX_L
from fpmace.units import COULOMB_C, MADELUNG_CUBIC
from verification import tolerances
from verification.rows import GoldenRow, compare, unsupported

Array = NDArray[np.float64]

_ROUNDED_ENERGY, _ROUNDED_FEATURES = 0.3333, 0.333333


def check_electrostatics(directory: Path) -> list[GoldenRow]:
    """Recompute every stored quantity of a directory with an ``index.json`` and ``.npz`` files.

    Errors are relative to the largest value of the quantity (but at least 1e-3 in its unit).
    Two differences are known and treated as such: open boundaries are closed-form here and a
    finite-difference scheme in the reference (loose tolerance), and the reference's rounded
    exponents of the box length in ``molecule_in_box`` (removed before comparing).
    """
    index = json.loads((directory / "index.json").read_text())
    listed = [entry["file"] for entry in index["files"]]
    names = listed + sorted({path.name for path in directory.glob("*.npz")} - set(listed))
    rows: list[GoldenRow] = []
    for name in names:
        path = directory / name
        if not path.exists():
            rows.append(unsupported(name, "file", "listed in index.json but missing"))
            continue
        with np.load(path, allow_pickle=False) as data:
            rows += _check_file(path.stem, dict(data), index)
    return rows


def _check_file(name: str, data: dict[str, Any], index: dict[str, Any]) -> list[GoldenRow]:
    cases: dict[tuple[str, str, str], dict[str, Any]] = {}
    for key, value in data.items():
        parts = key.split("/")
        if len(parts) == 4:
            cases.setdefault((parts[0], parts[1], parts[2]), {})[parts[3]] = value
    if not cases:
        return [unsupported(name, "file", "holds no '<variant>/<mode>/k<factor>/<quantity>' keys")]
    rows: list[GoldenRow] = []
    for (variant, mode, factor), stored in cases.items():
        case = f"{name} {variant}/{mode}/{factor}"
        settings = index["variants"].get(variant)
        reason = _unsupported_reason(settings, mode)
        if reason:
            rows += [unsupported(case, quantity, reason) for quantity in stored]
            continue
        options = ElectrostaticsOptions(
            density_max_l=int(settings["lmax"]),
            smearing_width=float(settings["sigma"]),
            feature_max_l=int(settings.get("feature_max_l", index.get("feature_max_l", 1))),
            feature_widths=tuple(settings["widths"]),
            kspace_cutoff_factor=float(factor.lstrip("k")),
            pbc_handling=mode,
        )
        rows += _Case(case, options, data, stored).compare_all()
    return rows


def _unsupported_reason(settings: dict[str, Any] | None, mode: str) -> str:
    if settings is None:
        return "the variant is not described in index.json"
    if int(settings["lmax"]) > MAX_L:
        return f"multipoles beyond l = {MAX_L}"
    if mode not in PBC_METHODS:
        return f"unknown mode '{mode}'"
    return ""


@dataclass
class _Geometry:
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    ptr: Tensor


def _geometry(data: dict[str, Any]) -> _Geometry:
    positions = torch.as_tensor(data["positions"], dtype=torch.float64)
    cell = torch.as_tensor(data["cells"] if "cells" in data else data["cell"][None])
    pbc = torch.as_tensor(data["pbcs"] if "pbcs" in data else data["pbc"][None])
    if "batch" in data:
        batch = torch.as_tensor(data["batch"], dtype=torch.int64)
    else:
        batch = torch.zeros(len(positions), dtype=torch.int64)
    counts = torch.bincount(batch, minlength=len(cell))
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return _Geometry(positions, cell.to(torch.float64), pbc.to(torch.bool), batch, ptr)


class _Case:
    """One variant, mode and cutoff of one file."""

    def __init__(
        self,
        case: str,
        options: ElectrostaticsOptions,
        data: dict[str, Any],
        stored: dict[str, Any],
    ) -> None:
        self.case = case
        self.options = options
        self.data = data
        self.stored = stored
        self.geometry = _geometry(data)
        self.without = GTOElectrostatics(options)
        self.with_self = GTOElectrostatics(
            ElectrostaticsOptions(
                **{
                    **options.__dict__,
                    "include_energy_self_interaction": True,
                    "include_field_self_interaction": True,
                }
            )
        )
        multipoles = torch.as_tensor(data[f"multipoles_l{options.density_max_l}"])
        self.density = multipoles.to(torch.float64).requires_grad_()
        self.positions = self.geometry.positions.clone().requires_grad_()

    def compare_all(self) -> list[GoldenRow]:
        if "kcut" in self.stored:
            cutoff = float(self.stored["kcut"])
            rows = [self._row("kcut", np.asarray(self.without.kspace_cutoff), cutoff)]
            self.without.kspace_cutoff = self.with_self.kspace_cutoff = cutoff
        else:
            rows = []
        computed = self._compute()
        for quantity, reference in self.stored.items():
            if quantity in ("kcut", "probe_weights"):
                continue
            if quantity not in computed:
                rows.append(unsupported(self.case, quantity, "unknown quantity"))
            else:
                rows.append(self._row(quantity, computed[quantity], reference))
        return rows

    def _row(self, quantity: str, value: Array, reference: Any) -> GoldenRow:
        reference = np.asarray(reference, dtype=np.float64)
        if value.shape != reference.shape:
            note = f"shape {value.shape} instead of {reference.shape}"
            return compare(self.case, quantity, float("nan"), tolerances.ELECTROSTATICS, note)
        scale = max(float(np.abs(reference).max(initial=0.0)), 1e-3)
        if quantity == "energy_nosi" and "energy_si" in self.stored:
            # The reference subtracts a self-energy that it integrates numerically (to 4e-11).
            scale = max(scale, float(np.abs(self.stored["energy_si"]).max()))
        error = float(np.abs(value - reference).max(initial=0.0)) / scale
        if self.options.pbc_handling == "realspace" and quantity != "external_features":
            note = "closed form against finite differences"
            probe = quantity.startswith("probe")
            tolerance = (
                tolerances.ELECTROSTATICS_OPEN_PROBES if probe else tolerances.ELECTROSTATICS_OPEN
            )
            return compare(self.case, quantity, error, tolerance, note)
        note = ""
        if self._molecules().any() and not quantity.startswith(("kcut", "n_k", "external")):
            note = "rounded exponents of the box length removed"
        return compare(self.case, quantity, error, tolerances.ELECTROSTATICS, note)

    def _compute(self) -> dict[str, Array]:
        """All quantities, with the reference's rounding of exponents put in."""
        result: dict[str, Tensor] = {}
        for model, tag in ((self.without, "nosi"), (self.with_self, "si")):
            plan = self._plan(model)
            energy = plan.energy(self.density) + self._energy_rounding()
            forces, by_density = _gradients(energy.sum(), self.positions, self.density)
            result[f"energy_{tag}"] = energy
            result[f"dE_dmultipoles_{tag}"] = by_density
            features = plan.potential_features(self.density) + self._feature_rounding()
            result[f"features_{tag}"] = features
            if tag == "nosi":
                result["forces"] = -forces
                result |= self._probe(features)
                result |= self._other(model, plan)
        return {key: value.detach().numpy() for key, value in result.items()}

    def _plan(self, model: GTOElectrostatics) -> Plan:
        g = self.geometry
        return model.plan(self.positions, g.cell, g.pbc, g.batch, g.ptr)

    def _probe(self, features: Tensor) -> dict[str, Tensor]:
        if "probe_weights" not in self.stored:
            return {}
        weights = torch.as_tensor(self.stored["probe_weights"])
        by_position, by_density = _gradients(
            (weights * features).sum(), self.positions, self.density
        )
        return {"probe_grad_positions": by_position, "probe_grad_multipoles": by_density}

    def _other(self, model: GTOElectrostatics, plan: Plan) -> dict[str, Tensor]:
        g = self.geometry
        result = {"esps": plan.potential_at_atoms(self.density)}
        if "external_field" in self.data:
            field = torch.as_tensor(self.data["external_field"]).reshape(-1, 3)
            level = torch.as_tensor(self.data["fermi_level"]).reshape(-1)
            n_graphs = len(g.cell)
            result["external_features"] = model.external_features(
                g.positions, g.batch, field.expand(n_graphs, 3), level.expand(n_graphs)
            )
        part = plan.parts[0]
        if hasattr(part, "k"):
            result["n_k_half_per_graph"] = part.k.valid.sum(1) + 1
        return result

    def _molecules(self) -> Tensor:
        """Graphs that get the correction for a molecule in a box, [n_graphs] bool."""
        if self.options.pbc_handling == "mixed_periodic":
            return ~self.geometry.pbc.any(1)
        chosen = self.options.pbc_handling == "molecule_in_box"
        return torch.full((len(self.geometry.cell),), chosen)

    def _madelung(self, exponent: float) -> Tensor:
        """Reference minus ours: C alpha Q (V^-exponent - V^(-1/3)), [n_graphs] V."""
        volume = torch.linalg.det(self.geometry.cell).abs()
        safe = torch.where(self._molecules(), volume, 1.0)
        charge = torch.zeros_like(volume).index_add(0, self.geometry.batch, self.density[:, 0])
        difference = safe**-exponent - safe ** (-1.0 / 3.0)
        return COULOMB_C * MADELUNG_CUBIC * charge * difference

    def _energy_rounding(self) -> Tensor:
        charge = torch.zeros(len(self.geometry.cell), dtype=torch.float64)
        charge = charge.index_add(0, self.geometry.batch, self.density[:, 0])
        return 0.5 * charge * self._madelung(_ROUNDED_ENERGY)

    def _feature_rounding(self) -> Tensor:
        node = self._madelung(_ROUNDED_FEATURES)[self.geometry.batch]
        return self.without.fermi_features(node)


def _gradients(value: Tensor, positions: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    by_position, by_density = torch.autograd.grad(
        value, (positions, density), retain_graph=True, materialize_grads=True
    )
    return by_position, by_density
