"""How much memory one training step of a stage takes, and batches that keep to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpmace.data.atomic_data import collate
from fpmace.data.batch import Batch
from fpmace.data.budget import BatchBudget
from fpmace.data.dataset import StructureDataset
from fpmace.models.size import machine_memory
from fpmace.training.evaluate import Predict
from fpmace.training.stages import Stage


@dataclass(frozen=True)
class StepEstimate:
    """Memory of a step, in MiB, beyond weights and optimizer.

    Attributes:
        graph: tensors kept for the backward pass.
        peak: highest use on a GPU; None on the CPU.
        loss: value of the loss.
    """

    graph: float
    peak: float | None
    loss: float

    def __str__(self) -> str:
        peak = "" if self.peak is None else f", peak {self.peak:.0f} MiB"
        return f"{self.graph:.0f} MiB kept for the backward pass{peak}, loss {self.loss:.6g}"


class _Counter:
    """Adds up the distinct tensors that autograd keeps.

    ``hold``: also those that it gives back before the end, whose memory others may take in one
    run and not in the next; the sum is then the same in every run.
    """

    def __init__(self, hold: bool) -> None:
        self._sizes: dict[int, int] = {}
        self._held: list[torch.UntypedStorage] | None = [] if hold else None

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._sizes[storage.data_ptr()] = storage.nbytes()
        if self._held is not None:
            self._held.append(storage)
        return tensor

    @property
    def mebibytes(self) -> float:
        return sum(self._sizes.values()) / 2**20


def estimate_step(
    model: nn.Module,
    batch: Batch,
    stage: Stage,
    *,
    predict: Predict,
    device: torch.device,
    reproducible: bool = False,
) -> StepEstimate:
    """Run one forward and backward pass and report its memory; gradients are cleared again."""
    counter = _Counter(reproducible)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    batch = batch.to(device)
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
        prediction = predict(
            model,
            batch,
            mode=stage.mode,
            outputs=stage.losses.requires_outputs,
            create_graph=True,
        )
        loss, _ = stage.losses(batch, prediction)
        loss.backward()
    model.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None
    return StepEstimate(graph=counter.mebibytes, peak=peak, loss=float(loss.detach()))


def memory_budget(
    model: nn.Module,
    dataset: StructureDataset,
    stages: Sequence[Stage],
    gibibytes: float,
    *,
    predict: Predict,
    device: torch.device,
    dtype: torch.dtype,
) -> BatchBudget:
    """A budget of memory, from steps on two structures of the data with the weights as they are.

    What is kept for the backward pass is taken as a sum over atoms and edges, the largest of all
    stages. Peaks are up to twice as high.
    """
    sizes = dataset.sizes()
    large = max(range(len(sizes)), key=lambda index: sizes[index][::-1])
    sparse = max(range(len(sizes)), key=lambda index: sizes[index][0] / (1 + sizes[index][1]))
    per_atom = per_edge = 0.0
    for stage in stages:

        def kept(index: int, count: int, stage: Stage = stage) -> float:
            batch = collate([dataset[index]] * count, dtype)
            return estimate_step(
                model, batch, stage, predict=predict, device=device, reproducible=True
            ).graph

        # Once more of a structure adds what it takes without the weights.
        added = [kept(index, 2) - kept(index, 1) for index in (large, sparse)]
        shares = _shares((sizes[large], sizes[sparse]), added)
        per_atom, per_edge = max(per_atom, shares[0]), max(per_edge, shares[1])
    return BatchBudget("memory", 1024.0 * gibibytes, per_atom, per_edge)


def _shares(sizes: Sequence[tuple[int, int]], kept: Sequence[float]) -> tuple[float, float]:
    """MiB of an atom and of an edge, both positive."""
    (n1, m1), (n2, m2) = sizes
    area = n1 * m2 - n2 * m1
    if area:
        found = (kept[0] * m2 - kept[1] * m1) / area, (n1 * kept[1] - n2 * kept[0]) / area
        if min(found) >= 0.0:
            return found
    if m1:
        return 0.0, kept[0] / m1
    return kept[0] / n1, 0.0


def propose_budget(
    known: BatchBudget, sizes: Sequence[tuple[int, int]], device: torch.device
) -> str:
    """Text with the budget of edges that half of the memory holds at the peak."""
    n_atoms, n_edges = map(sum, zip(*sizes, strict=True))
    per_edge = known.cost(n_atoms, n_edges) / max(n_edges, 1)
    there = machine_memory(device) / 2**20
    edges = float(f"{there / 4 / per_edge:.1g}")
    n_structures = edges * len(sizes) / max(n_edges, 1)
    return (
        f"proposed: batch_budget: {{edges: {edges:.0f}}}, about {n_structures:.3g} configurations "
        f"in a batch ({per_edge:.3g} MiB an edge, {there / 1024:.3g} GiB in all, half of it used, "
        "peaks of twice what is kept)"
    )
