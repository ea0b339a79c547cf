"""Small random systems and models for the tests of the electrostatics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fpmace.electrostatics import ElectrostaticsOptions, GTOElectrostatics, Plan

MODES = ("pbc", "slab", "molecule_in_box", "realspace", "mixed_periodic", "auto")
FFF, TTF, TTT = [False, False, False], [True, True, False], [True, True, True]


@dataclass(frozen=True)
class System:
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    ptr: Tensor

    def plan(self, model: GTOElectrostatics) -> Plan:
        return model.plan(self.positions, self.cell, self.pbc, self.batch, self.ptr)

    def strained(self, strain: Tensor) -> System:
        """Apply a symmetric strain [n_graphs, 3, 3] to positions and cells."""
        deformation = torch.eye(3, dtype=strain.dtype) + 0.5 * (strain + strain.transpose(1, 2))
        moved = torch.einsum("ni,nij->nj", self.positions, deformation[self.batch])
        return replace(self, positions=moved, cell=self.cell @ deformation)


def make_model(mode: str = "pbc", max_l: int = 1, **options: Any) -> GTOElectrostatics:
    settings: dict[str, Any] = {
        "density_max_l": max_l,
        "feature_max_l": max_l,
        "smearing_width": 1.0,
        "feature_widths": (1.0, 1.7),
        "kspace_cutoff_factor": 1.0,
        "pbc_method": mode,
        **options,
    }
    return GTOElectrostatics(ElectrostaticsOptions(**settings))


def make_system(mode: str, sizes: tuple[int, ...] = (3, 2, 4), seed: int = 0) -> System:
    """Graphs in cells that fit the mode; the flags run through FFF, TTF, TTT."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    n_graphs = len(sizes)
    flags = [(FFF, TTF, TTT)[g % 3] for g in range(n_graphs)]
    cells = []
    for flag in flags:
        cell = torch.eye(3, dtype=torch.float64) * (6.0 + random(1))
        if mode == "pbc" or (mode in ("mixed_periodic", "auto") and flag == TTT):
            cell = cell + 1.5 * (random(3, 3) - 0.5)
        elif mode == "slab" or (mode in ("mixed_periodic", "auto") and flag == TTF):
            cell = cell * torch.tensor([1.0, 0.9, 1.6], dtype=torch.float64)
            cell[0, 1] = 0.7
        cells.append(cell)
    counts = torch.tensor(sizes)
    batch = torch.repeat_interleave(torch.arange(n_graphs), counts)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    positions = 5.0 * random(sum(sizes), 3)
    return System(positions, torch.stack(cells), torch.tensor(flags), batch, ptr)


def one_graph(positions: Tensor, cell: Tensor | float, pbc: list[bool] = TTT) -> System:
    if not isinstance(cell, Tensor):
        cell = cell * torch.eye(3, dtype=torch.float64)
    n = len(positions)
    return System(
        positions,
        cell[None],
        torch.tensor([pbc]),
        torch.zeros(n, dtype=torch.int64),
        torch.tensor([0, n]),
    )


def make_density(model: GTOElectrostatics, n_atoms: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_atoms, model.n_density, generator=generator, dtype=torch.float64)


def features(model: GTOElectrostatics, system: System, density: Tensor) -> Tensor:
    return system.plan(model).potential_features(density)


def energy(model: GTOElectrostatics, system: System, density: Tensor) -> Tensor:
    return system.plan(model).energy(density)
