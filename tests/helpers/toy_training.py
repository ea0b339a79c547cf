"""A toy model, toy data and a toy predict function for tests of the training layer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.metrics.errors import QUANTITIES
from fpmace.models.base import Model, Request
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.models.geometry import Geometry
from fpmace.observables.types import Observables
from fpmace.training.checkpoint import CheckpointStore
from fpmace.training.losses import build_losses
from fpmace.training.recorder import MetricsRecorder
from fpmace.training.stages import Stage
from fpmace.training.trainer import Trainer, TrainerOptions

DTYPE = torch.float64


def toy_batch(
    sizes: list[int], *, seed: int = 0, first: int = 0, multipoles: bool = True
) -> Batch:
    """Random molecules with every graph and atom label the tests need."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DTYPE)

    n, g = sum(sizes), len(sizes)
    ptr = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    labels = {
        "energy": normal(g),
        "forces": normal(n, 3),
        "stress": normal(g, 3, 3),
        "virials": normal(g, 3, 3),
        "dipole": normal(g, 3),
        "polarizability": normal(g, 3, 3),
        "atomic_multipoles": normal(n, 4),
    }
    labels["charges"] = labels["atomic_multipoles"][:, 0]
    weights = {name: torch.ones(g, dtype=DTYPE) for name in (*labels, "total_charge")}
    weights["dipole"] = torch.ones(g, 3, dtype=DTYPE)
    weights["fermi_level"] = torch.ones(g, dtype=DTYPE)
    return Batch(
        positions=2.0 * normal(n, 3),
        atomic_numbers=torch.randint(0, 2, (n,), generator=generator) * 7 + 1,
        cell=torch.zeros(g, 3, 3, dtype=DTYPE),
        pbc=torch.zeros(g, 3, dtype=torch.bool),
        batch=torch.repeat_interleave(torch.arange(g), torch.tensor(sizes)),
        ptr=ptr,
        edge_index=torch.zeros(2, 0, dtype=torch.int64),
        unit_shifts=torch.zeros(0, 3, dtype=DTYPE),
        total_charge=normal(g),
        total_spin=torch.ones(g, dtype=DTYPE),
        external_field=torch.zeros(g, 3, dtype=DTYPE),
        fermi_level=(level := normal(g)),
        labels=labels | {"fermi_level": level},
        weights=weights,
        weight=torch.ones(g, dtype=DTYPE),
        index=torch.arange(first, first + g),
    )


class ToyModel(Model):
    """Energy from a smooth sum over all pairs of a graph; charges from the same feature."""

    group_prefixes = FixedPointCore.group_prefixes

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(r_max=3.0, atomic_numbers=[1, 8])
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> nn.ParameterDict:
            value = torch.randn(*shape, generator=generator, dtype=DTYPE)
            return nn.ParameterDict({"weight": nn.Parameter(value)})

        self.node_embedding = parameter(9, 4)
        self.products = parameter(4, 4)
        self.readouts = parameter(4, 1)
        self.lr_source_maps = parameter(4, 4)

    def observe(self, geometry: Geometry, batch: Batch, request: Request) -> Observables:
        return toy_predict(self, batch, mode=None, outputs=request.outputs, create_graph=True)

    def forward(self, positions: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        distance = (positions.unsqueeze(0) - positions.unsqueeze(1)).square().sum(-1)
        same = (batch.batch.unsqueeze(0) == batch.batch.unsqueeze(1)).to(positions.dtype)
        density = (same * torch.exp(-0.2 * distance)).sum(1, keepdim=True)
        hidden = (
            torch.tanh(self.node_embedding["weight"][batch.atomic_numbers] * density)
            @ self.products["weight"]
        )
        return (hidden @ self.readouts["weight"]).squeeze(-1), hidden @ self.lr_source_maps[
            "weight"
        ]


def toy_predict(
    model: nn.Module, batch: Batch, *, mode: object, outputs: frozenset[str], create_graph: bool
) -> Observables:
    with torch.enable_grad():
        positions = batch.positions.clone().requires_grad_()
        node_energy, density = model(positions, batch)
        energy = node_energy.new_zeros(batch.n_graphs).index_add(0, batch.batch, node_energy)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=create_graph)
    dipoles = density[:, :1] * batch.positions + density[:, [3, 1, 2]]
    return Observables(
        energy=energy,
        forces=-gradient,
        density=density,
        dipole=dipoles.new_zeros(batch.n_graphs, 3).index_add(0, batch.batch, dipoles),
    )


class ToyLoader:
    """Single-molecule batches in an order fixed by the epoch."""

    def __init__(self, n: int, *, seed: int, shuffle: bool) -> None:
        self.batches = [toy_batch([4], seed=seed + i, first=i) for i in range(n)]
        self.shuffle, self.epoch = shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def steps(self, accumulate: int) -> list[list[Batch]]:
        batches = list(self)
        return [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]

    def __iter__(self):
        order = list(range(len(self.batches)))
        if self.shuffle:
            generator = torch.Generator().manual_seed(1000 + self.epoch)
            order = torch.randperm(len(order), generator=generator).tolist()
        return iter([self.batches[i] for i in order])


def toy_stages(**changes: object) -> list[Stage]:
    first = {"energy_per_atom": 1.0, "forces": 10.0, "atomic_multipoles": 1.0}
    second = {"energy_per_atom": 10.0, "huber_forces": {"weight": 5.0, "delta": 0.1}}
    return [
        Stage(
            index=index,
            name=name,
            start=start,
            end=end,
            losses=build_losses(loss, where=f"train_schedule.{index}.loss"),
            mode=None,
            valid_mode=None,
            lr=lr,
            **changes,
        )
        for index, (name, start, end, loss, lr) in enumerate(
            [("first", 0, 3, first, 0.02), ("second", 4, 6, second, 0.005)]
        )
    ]


def toy_trainer(folder: Path, *, predict=toy_predict, model: nn.Module | None = None, **changes):
    options = {"optimizer": "adam", "ema_decay": 0.9, "clip_grad": 10.0, **changes}
    return Trainer(
        model or ToyModel(),
        stages=toy_stages(),
        train_loader=ToyLoader(3, seed=10, shuffle=True),
        valid_loader=ToyLoader(2, seed=50, shuffle=False),
        options=TrainerOptions(**options),
        quantities=[QUANTITIES["energy_per_atom"], QUANTITIES["forces"], QUANTITIES["charges"]],
        store=CheckpointStore(folder / "checkpoints", "toy"),
        recorder=MetricsRecorder(folder / "toy_metrics.jsonl"),
        config={"name": "toy"},
        predict=predict,
    )
