"""Cost of larger systems: energy and forces, training step, memory, errors.

    python benchmarks/scaling.py [--boundaries pbc,open,slab] [--atoms 96,384,1536]
                                 [--sums auto,mesh] [--direct-max N] [--training-max N]
                                 [--rounds N] [--memory] [--json FILE] [--plot FILE] [--quick]

Boxes of water (1 g/cm^3), periodic (to 12,288 atoms), as clusters and as slabs with 20 Angstrom of
vacuum (to 3,072); random but fixed weights, float64, one thread, solver auto. Times are process
CPU time, medians of rounds that alternate between the things compared, the backbone alone (plain
ScaleShiftMACE) among them; errors are relative to direct sums; memory (--memory) is the peak of a
process of its own less what it held.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from math import log
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scf
import torch
from torch import nn

from fpmace.data.batch import Batch
from fpmace.observables.predict import predict
from fpmace.parts import import_builtin_parts
from fpmace.registry import build
from fpmace.testing.systems import atoms_batch, water_box

SHAPES = {
    96: (4, 4, 2),
    192: (4, 4, 4),
    384: (8, 4, 4),
    768: (8, 8, 4),
    1536: (8, 8, 8),
    3072: (16, 8, 8),
    6144: (16, 16, 8),
    12288: (16, 16, 16),
}
METHODS = {"pbc": "pbc", "open": "realspace", "slab": "slab"}
LARGEST = {"pbc": 12288, "open": 3072, "slab": 3072}
WEIGHTS = "affine -1.5"
TARGET_RATIO = {
    ("pbc", 1536): 1.25,
    ("pbc", 6144): 1.3,
    ("pbc", 12288): 1.3,
    ("open", 384): 1.3,
    ("open", 1536): 1.5,
    ("open", 3072): 1.6,
}
"""Converged energy and forces over those of the backbone."""
TARGET_EXPONENT, TARGET_MEMORY = 1.1, 0.1
TARGET_ERROR = {"energy": 1e-7, "forces": 1e-6, "density": 1e-6}


def system(boundary: str, n_atoms: int) -> Batch:
    """Water of a size, with a boundary."""
    atoms = water_box(SHAPES[n_atoms], pbc=[boundary != "open"] * 2 + [boundary == "pbc"])
    if boundary == "slab":
        cell = np.array(atoms.cell)
        cell[2, 2] += 20.0
        atoms.set_cell(cell)
    return atoms_batch([atoms], scf.R_MAX)


def backbone() -> nn.Module:
    """The local model alone."""
    options = {"type": "ScaleShiftMACE", "atomic_numbers": [1, 8], "atomic_energies": [0.0, 0.0]}
    model: nn.Module = build("model", {**options, "r_max": scf.R_MAX, "avg_num_neighbors": 20.0})
    return model


def make_task(
    name: str, boundary: str, batch: Batch, seed: int, weights: dict[str, Any]
) -> Callable[[], Any]:
    """Energy and forces of the backbone, of a model with a sum, or a training step with one."""
    if name == "backbone":
        return partial(predict, scf.frozen(backbone()), batch, outputs=("forces",))
    what, _, summation = name.partition(" ")
    options = {"pbc_handling": METHODS[boundary], "electrostatics": summation}
    model = scf.random_model(seed=seed, **{**scf.MODEL, **options})
    model.load_state_dict(weights)
    if what == "E+F":
        return partial(scf.run_scf, scf.frozen(model), batch, True)
    return partial(training_step, model, batch)


def training_step(model: nn.Module, batch: Batch) -> None:
    """Forward and backward of a loss on energy, forces and density, implicit derivatives."""
    model.zero_grad(set_to_none=True)
    mode = scf.make_mode("implicit")
    found = predict(model, batch, mode=mode, outputs=("forces",), create_graph=True)
    assert found.forces is not None
    assert found.density is not None
    loss = (found.energy / batch.n_atoms).square().sum() + found.forces.square().mean()
    (loss + found.density.square().mean()).backward()


def measure(arguments: argparse.Namespace, seed: int, boundary: str, n_atoms: int) -> Any:
    """Times of one system, in seconds and over the backbone; errors where direct sums fit."""
    batch, weights = system(boundary, n_atoms), scf.make_model(WEIGHTS, seed).state_dict()
    names = ["backbone", *(f"E+F {name}" for name in arguments.sums)]
    direct = n_atoms <= arguments.direct_max[boundary]
    if direct:
        names.append("E+F direct")
    if n_atoms <= arguments.training_max:
        names += [f"step {name}" for name in arguments.sums]
    tasks = {
        name: make_task(name, boundary, batch, seed, weights) for name in dict.fromkeys(names)
    }
    row: dict[str, Any] = {"boundary": boundary, "atoms": n_atoms}
    row["seconds"] = scf.medians(tasks, arguments.rounds)
    row["ratio"] = {
        name: value / row["seconds"]["backbone"] for name, value in row["seconds"].items()
    }
    if direct:
        row["errors"] = {
            name: deviation(tasks[f"E+F {name}"](), tasks["E+F direct"]())
            for name in arguments.sums
        }
    if arguments.memory:
        row["mib_per_atom"] = {
            name: scf.in_a_process(
                name, script=__file__, boundary=boundary, atoms=n_atoms, seed=seed
            )
            / n_atoms
            for name in tasks
            if not name.startswith("step")
        }
    return row


def deviation(found: Any, exact: Any) -> dict[str, float]:
    """Relative deviations; that of the energy over the energy that the density brings."""
    pairs = {name: (getattr(found, name), getattr(exact, name)) for name in TARGET_ERROR}
    scale = float(exact.electrostatic_energy.abs().sum())
    errors = {
        name: float((a - b).norm() / (scale if name == "energy" else b.norm()))
        for name, (a, b) in pairs.items()
    }
    return errors


def judge(rows: list[dict[str, Any]], sums: list[str]) -> list[dict[str, Any]]:
    """What was reached beside the targets."""
    found: list[dict[str, Any]] = []

    def add(what: str, value: float, target: float) -> None:
        found.append({"what": what, "value": value, "target": target, "met": value <= target})

    for row in rows:
        place, first = (row["boundary"], row["atoms"]), f"E+F {sums[0]}"
        if place in TARGET_RATIO:
            what = f"converged E+F over backbone, {place[0]}, {place[1]} atoms"
            add(what, row["ratio"][first], TARGET_RATIO[place])
        for name, errors in row.get("errors", {}).items():
            for what, value in errors.items():
                add(f"error of {what}, {name}, {place[0]}, {place[1]}", value, TARGET_ERROR[what])
        if place[1] == 12288 and "mib_per_atom" in row:
            add("extra MiB per atom, 12288", row["mib_per_atom"][first], TARGET_MEMORY)
    for boundary in METHODS:
        points = [row for row in rows if row["boundary"] == boundary and row["atoms"] >= 1536]
        if len(points) > 1:
            ends = [(row["atoms"], row["seconds"][f"E+F {sums[0]}"]) for row in points]
            exponent = log(ends[-1][1] / ends[0][1]) / log(ends[-1][0] / ends[0][0])
            add(f"exponent of time, {boundary}, from {ends[0][0]}", exponent, TARGET_EXPONENT)
    return found


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Microseconds per atom against atoms, one panel for each boundary."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    boundaries = list(dict.fromkeys(row["boundary"] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(boundaries), figsize=(4.2 * len(boundaries), 3.6), sharey=True, squeeze=False
    )
    for axis, boundary in zip(axes[0], boundaries, strict=True):
        chosen = [row for row in rows if row["boundary"] == boundary]
        for name in dict.fromkeys(name for row in chosen for name in row["seconds"]):
            points = [
                (row["atoms"], 1e6 * row["seconds"][name] / row["atoms"])
                for row in chosen
                if name in row["seconds"]
            ]
            axis.loglog(*zip(*points, strict=True), "o-", label=name)
        axis.set(title=boundary, xlabel="atoms")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel("CPU time per atom (us)")
    axes[0][-1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each thing measured."""
    lines = []
    for row in rows:
        for name, seconds in row["seconds"].items():
            errors = row.get("errors", {}).get(name.removeprefix("E+F "), {})
            line = {"boundary": row["boundary"], "atoms": row["atoms"], "what": name}
            line |= {"us/atom": 1e6 * seconds / row["atoms"], "ratio": row["ratio"][name]}
            line["MiB/atom"] = row.get("mib_per_atom", {}).get(name, "")
            lines.append(line | {what: errors.get(what, "") for what in TARGET_ERROR})
    return lines


