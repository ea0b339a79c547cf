"""How much memory one training step of a stage takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
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
    """Adds up the distinct tensors that autograd keeps."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def mebibytes(self) -> float:
        return sum(self._sizes.values()) / 2**20


def estimate_step(
    model: nn.Module, batch: Batch, stage: Stage, *, predict: Predict, device: torch.device
) -> StepEstimate:
    """Run one forward and backward pass and report its memory; gradients are cleared again."""
    counter = _Counter()
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
