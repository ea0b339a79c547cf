"""Small random structures for every boundary, as an electrostatics takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpmace.boundaries import FFF, PERIODIC, SLAB, TTF, TTT, boundary
from fpmace.electrostatics import Electrostatics, Plan


@dataclass(frozen=True)
class System:
    """A batch: positions [n, 3], cell [g, 3, 3], pbc [g, 3], batch [n], ptr [g + 1]."""

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    ptr: Tensor

    def plan(self, electrostatics: Electrostatics) -> Plan:
        """Its plan."""
        return electrostatics.plan(self.positions, self.cell, self.pbc, self.batch, self.ptr)

    def strained(self, strain: Tensor) -> System:
        """With a symmetric strain [n_graphs, 3, 3] on positions and cells."""
        identity = torch.eye(3, dtype=strain.dtype, device=strain.device)
        deformation = identity + 0.5 * (strain + strain.transpose(1, 2))
        moved = torch.einsum("ni,nij->nj", self.positions, deformation[self.batch])
        return replace(self, positions=moved, cell=self.cell @ deformation)

    def graph(self, index: int) -> System:
        """One structure alone."""
        chosen = self.batch == index
        return one_graph(self.positions[chosen], self.cell[index], self.pbc[index])


def one_graph(
    positions: Tensor, cell: Tensor | float, pbc: Tensor | tuple[bool, ...] = TTT
) -> System:
    """One structure: positions [n, 3], cell [3, 3] or the edge of a cube."""
    if not isinstance(cell, Tensor):
        cell = cell * torch.eye(3, dtype=positions.dtype)
    n = len(positions)
    flags = torch.as_tensor(pbc)[None]
    return System(
        positions, cell[None], flags, torch.zeros(n, dtype=torch.int64), torch.tensor([0, n])
    )


def make_system(method: str, sizes: tuple[int, ...] = (3, 2, 4), seed: int = 0) -> System:
    """Random graphs in cells that fit the method; the flags run through FFF, TTF, TTT."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    flags = [(FFF, TTF, TTT)[graph % 3] for graph in range(len(sizes))]
    cells = []
    for flag in flags:
        cell = torch.eye(3, dtype=torch.float64) * (6.0 + random(1))
        kind = boundary(method, flag)
        if kind == PERIODIC:
            cell = cell + 1.5 * (random(3, 3) - 0.5)
        elif kind == SLAB:
            cell = cell * torch.tensor([1.0, 0.9, 1.6], dtype=torch.float64)
            cell[0, 1] = 0.7
        cells.append(cell)
    counts = torch.tensor(sizes)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    positions = 5.0 * random(sum(sizes), 3)
    return System(positions, torch.stack(cells), torch.tensor(flags), batch, ptr)


def make_density(electrostatics: Electrostatics, n_atoms: int, seed: int = 1) -> Tensor:
    """Random multipoles, [n_atoms, n_density]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_atoms, electrostatics.n_density)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def neutral(system: System, density: Tensor) -> Tensor:
    """The density without the total charge of each graph."""
    counts = torch.bincount(system.batch).to(density)
    charge = torch.zeros_like(counts).index_add(0, system.batch, density[:, 0])
    changed = density.clone()
    changed[:, 0] -= (charge / counts)[system.batch]
    return changed