def worker(request: dict[str, Any]) -> None:
    """Print the memory that a task takes, after a small one that loads all libraries."""
    name, boundary, seed = request["task"], request["boundary"], request["seed"]
    weights = scf.make_model(WEIGHTS, seed).state_dict()
    make_task(name, boundary, system(boundary, 96), seed, weights)()
    task = make_task(name, boundary, system(boundary, request["atoms"]), seed, weights)
    scf.forget_peak()
    before = scf.resident_mib()
    task()
    print(json.dumps({"mib": scf.peak_mib() - before}))


def parse() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def sizes(text: str) -> list[int]:
        return [int(item) for item in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--boundaries", type=words, default=list(METHODS))
    parser.add_argument("--atoms", type=sizes, default=list(SHAPES), help=f"of {list(SHAPES)}")
    parser.add_argument("--sums", type=words, default=["auto"], help="the first is judged")
    parser.add_argument("--direct-max", type=int, help="largest direct sum (pbc 3072, else 768)")
    parser.add_argument("--training-max", type=int, default=384, help="largest training step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="96 and 384 atoms, one round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    most = arguments.direct_max
    arguments.direct_max = (
        {"pbc": 3072, "open": 768, "slab": 768} if most is None else dict.fromkeys(METHODS, most)
    )
    if arguments.quick:
        arguments.atoms, arguments.rounds, arguments.training_max = [96, 384], 1, 96
    return arguments


def main() -> int:
    arguments = parse()
    torch.set_num_threads(1)
    import_builtin_parts()
    if arguments.worker:
        worker(json.loads(arguments.worker))
        return 0
    seed, rows = scf.pick_seed(WEIGHTS), []
    for boundary in arguments.boundaries:
        for n_atoms in arguments.atoms:
            if n_atoms <= LARGEST[boundary]:
                rows.append(measure(arguments, seed, boundary, n_atoms))
                print(scf.table(flat(rows[-1:]), list(flat(rows[-1:])[0])), flush=True)
    targets = judge(rows, arguments.sums)
    print("\n" + scf.table(flat(rows), list(flat(rows)[0])))
    print("\n" + scf.table(targets, ["what", "value", "target", "met"]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "targets": targets}, indent=1))
    if arguments.plot:
        plot(rows, arguments.plot)
    return 0 if all(row["met"] for row in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
