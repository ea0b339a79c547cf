"""Reference numbers, and a tight check of open boundaries through the reference's own scheme."""

from __future__ import annotations

import json
from itertools import pairwise
from math import pi, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fpmace.electrostatics import ElectrostaticsOptions, GTOElectrostatics
from fpmace.units import COULOMB_C
from verification.electrostatics import check_electrostatics

DATA = Path(__file__).parent / "data" / "electrostatics"


def test_every_stored_quantity() -> None:
    rows = check_electrostatics(DATA)
    assert len(rows) > 1000
    assert not [row for row in rows if row.status != "pass"]


def test_unknown_content_is_listed_not_skipped(tmp_path: Path) -> None:
    index = json.loads((DATA / "index.json").read_text())
    index["files"] = [{"file": "other.npz"}, {"file": "missing.npz"}]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with np.load(DATA / "bulk_triclinic_112.npz") as stored:
        data = dict(stored)
    prefix = "A/pbc/k1.5/"
    kept = {key: value for key, value in data.items() if "/" not in key}
    kept[prefix + "energy_si"] = data[prefix + "energy_si"] * (1.0 + 1e-6)
    kept[prefix + "mystery"] = data[prefix + "energy_si"]
    kept["A/lattice/k1.5/energy_si"] = data[prefix + "energy_si"]
    np.savez(tmp_path / "other.npz", **kept)
    status = {
        (row.case.split("/")[-2:][0], row.quantity): row.status
        for row in check_electrostatics(tmp_path)
    }
    assert status[("pbc", "energy_si")] == "FAIL"
    assert status[("pbc", "mystery")] == "unsupported"
    assert status[("lattice", "energy_si")] == "unsupported"
    assert status[("missing.npz", "file")] == "unsupported"


def sub_charges(positions: Tensor, density: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """Four charges per atom that make up its charge and dipole: [n, 4, 3], [n, 4]."""
    offsets = h * torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    dipole = density[:, [3, 1, 2]] / h
    charges = torch.cat([density[:, :1] - dipole.sum(1, keepdim=True), dipole], dim=1)
    return positions[:, None] + offsets, charges


def potentials(sites: Tensor, charges: Tensor, width: float, softening: float) -> Tensor:
    """Potential at every sub-point of the sub-charges of other atoms, [n, 4]."""
    n = len(sites)
    distance = (sites[:, :, None, None] - sites[None, None]).norm(dim=-1)
    kernel = COULOMB_C * torch.erf(distance / (2.0 * width)) / (distance + softening)
    others = 1.0 - torch.eye(n, dtype=torch.float64)
    safe = torch.where(others[:, None, :, None] > 0, kernel, 0.0)
    return torch.einsum("iajb,jb->ia", safe, charges)


def difference_scheme(
    positions: Tensor, density: Tensor, widths: list[float], h: float, softening: float
) -> tuple[Tensor, Tensor]:
    """Energy (h = 0.2 of the features' step) and features of width 1.5 multipoles."""
    sites, charges = sub_charges(positions, density, 0.2 * h)
    energy = 0.5 * (charges * potentials(sites, charges, 1.5, softening)).sum()
    sites, charges = sub_charges(positions, density, h)
    scalars, vectors = [], []
    for width in widths:
        u = potentials(sites, charges, sqrt((1.5**2 + width**2) / 2.0), softening)
        scalars.append(sqrt(4.0 * pi) * u[:, :1])
        vectors.append(pi * sqrt(1.5) * width / h * (u[:, [2, 3, 1]] - u[:, :1]))
    return energy, torch.cat(scalars + vectors, dim=1)


@pytest.mark.parametrize("name", ["molecule_131", "molecule_132"])
def test_open_boundaries_are_the_limit_of_the_reference_scheme(name: str) -> None:
    """The scheme at its step is the reference to 1e-8; extrapolated to 0 it is ours to 1e-8."""
    with np.load(DATA / f"{name}.npz") as stored:
        data = dict(stored)
    positions = torch.tensor(data["positions"])
    density = torch.tensor(data["multipoles_l1"])
    energy, features = difference_scheme(positions, density, [1.5, 3.0], 0.1, 1e-6)
    prefix = "A/realspace/k1.5/"
    torch.testing.assert_close(
        energy, torch.tensor(data[prefix + "energy_nosi"][0]), rtol=1e-8, atol=1e-8
    )
    reference = torch.tensor(data[prefix + "features_nosi"])
    torch.testing.assert_close(features, reference, rtol=1e-8, atol=1e-8)

    levels = [
        difference_scheme(positions, density, [1.5, 3.0], 0.16 / 2**i, 0.0) for i in range(6)
    ]
    table = [torch.cat([e.reshape(1), f.flatten()]) for e, f in levels]
    for order in range(1, 6):
        weight = 2.0**order
        table = [(weight * b - a) / (weight - 1.0) for a, b in pairwise(table)]
    model = GTOElectrostatics(ElectrostaticsOptions(pbc_handling="realspace"))
    n = len(positions)
    plan = model.plan(
        positions,
        torch.zeros(1, 3, 3, dtype=torch.float64),
        torch.zeros(1, 3, dtype=torch.bool),
        torch.zeros(n, dtype=torch.int64),
        torch.tensor([0, n]),
    )
    exact = torch.cat([plan.energy(density), plan.potential_features(density).flatten()])
    assert float((table[0] - exact).abs().max()) < 1e-8 * float(exact.abs().max())
