"""Predictions of a batch, split into the results of its structures."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from fpmace.annotations import Values
from fpmace.calculators.scf_mode import charge_errors, density_changes
from fpmace.data.batch import Batch
from fpmace.observables.types import Observables
from fpmace.scf.state import ScfResult

_PER_GRAPH = ("fermi_level", "total_charge", "electrostatic_energy", "electron_energy")
_PER_ATOM = {
    "density": "density_coefficients",
    "spin_density": "spin_density",
    "electrostatic_features": "electrostatic_features",
    "electrostatic_potentials": "electrostatic_potentials",
}


def graph_results(observables: Observables, batch: Batch, graph: int) -> Values:
    """Results of one structure under ASE's names, as floats and float64 arrays.

    ``energy``, ``free_energy`` (eV), ``forces`` (eV/Angstrom), ``stress`` (Voigt xx yy zz yz xz
    xy, eV/Angstrom^3, tension positive; only with three periodic directions), ``dipole``
    (e Angstrom, about the origin of the coordinates), ``charges`` (e), and, where the model has
    them, ``density_coefficients``, ``spins``, ``spin_density``,
    ``fermi_level``, ``total_charge``, ``electrostatic_energy``,
    ``electron_energy``, ``electrostatic_features``, ``electrostatic_potentials`` and the outcome
    of the self-consistency loop.
    """
    atoms = slice(int(batch.ptr[graph]), int(batch.ptr[graph + 1]))
    energy = float(observables.energy[graph])
    results: Values = {"energy": energy, "free_energy": energy}
    if observables.forces is not None:
        results["forces"] = _array(observables.forces[atoms])
    if observables.stress is not None and bool(batch.pbc[graph].all()):
        results["stress"] = full_3x3_to_voigt_6_stress(_array(observables.stress[graph]))
    if observables.dipole is not None:
        results["dipole"] = _array(observables.dipole[graph])
    if observables.density is not None:
        results["charges"] = _array(observables.density[atoms, 0])
    if observables.spin_density is not None:
        results["spins"] = _array(observables.spin_density[atoms, 0])
    for name, key in _PER_ATOM.items():
        value = getattr(observables, name)
        if value is not None:
            results[key] = _array(value[atoms])
    for name in _PER_GRAPH:
        value = getattr(observables, name)
        if value is not None:
            results[name] = float(value[graph])
    if observables.density is None and observables.node_energy is not None:
        results["energies"] = _array(observables.node_energy[atoms])
    if observables.scf is not None:
        results.update(scf_results(observables.scf, graph, atoms))
    return results


def scf_results(result: ScfResult, graph: int, atoms: slice) -> Values:
    """How the loop of one structure went.

    ``num_scf_steps``, ``scf_converged`` and ``scf_solver``; ``convergence_history`` with
    ``density_change`` (e Angstrom^l, mean absolute change per pass) and ``charge_error`` (e);
    with the full history ``full_scf_history`` with ``densities`` [n, n_atoms, n_lm] and
    ``fermi_levels`` [n], the start first; with ``diagnostics: true`` ``scf_diagnostics``, the
    eigenvalues of the map.
    """
    found: Values = {
        "num_scf_steps": int(result.n_steps[graph]),
        "scf_converged": bool(result.converged[graph]),
        "scf_solver": result.solver[graph],
        "convergence_history": {
            "density_change": np.array(density_changes(result, graph)),
            "charge_error": np.array(charge_errors(result, graph)),
        },
    }
    if result.diagnostics is not None:
        found["scf_diagnostics"] = {
            item.name: float(value[graph])
            for item in dataclasses.fields(result.diagnostics)
            if isinstance(value := getattr(result.diagnostics, item.name), Tensor)
        }
    history = result.history
    if history is not None and history.densities:
        kept = int(result.n_steps[graph]) + 1
        found["full_scf_history"] = {
            "densities": np.stack([_array(item[atoms]) for item in history.densities[:kept]]),
            "fermi_levels": np.array([float(item[graph]) for item in history.fermi_levels[:kept]]),
        }
    return found


def _array(value: Tensor) -> np.ndarray:
    return np.asarray(value.detach().to("cpu", torch.float64).numpy())
