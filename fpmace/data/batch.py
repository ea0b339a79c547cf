"""The batch: several structures concatenated, with the labels and weights they carry."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Structures concatenated along the atoms; a "graph" is one structure.

    Floating tensors share one dtype and all tensors one device. Edges are sorted by receiver.

    Attributes:
        positions: [n_atoms, 3] Angstrom.
        atomic_numbers: [n_atoms] int64.
        cell: [n_graphs, 3, 3] Angstrom, lattice vectors are rows; zero for a molecule without one.
        pbc: [n_graphs, 3] bool.
        batch: [n_atoms] int64, graph of each atom, ascending.
        ptr: [n_graphs + 1] int64, first atom of each graph.
        edge_index: [2, n_edges] int64, row 0 sender, row 1 receiver.
        unit_shifts: [n_edges, 3] integer valued, in lattice vectors: the edge vector is
            ``positions[receiver] - positions[sender] + unit_shifts @ cell``.
        total_charge: [n_graphs] e.
        total_spin: [n_graphs] multiplicity 2S + 1; 1 where not given.
        external_field: [n_graphs, 3] V/Angstrom, gradient of the potential felt by positive
            charge (minus the physical field): the energy term is ``+ field . dipole``.
        fermi_level: [n_graphs] eV, the level that is held, or where the search for it starts if
            the options say ``from_data``; 0 where not given. The label is in ``labels``.
        labels: reference values by property name (see ``data.keys``); a property that only
            some graphs carry is filled with zeros elsewhere and has weight 0 there.
        weights: weight by property name, [n_graphs] (``dipole``: [n_graphs, 3]); 0 = absent.
        weight: [n_graphs] weight of the configuration as a whole.
        index: [n_graphs] int64, position of the configuration in its data set.
        head: [n_graphs] int64, place of the structure's head among those of the model; empty
            where nothing is said, which stands for the only head.
    """

    positions: Tensor
    atomic_numbers: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    ptr: Tensor
    edge_index: Tensor
    unit_shifts: Tensor
    total_charge: Tensor
    total_spin: Tensor
    external_field: Tensor
    fermi_level: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor = field(default_factory=lambda: torch.ones(0))
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    head: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @property
    def n_graphs(self) -> int:
        return self.cell.shape[0]

    @property
    def n_atoms(self) -> int:
        return self.positions.shape[0]

    @property
    def atoms_per_graph(self) -> Tensor:
        """[n_graphs] int64."""
        return self.ptr[1:] - self.ptr[:-1]

    def select(self, keep: Tensor) -> Batch:
        """The graphs where ``keep`` [n_graphs] bool is true, in their order."""
        atoms, (sender, receiver) = keep[self.batch], self.edge_index
        edges = atoms[receiver]
        number = atoms.cumsum(0) - 1
        sizes = self.atoms_per_graph[keep]

        def part(value: Tensor) -> Tensor:
            return value[keep if len(value) == self.n_graphs else atoms]

        return Batch(
            positions=self.positions[atoms],
            atomic_numbers=self.atomic_numbers[atoms],
            cell=self.cell[keep],
            pbc=self.pbc[keep],
            batch=(keep.cumsum(0) - 1)[self.batch[atoms]],
            ptr=torch.cat([self.ptr[:1], sizes.cumsum(0)]),
            edge_index=torch.stack([number[sender[edges]], number[receiver[edges]]]),
            unit_shifts=self.unit_shifts[edges],
            total_charge=self.total_charge[keep],
            total_spin=self.total_spin[keep],
            external_field=self.external_field[keep],
            fermi_level=self.fermi_level[keep],
            labels={name: part(value) for name, value in self.labels.items()},
            weights={name: part(value) for name, value in self.weights.items()},
            weight=self.weight[keep],
            index=self.index[keep],
            head=self.head[keep] if len(self.head) else self.head,
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Batch:
        """Return the batch on another device and with another floating dtype."""

        def move(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        changes: dict[str, object] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            changes[item.name] = (
                {name: move(tensor) for name, tensor in value.items()}
                if isinstance(value, dict)
                else move(value)
            )
        return replace(self, **changes)  # type: ignore[arg-type]
