"""Small systems and models with random weights, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms

from fpmace.data.batch import Batch
from fpmace.data.neighborhood import Array, neighborhood
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.models.geometry import element_index, make_geometry
from fpmace.registry import build

WATER_SPACING = 3.1
"""Angstrom; one molecule per grid point gives 1.00 g/cm^3."""


def water_box(shape: tuple[int, int, int], *, seed: int = 0, pbc: object = True) -> Atoms:
    """Water molecules of random orientation on a grid, periodic by default."""
    rng = np.random.default_rng(seed)
    positions, numbers = [], []
    for point in np.ndindex(*shape):
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        half = np.radians(104.5 / 2)
        oh = 0.96 * np.array([[np.sin(half), 0, np.cos(half)], [-np.sin(half), 0, np.cos(half)]])
        centre = (np.array(point) + 0.5) * WATER_SPACING
        positions += [centre, *(centre + oh @ rotation.T)]
        numbers += [8, 1, 1]
    cell = np.array(shape) * WATER_SPACING
    return Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc)


def atoms_batch(structures: list[Atoms], r_max: float) -> Batch:
    """Batch of ASE structures without labels; charge, spin and field from info."""
    arrays = [
        {
            "positions": atoms.positions,
            "numbers": atoms.numbers,
            "cell": np.asarray(atoms.cell),
            "pbc": np.asarray(atoms.pbc),
        }
        for atoms in structures
    ]
    batch = structure_batch(arrays, r_max)
    charge = [float(atoms.info.get("total_charge", 0.0)) for atoms in structures]
    spin = [float(atoms.info.get("total_spin", 1.0)) for atoms in structures]
    field = [atoms.info.get("external_field", (0.0, 0.0, 0.0)) for atoms in structures]
    batch.total_charge.copy_(torch.tensor(charge, dtype=torch.float64))
    batch.total_spin.copy_(torch.tensor(spin, dtype=torch.float64))
    batch.external_field.copy_(torch.from_numpy(np.array(field, dtype=float)))
    return batch


def structure_batch(structures: list[dict[str, Array]], r_max: float) -> Batch:
    """Batch of structures given as arrays ``positions``, ``numbers``, ``cell``, ``pbc``."""
    edges, shifts, start = [], [], 0
    for item in structures:
        index, unit_shifts = neighborhood(
            item["positions"], item["cell"], item["pbc"].astype(bool), r_max
        )
        edges.append(index + start)
        shifts.append(unit_shifts)
        start += len(item["numbers"])
    sizes = torch.tensor([len(item["numbers"]) for item in structures])
    n_graphs = len(structures)

    def joined(key: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([item[key] for item in structures]))

    return Batch(
        positions=joined("positions").to(torch.float64),
        atomic_numbers=joined("numbers").to(torch.int64),
        cell=torch.from_numpy(np.stack([item["cell"] for item in structures])).to(torch.float64),
        pbc=torch.from_numpy(np.stack([item["pbc"].astype(bool) for item in structures])),
        batch=torch.repeat_interleave(torch.arange(n_graphs), sizes),
        ptr=torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        edge_index=torch.from_numpy(np.concatenate(edges, axis=1)),
        unit_shifts=torch.from_numpy(np.concatenate(shifts)).to(torch.float64),
        total_charge=torch.zeros(n_graphs, dtype=torch.float64),
        total_spin=torch.ones(n_graphs, dtype=torch.float64),
        external_field=torch.zeros(n_graphs, 3, dtype=torch.float64),
        fermi_level=torch.zeros(n_graphs, dtype=torch.float64),
        weight=torch.ones(n_graphs, dtype=torch.float64),
        index=torch.arange(n_graphs),
    )


def random_model(*, seed: int = 0, **options: Any) -> FixedPointCore:
    """A fixed-point model for H and O with random weights; ``options`` override the defaults."""
    torch.manual_seed(seed)
    config = {
        "type": "FixedPoint",
        "atomic_numbers": [1, 8],
        "atomic_energies": [-13.6, -430.0],
        "r_max": 5.0,
        "avg_num_neighbors": 20.0,
        "field_feature_norms": [25.0, 25.0, 1.0, 1.0],
        "use_linear_local_charges": True,
        **options,
    }
    model: FixedPointCore = build("model", config)
    return model


def density_response(model: FixedPointCore, batch: Batch) -> torch.Tensor:
    """Dense Jacobian of the map at the local guess, Fermi level 0: [n, n], n = n_atoms n_lm."""
    geometry = make_geometry(batch, element_index(model.atomic_numbers, batch))
    with torch.no_grad():
        local = model.local_part(geometry, batch.external_field)
    problem = model.problem(local, None, batch.atoms_per_graph)
    line = problem.linearise(local.local_density, torch.zeros_like(batch.positions[:, 0]))
    shape = local.local_density.shape
    unit = torch.eye(shape.numel(), dtype=batch.positions.dtype)
    return torch.stack([line.apply(row.view(shape)).flatten() for row in unit], dim=1)


def scale_response(model: FixedPointCore, batch: Batch, eigenvalue: float) -> float:
    """Scale the update's last map so that the extreme eigenvalue of the response is as given.

    Returns:
        The factor applied; the sign makes the extreme (largest in modulus) eigenvalue real part
        agree in sign with ``eigenvalue``.
    """
    values = torch.linalg.eigvals(density_response(model, batch)).real
    extreme = float(values[values.abs().argmax()])
    factor = eigenvalue / extreme
    with torch.no_grad():
        for name, weight in model.update_rule.named_parameters():
            if name.endswith("element_select_out.weight"):
                weight.mul_(factor)
    return factor
