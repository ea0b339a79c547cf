"""Kills a process of a distributed training at random moments, again and again.

Every run must end by itself within the timeout, with one line that says who was killed, and the
training that is started again must end with the weights of one that was never stopped.

    python benchmarks/kill_ranks.py --kills 10
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import rank_cases


def start(folder: Path, n: int, out: str, *flags: str) -> subprocess.Popen[str]:
    """Begin a training of ``n`` processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["--nproc_per_node", str(n), "-m", "fpmace.cli.train", "--config", f"{out}.yaml"]
    return subprocess.Popen(
        [*launcher, *command, *flags],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_one(run: subprocess.Popen[str], delay: float, chooser: random.Random) -> str:
    """Kill a worker after ``delay`` s; return what the launcher printed until it ended."""
    time.sleep(delay)
    alive = rank_cases.children(run.pid)
    if alive and run.poll() is None:
        os.kill(chooser.choice(alive), signal.SIGKILL)
    text, _ = run.communicate(timeout=60)
    return text


def main() -> None:
    """Print one line per kill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chooser = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rank_cases.write_data(folder)
        rank_cases.config(folder, "whole", batch_size=2)
        rank_cases.config(folder, "killed", batch_size=2)
        began = time.monotonic()
        start(folder, given.processes, "whole").communicate(timeout=600)
        duration = time.monotonic() - began
        print(f"without a kill: {duration:.1f} s")
        for number in range(given.kills):
            run = start(folder, given.processes, "killed", "--restart_latest")
            delay = chooser.uniform(0.0, duration)
            began = time.monotonic()
            text = kill_one(run, delay, chooser)
            lines = [line for line in text.splitlines() if line.startswith("error: ")]
            ended = time.monotonic() - began - delay
            print(f"{number}: after {delay:5.1f} s, ended {ended:4.1f} s later with {lines}")
        text, _ = start(folder, given.processes, "killed", "--restart_latest").communicate()
        gap = rank_cases.largest_difference(
            rank_cases.numbers(folder / "whole"), rank_cases.numbers(folder / "killed")
        )
        print(f"largest difference to the run without a kill: {gap}")
        assert gap == 0.0, text


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
