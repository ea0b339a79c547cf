"""Efficiency of distributed training: measured for a few gloo processes, modelled for many GPUs.

    python benchmarks/distributed.py                      1, 2 and 4 processes on this machine
    python benchmarks/distributed.py --model 0.2 --mebibytes 4   a model for steps of 0.2 s

Weak scaling: each process has the same batch, so that an ideal step takes as long for any number.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

_LINKS = {8: (450e9, 3e-6), 1024: (50e9, 10e-6)}
"""GPUs up to which a link is the slowest: bytes/s in one direction, s of latency per message.

NVLink 4 within a node of eight H100 (900 GB/s both ways); InfiniBand NDR, 400 Gbit/s per GPU. The
latencies are assumptions.
"""


def measure(steps: int, width: int) -> None:
    """In one process: time steps and their sum of gradients; the first process prints."""
    from fixed_point_cases import batch_of, make_mode, scaled_model, structure

    from fpmace.distributed.join import joined
    from fpmace.observables.predict import predict
    from fpmace.training.losses import build_losses
    from fpmace.training.stages import Stage
    from fpmace.training.step import GradientStep

    torch.set_num_threads(1)
    with joined() as group:
        model = scaled_model("affine")
        model.ballast = torch.nn.Parameter(torch.zeros(width, dtype=torch.float64))
        batch = batch_of(*[structure(n_molecules=8) for _ in range(2)])
        losses = build_losses({"energy_per_atom": 1.0, "forces": 1.0}, where="loss")
        mode = make_mode("direct")
        stage = Stage(0, "benchmark", 0, 0, losses, mode, mode, 0.01)
        step = GradientStep(model, stage, predict=predict, clip_grad=10.0, process=group.process)
        parameters = list(model.parameters())
        found = []
        for number in range(steps):
            group.process.wait()
            began = time.perf_counter()
            step([batch], place="benchmark", seed=number)
            model.ballast.grad = torch.zeros_like(model.ballast)
            middle = time.perf_counter()
            group.process.sum_gradients(parameters)
            found.append((middle - began, time.perf_counter() - middle))
        medians = [statistics.median(column) for column in zip(*found[1:], strict=True)]
        everyone = group.process.gather(medians)
        if group.process.writes:
            size = sum(item.numel() * item.element_size() for item in parameters)
            print(json.dumps({"size": size, "times": everyone}))


def run(n: int, steps: int, width: int) -> tuple[float, float, int]:
    """Median seconds of a step and of the sum over ``n`` processes, and its bytes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    flags = ["--worker", "--steps", str(steps), "--width", str(width)]
    command = [*launcher, "--nproc_per_node", str(n), __file__, *flags]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(text.strip().splitlines()[-1])
    step, total = (statistics.median(column) for column in zip(*found["times"], strict=True))
    return step, total, found["size"]


def efficiency(n: int, seconds: float, size: float, spread: float) -> float:
    """Share of the time of ``n`` GPUs that is not spent on waiting.

    A ring all-reduce moves 2 (n - 1)/n of the message over the slowest link, in 2 log2 n messages
    of latency each; the slowest of n processes, whose times spread by the fraction ``spread``
    (normal), takes sqrt(2 ln n) standard deviations longer than the mean.
    """
    speed, latency = next(link for most, link in _LINKS.items() if n <= most)
    sent = 2 * (n - 1) / n * size / speed + 2 * math.log2(n) * latency
    small = 2 * math.log2(n) * latency
    waited = spread * seconds * math.sqrt(2 * math.log(n))
    return seconds / (seconds + sent + small + waited)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=0, help="parameters without use to send")
    parser.add_argument("--model", type=float, help="seconds of a step on one GPU")
    parser.add_argument("--mebibytes", type=float, default=4.0)
    given = parser.parse_args()
    if given.worker:
        measure(given.steps, given.width)
    elif given.model:
        print("| GPUs | balanced | spread 5 % | spread 20 % |\n|---|---|---|---|")
        for n in (8, 16, 64, 256, 1024):
            shares = [
                efficiency(n, given.model, given.mebibytes * 2**20, spread)
                for spread in (0.0, 0.05, 0.2)
            ]
            print(f"| {n} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    else:
        print("| processes | step / ms | all-reduce / ms | MiB |\n|---|---|---|---|")
        for n in (1, 2, 4):
            step, total, size = run(n, given.steps, given.width)
            print(f"| {n} | {1e3 * step:.0f} | {1e3 * total:.1f} | {size / 2**20:.2f} |")


if __name__ == "__main__":
    main()
