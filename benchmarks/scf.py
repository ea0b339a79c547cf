"""Self-consistency: map evaluations, time and memory of the solvers, cost of the training modes.

    python benchmarks/scf.py [--json FILE] [--quick]

Water boxes of 24 to 384 atoms (1 g/cm^3, periodic), a charged cluster and a slab in a field;
random but fixed weights, float64, one thread. Times are process CPU time, medians over rounds
that alternate between the things compared; memory is the peak of a process of its own less what
it held before the first step. Exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.parts import import_builtin_parts
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.scf.state import ScfResult
from fpmace.testing.systems import atoms_batch, random_model, scale_response, water_box

R_MAX = 5.0
BOXES = {24: (2, 2, 2), 96: (4, 4, 2), 192: (4, 4, 4), 384: (8, 4, 4)}
MODEL: dict[str, Any] = {
    "pbc_handling": "pbc",
    "kspace_cutoff_factor": 1.25,
    "include_electrostatic_self_interaction": True,
}
MLP_RULE = {"type": "OneBodyVariableUpdate", "nonlinearity_cls": "MLPNonLinearity"}
WEIGHTS: dict[str, tuple[float, dict[str, Any]]] = {
    "affine -1.5": (-1.5, {}),
    "affine -4": (-4.0, {}),
    "MLP -1.5": (-1.5, {"fixedpoint_update_config": MLP_RULE}),
}
PLAIN = {"type": "anderson", "preconditioner": "none"}
SOLVERS: dict[str, dict[str, Any]] = {
    "linear 0.3": {"solver": "linear", "mixing_parameter": 0.3},
    "linear 0.2": {"solver": "linear", "mixing_parameter": 0.2},
    "anderson, plain": {"solver": PLAIN},
    "anderson": {"solver": "anderson"},
    "newton_krylov": {"solver": "newton_krylov"},
    "affine": {"solver": "affine"},
    "auto": {"solver": "auto"},
}
MODES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "direct": ({"type": "direct"}, None),
    "unroll_scf, 10 steps": (
        {"type": "unroll_scf"},
        {"num_scf_steps": 10, "mixing_parameter": 0.3, "initial_density": "from_data"},
    ),
    "implicit": ({"type": "implicit"}, {}),
    "implicit, order 1": ({"type": "implicit", "order": 1}, {}),
    "linearize_solve": ({"type": "linearize_solve"}, {}),
}
CONVEX: dict[str, dict[str, Any]] = {
    "passive": {"type": "EnergyFunctionalSCF", "use_linear_local_charges": True},
    "MACEQEq": {"type": "MACEQEq", "train_hardness": True},
}
"""Models whose density minimises a convex energy, random weights."""
TARGET_CONVEX = 1.2
TARGET_EVALUATIONS = {("affine -1.5", 24): 10, ("affine -1.5", 96): 10, ("affine -4", 96): 15}
TARGET_EVALUATIONS |= {("MLP -1.5", 96): 15, ("affine -1.5", 384): 15}
TARGET_RATIO = {24: 1.5, 96: 1.25, 192: 1.25}
TARGET_TIME, TARGET_MEMORY = 1.5, 1.2


def box(n_atoms: int) -> Batch:
    """A periodic water box."""
    return atoms_batch([water_box(BOXES[n_atoms])], R_MAX)


def charged_cluster() -> Batch:
    """Eight molecules, one electron short, open boundaries."""
    atoms = water_box((2, 2, 2), pbc=False)
    atoms.info["total_charge"] = 1.0
    return atoms_batch([atoms], R_MAX)


def slab_in_field() -> Batch:
    """32 molecules, two layers, 20 Angstrom of vacuum, a field of 0.02 V/Angstrom along z."""
    atoms = water_box((4, 4, 2), pbc=[True, True, False])
    cell = np.array(atoms.cell)
    cell[2, 2] += 20.0
    atoms.set_cell(cell)
    atoms.info["external_field"] = (0.0, 0.0, 0.02)
    return atoms_batch([atoms], R_MAX)


def clusters(pbc: bool, count: int = 4) -> Batch:
    """Clusters of 9, 12, 18 and 24 atoms in cubes of 20 Angstrom, with reference multipoles."""
    structures: list[Atoms] = []
    for index, shape in enumerate([(3, 1, 1), (2, 2, 1), (3, 2, 1), (2, 2, 2)][:count]):
        atoms = water_box(shape, seed=index, pbc=pbc)
        atoms.set_cell([20.0] * 3)
        structures.append(atoms)
    batch = atoms_batch(structures, R_MAX)
    generator = torch.Generator().manual_seed(0)
    density = 0.1 * torch.randn(batch.n_atoms, 4, generator=generator, dtype=torch.float64)
    return replace(batch, labels={"atomic_multipoles": density})


def make_model(weights: str, seed: int, **options: Any) -> FixedPointCore:
    """A model with the response of a set of weights on the 96-atom box."""
    eigenvalue, rule = WEIGHTS[weights]
    model = random_model(seed=seed, **{**MODEL, **rule})
    scale_response(model, box(96), eigenvalue)
    if not options:
        return model
    other = random_model(seed=seed, **{**MODEL, **rule, **options})
    other.load_state_dict(model.state_dict())
    return other


def convex_model(name: str, **options: Any) -> nn.Module:
    """One of :data:`CONVEX`."""
    torch.manual_seed(0)
    model: nn.Module = build(
        "model",
        {
            **CONVEX[name],
            "atomic_numbers": [1, 8],
            "atomic_energies": [0.0, 0.0],
            "r_max": R_MAX,
            "avg_num_neighbors": 20.0,
            "pbc_handling": "pbc",
            "kspace_cutoff_factor": MODEL["kspace_cutoff_factor"],
            **options,
        },
    )
    return model


def frozen(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def run_scf(model: nn.Module, batch: Batch, forces: bool = False, **scf: Any) -> Observables:
    options = ScfOptions(**{"scf_tolerance": 1e-6, "on_failure": "ignore", **scf})
    mode = build("training_mode", "scf", scf=options)
    return predict(model, batch, mode=mode, outputs=("forces",) if forces else ("energy",))


def result_of(found: Observables) -> ScfResult:
    assert found.scf is not None
    return found.scf


def pick_seed(weights: str) -> int:
    """The first seed with which linear mixing 0.2 converges on 96 atoms."""
    for seed in range(100):
        model = frozen(make_model(weights, seed))
        if result_of(run_scf(model, box(96), **SOLVERS["linear 0.2"])).converged.all():
            return seed
    raise RuntimeError(f"no seed below 100 gives a solution for {weights}")


def medians(tasks: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each task; rounds alternate between them, after a first of each."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            if turn > 0:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def count_evaluations(seeds: dict[str, int], quick: bool) -> list[dict[str, Any]]:
    """Map evaluations of each solver, in boxes, a charged cluster and a slab in a field."""
    rows = []
    for weights, seed in seeds.items():
        affine = "affine" in weights
        model = frozen(make_model(weights, seed))
        systems = [(str(n), model, box(n)) for n in BOXES if n <= (96 if quick else 384)]
        if weights != "affine -4":
            open_model = frozen(make_model(weights, seed, pbc_handling="realspace"))
            slab_model = frozen(make_model(weights, seed, pbc_handling="slab"))
            systems.append(("cluster, charge 1", open_model, charged_cluster()))
            systems.append(("slab in a field", slab_model, slab_in_field()))
        for system, its_model, batch in systems:
            for name, options in SOLVERS.items():
                if name == "affine" and not affine:
                    continue
                start = time.process_time()
                found = run_scf(its_model, batch, **options)
                seconds = time.process_time() - start
                result = result_of(found)
                rows.append(
                    {
                        "weights": weights,
                        "system": system,
                        "solver": name,
                        "converged": bool(result.converged.all()),
                        "map_evaluations": int(result.n_steps.max()),
                        "products": result.n_matvecs,
                        "seconds": seconds,
                    }
                )
    return rows


def time_inference(seed: int, quick: bool) -> list[dict[str, Any]]:
    """Energy and forces, converged, over those of the same backbone without a density."""
    model = frozen(make_model("affine -1.5", seed))
    convex = {name: frozen(convex_model(name)).eval() for name in CONVEX}
    plain = frozen(
        build(
            "model",
            {
                "type": "ScaleShiftMACE",
                "atomic_numbers": [1, 8],
                "atomic_energies": [0.0, 0.0],
                "r_max": R_MAX,
                "avg_num_neighbors": 20.0,
            },
        )
    )
    rows = []
    for n_atoms in BOXES:
        if quick and n_atoms > 96:
            continue
        batch = box(n_atoms)
        tasks: dict[str, Callable[[], Any]] = {
            "backbone": partial(predict, plain, batch, outputs=("forces",))
        }
        for name, options in SOLVERS.items():
            if name in ("linear 0.3", "linear 0.2") and n_atoms == 384:
                continue
            tasks[name] = partial(run_scf, model, batch, True, **options)
        for name, other in convex.items():
            tasks[name] = partial(run_scf, other, batch, True)
        rounds = 5 if quick else {24: 15, 96: 11, 192: 7, 384: 5}[n_atoms]
        found = medians(tasks, rounds)
        rows += [
            {
                "atoms": n_atoms,
                "solver": name,
                "seconds": seconds,
                "ratio": seconds / found["backbone"],
            }
            for name, seconds in found.items()
        ]
    return rows


def training_step(model: nn.Module, batch: Batch, mode: Any) -> Observables:
    """Forward and backward of 10 E/atom + 100 F + 100 multipoles."""
    model.zero_grad(set_to_none=True)
    found = predict(model, batch, mode=mode, outputs=("forces",), create_graph=True)
    assert found.forces is not None
    assert found.density is not None
    loss = 10.0 * (found.energy / batch.atoms_per_graph).square().mean()
    loss = loss + 100.0 * found.forces.square().mean()
    labels = batch.labels["atomic_multipoles"][:, : found.density.shape[1]]
    error: Tensor = found.density - labels
    (loss + 100.0 * error.square().mean()).backward()
    return found


def make_mode(name: str) -> Any:
    mode, scf = MODES[name]
    if scf is None:
        return build("training_mode", mode)
    return build("training_mode", mode, scf=ScfOptions(**{"on_failure": "ignore", **scf}))


def time_training(seed: int, quick: bool) -> list[dict[str, Any]]:
    """One training step of each mode, over that of direct."""
    rows = []
    for boundary in ("pbc", "realspace"):
        model = make_model("affine -1.5", seed, pbc_handling=boundary)
        batch = clusters(boundary == "pbc")
        modes = {name: make_mode(name) for name in MODES}
        tasks: dict[str, Callable[[], Any]] = {
            name: partial(training_step, model, batch, mode) for name, mode in modes.items()
        }
        for name in CONVEX:
            other = convex_model(name, pbc_handling=boundary).train()
            for mode in ("direct", "implicit"):
                tasks[f"{name}, {mode}"] = partial(training_step, other, batch, modes[mode])
        found = medians(tasks, 3 if quick else 9)
        memory = {
            name: in_a_process("training", mode=name, boundary=boundary, seed=seed)
            for name in MODES
        }
        rows += [
            {
                "boundary": boundary,
                "mode": name,
                "seconds": found[name],
                "time_ratio": found[name] / found["direct"],
                "mib": memory[name],
                "memory_ratio": memory[name] / memory["direct"],
            }
            for name in MODES
        ]
        rows += [
            {
                "boundary": boundary,
                "mode": f"{name}, {mode}",
                "seconds": found[f"{name}, {mode}"],
                "time_ratio": found[f"{name}, {mode}"] / found[f"{name}, direct"],
            }
            for name in CONVEX
            for mode in ("direct", "implicit")
        ]
    return rows


def memory_of_steps(seed: int) -> list[dict[str, Any]]:
    """Peak memory of energy and forces against the number of passes of linear mixing."""
    return [
        {
            "mode": mode,
            "steps": steps,
            "mib": in_a_process("steps", mode=mode, steps=steps, seed=seed, atoms=96),
        }
        for mode in ("scf", "unroll_scf")
        for steps in (10, 40, 100)
    ]


def memory_of_inference(seed: int, quick: bool) -> list[dict[str, Any]]:
    """Peak memory of energy and forces: backbone alone and each solver."""
    names = ["backbone", "linear 0.2", "anderson", "auto"]
    return [
        {
            "atoms": n,
            "solver": name,
            "mib": in_a_process("inference", solver=name, atoms=n, seed=seed),
        }
        for n in BOXES
        if n <= (96 if quick else 384)
        for name in names
        if not (name == "linear 0.2" and n == 384)
    ]


def in_a_process(task: str, *, script: str = __file__, **arguments: Any) -> float:
    """MiB that a task of a script needs at its peak, measured in a process of its own."""
    command = [sys.executable, script, "--worker", json.dumps({"task": task, **arguments})]
    # Freed tensors go back to the system at once, so that the peak is that of tensors alive.
    settings = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **settings}
    )
    if done.returncode != 0:
        raise RuntimeError(f"{task} {arguments} failed: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["mib"])


def worker(request: dict[str, Any]) -> None:
    """Run one task and print the memory it took, after a small one that loads all libraries."""
    prepare(request, small=True)()
    task = prepare(request)
    forget_peak()
    before = resident_mib()
    for _ in range(2):
        task()
    print(json.dumps({"mib": peak_mib() - before}))


def prepare(request: dict[str, Any], small: bool = False) -> Callable[[], Any]:
    seed = request["seed"]
    if request["task"] == "training":
        model: nn.Module = make_model("affine -1.5", seed, pbc_handling=request["boundary"])
        batch = clusters(request["boundary"] == "pbc", 1 if small else 4)
        return partial(training_step, model, batch, make_mode(request["mode"]))
    batch = box(24 if small else request["atoms"])
    if request["task"] == "inference":
        if request["solver"] == "backbone":
            options = {"type": "ScaleShiftMACE", "atomic_numbers": [1, 8]}
            options |= {"atomic_energies": [0.0, 0.0], "r_max": R_MAX, "avg_num_neighbors": 20.0}
            return partial(predict, frozen(build("model", options)), batch, outputs=("forces",))
        model = frozen(make_model("affine -1.5", seed))
        return partial(run_scf, model, batch, True, **SOLVERS[request["solver"]])
    model = frozen(make_model("affine -1.5", seed))
    scf = ScfOptions(
        solver="linear",
        mixing_parameter=0.2,
        num_scf_steps=request["steps"] + 1,
        scf_tolerance=1e-14,
        on_failure="ignore",
    )
    mode = build("training_mode", request["mode"], scf=scf)
    return partial(predict, model, batch, mode=mode, outputs=("forces",))


def forget_peak() -> None:
    """Start the kernel's record of the largest resident set afresh, where that is allowed."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Largest resident set of this process since :func:`forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def judge(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Set what was reached beside the targets."""
    rows: list[dict[str, Any]] = []

    def add(what: str, value: float, target: float) -> None:
        rows.append({"what": what, "value": value, "target": target, "met": value <= target})

    counts = {(r["weights"], r["system"], r["solver"]): r for r in report["evaluations"]}
    for (weights, n_atoms), target in TARGET_EVALUATIONS.items():
        row = counts.get((weights, str(n_atoms), "anderson"))
        if row is not None:
            value = row["map_evaluations"] if row["converged"] else float("inf")
            add(f"map evaluations, anderson, {weights}, {n_atoms} atoms", value, target)
    for n_atoms in (24, 96):
        row = counts.get(("affine -1.5", str(n_atoms), "affine"))
        if row is not None:
            what = f"products with J, affine solve, weights -1.5, {n_atoms} atoms"
            add(what, row["products"], TARGET_EVALUATIONS["affine -1.5", n_atoms])
    for row in report["inference"]:
        if row["solver"] == "auto" and row["atoms"] in TARGET_RATIO:
            what = f"converged E+F over backbone E+F, {row['atoms']} atoms"
            add(what, row["ratio"], TARGET_RATIO[row["atoms"]])
    for row in report["inference"]:
        if row["solver"] in CONVEX and row["atoms"] in (96, 384):
            what = f"the same, {row['solver']}, {row['atoms']} atoms"
            add(what, row["ratio"], TARGET_CONVEX)
    for row in report["training"]:
        if row["mode"] in [f"{name}, implicit" for name in CONVEX]:
            what = f"{row['mode']} step over direct, {row['boundary']}"
            add(what, row["time_ratio"], TARGET_CONVEX)
        if row["mode"] == "implicit":
            add(f"implicit step over direct, time, {row['boundary']}", row["time_ratio"], 1.5)
            add(f"the same, extra memory, {row['boundary']}", row["memory_ratio"], 1.2)
    flat = [row["mib"] for row in report["memory_of_steps"] if row["mode"] == "scf"]
    if flat:
        add("peak memory, most over fewest steps", max(flat) / min(flat), 1.1)
    return rows


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Rows as a Markdown table."""
    cells = [columns] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return str(value)


def evaluation_table(rows: list[dict[str, Any]]) -> str:
    """Solvers across, systems down; "12 + 9" is 12 map evaluations and 9 products with J."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault((row["weights"], row["system"]), {})
        line |= {"weights": row["weights"], "system": row["system"]}
        text = str(row["map_evaluations"]) if row["converged"] else "fails"
        line[row["solver"]] = text + (f" + {row['products']}" if row["products"] else "")
    for line in lines.values():
        line.setdefault("affine", "-")
    return table(list(lines.values()), ["weights", "system", *SOLVERS])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    parser.add_argument("--quick", action="store_true", help="24 and 96 atoms, fewer rounds")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import_builtin_parts()
    if arguments.worker:
        worker(json.loads(arguments.worker))
        return 0
    quick = arguments.quick
    seeds = {weights: pick_seed(weights) for weights in WEIGHTS}
    report: dict[str, Any] = {"seeds": seeds, "evaluations": count_evaluations(seeds, quick)}
    print(f"Seeds {seeds}\n\nMap evaluations to a density change of 1e-6 (+ products with J)\n")
    print(evaluation_table(report["evaluations"]))
    seed = seeds["affine -1.5"]
    report["inference"] = time_inference(seed, quick)
    print("\nEnergy and forces, seconds and ratio to the backbone\n")
    print(table(report["inference"], ["atoms", "solver", "seconds", "ratio"]))
    report["inference_memory"] = memory_of_inference(seed, quick)
    print("\nPeak memory of energy and forces\n")
    print(table(report["inference_memory"], ["atoms", "solver", "mib"]))
    report["training"] = time_training(seed, quick)
    print("\nOne training step, 63 atoms in four clusters\n")
    columns = ["boundary", "mode", "seconds", "time_ratio", "mib", "memory_ratio"]
    print(table(report["training"], columns))
    report["memory_of_steps"] = memory_of_steps(seed)
    print("\nPeak memory of energy and forces, 96 atoms, linear mixing made to take n steps\n")
    print(table(report["memory_of_steps"], ["mode", "steps", "mib"]))
    report["targets"] = judge(report)
    print("\nTargets\n")
    print(table(report["targets"], ["what", "value", "target", "met"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0 if all(row["met"] for row in report["targets"]) else 1


if __name__ == "__main__":
    sys.exit(main())
