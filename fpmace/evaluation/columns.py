"""Which results of a structure are written, and as what."""

from __future__ import annotations

import numpy as np

from fpmace.annotations import Values

_PER_ATOM = (
    "forces",
    "charges",
    "spins",
    "density_coefficients",
    "spin_density",
    "electrostatic_potentials",
)
_PER_GRAPH = (
    "energy",
    "dipole",
    "fermi_level",
    "total_charge",
    "electrostatic_energy",
    "electron_energy",
    "num_scf_steps",
    "scf_converged",
)


def columns(results: Values, history: str) -> tuple[dict[str, np.ndarray], Values]:
    """Columns and comment-line entries of a structure, by name without prefix.

    Args:
        results: from :func:`~fpmace.calculators.results.graph_results`.
        history: ``none``; ``absolute_change`` adds ``density_change`` and ``charge_error`` of
            each pass; ``full_history`` also ``density_history`` (a column block of n_lm numbers
            per pass, the start first) and ``fermi_level_history``.
    """
    per_atom: dict[str, np.ndarray] = {
        name: results[name] for name in _PER_ATOM if name in results
    }
    per_graph: Values = {name: results[name] for name in _PER_GRAPH if name in results}
    if "stress" in results:
        xx, yy, zz, yz, xz, xy = results["stress"]
        per_graph["stress"] = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if history != "none" and "convergence_history" in results:
        changes = results["convergence_history"]
        per_graph["density_change"] = changes["density_change"]
        per_graph["charge_error"] = changes["charge_error"]
    if history == "full_history" and "full_scf_history" in results:
        full = results["full_scf_history"]
        per_atom["density_history"] = np.concatenate(list(full["densities"]), axis=1)
        per_graph["fermi_level_history"] = full["fermi_levels"]
    return per_atom, per_graph
