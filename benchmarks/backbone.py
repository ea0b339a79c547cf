"""Energy and forces of a MACE model: fpmace against mace-torch 0.3.16, same inputs and weights.

    python benchmarks/backbone.py [--json FILE] [--repeats N] [--models NAME ...] [--atoms N ...]

The reference gets a virtual environment of its own (benchmarks/.venv-mace, made on first use,
about 1.5 GB) because it pins an old e3nn; it runs there as a subprocess. One thread, process CPU
time, medians over alternating rounds. The rows "step" are a training step (energy and forces in
the loss, gradients of all weights). Kernels are "torch", "c" (compiled) and "tables" ("c" with
radial tables, for energy and forces). "MPA-0" and "MH-1" have the architecture of these published
models, with random weights. Exits 1 if the numbers disagree or a ratio is below its target.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from fpmace.calculators.inference import Inference
from fpmace.conversion.weights import reference_name
from fpmace.data.batch import Batch
from fpmace.data.neighborhood import neighborhood
from fpmace.models.mace import ScaleShiftMACE
from fpmace.testing.systems import structure_batch

HERE = Path(__file__).parent
VERSION = "0.3.16"
VENV = HERE / ".venv-mace"
BOXES = {96: (4, 4, 2), 384: (8, 4, 4)}
DTYPES = ("float64", "float32")
KERNELS = {"E+F": ("torch", "c", "tables"), "step": ("torch", "c")}
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
TABLE_TOLERANCE = {"float64": 1e-7, "float32": 1e-4}
CONFIG: dict[str, Any] = {
    "r_max": 5.0,
    "num_bessel": 8,
    "num_polynomial_cutoff": 5,
    "max_ell": 3,
    "num_interactions": 2,
    "hidden_irreps": "32x0e+32x1o",
    "MLP_irreps": "16x0e",
    "avg_num_neighbors": 54.0,
    "atomic_numbers": [1, 8],
    "atomic_energies": [0.5, -0.7],
    "correlation": 3,
    "gate": "silu",
    "radial_MLP": [64, 64, 64],
    "radial_type": "bessel",
    "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": 0.0,
}
_ELEMENTS = [*range(1, 84), *range(89, 95)]
_PUBLISHED: dict[str, Any] = {
    **CONFIG,
    "r_max": 6.0,
    "num_bessel": 10,
    "atomic_numbers": _ELEMENTS,
    "atomic_energies": [0.01 * z for z in _ELEMENTS],
    "distance_transform": "Agnesi",
    "pair_repulsion": "ZBL",
}
MODELS: dict[str, dict[str, Any]] = {
    "MACE": CONFIG,
    "MPA-0": {
        **_PUBLISHED,
        "hidden_irreps": "128x0e+128x1o",
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    },
    "MH-1": {
        **_PUBLISHED,
        "hidden_irreps": "512x0e+512x1o",
        "edge_irreps": "128x0e+128x1o",
        "use_edge_irreps_first": True,
        "use_agnostic_product": True,
        "apply_cutoff": False,
        "interaction_cls_first": "RealAgnosticResidualNonLinearInteractionBlock",
        "interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock",
    },
}
TARGETS = {"MACE": 1.5, "MPA-0": 3.0, "MH-1": 3.0}
"""Ratios of energy and forces."""
COMPILED_TARGETS = {
    ("E+F", "tables"): {"float64": 12.0, "float32": 10.0},
    ("step", "c"): {"float64": 9.0, "float32": 7.0},
}
"""Ratios of "MACE" at 384 atoms."""


def water_box(shape: tuple[int, int, int], seed: int = 7) -> dict[str, np.ndarray]:
    """Randomly rotated water molecules on a 3.1 Angstrom grid (1.00 g/cm3), periodic."""
    rng = np.random.default_rng(seed)
    angle = np.deg2rad(104.52)
    molecule = 0.9572 * np.array(
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [np.cos(angle), np.sin(angle), 0.0]]
    )
    positions = []
    for point in np.ndindex(*shape):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        positions.append(3.1 * np.array(point) + molecule @ rotation.T)
    return {
        "positions": np.concatenate(positions),
        "numbers": np.tile([8, 1, 1], len(positions)),
        "cell": np.diag(3.1 * np.array(shape)),
        "pbc": np.array([True, True, True]),
    }


def reference_python() -> Path:
    """Interpreter of the environment that holds mace-torch; made on first use."""
    python = VENV / "bin" / "python"
    probe = [str(python), "-c", f"import mace; assert mace.__version__ == '{VERSION}'"]
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    if python.exists() and subprocess.run(probe, env=environment, check=False).returncode == 0:
        return python
    print(f"making {VENV} with mace-torch {VERSION} (once)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    for packages in (["torch==2.13.0"], [f"mace-torch=={VERSION}"]):
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return python


class Reference:
    """The peer in its own process: one line of JSON in, one line out."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [
                str(reference_python()),
                "-W",
                "ignore",
                str(HERE / "reference_mace.py"),
                str(folder),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        )

    def run(self, case: str, dtype: str, task: str, repeats: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"case": case, "dtype": dtype, "task": task, "repeats": repeats}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the reference process ended early; see its messages above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def energy_and_forces(model: ScaleShiftMACE, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies [n_graphs] in eV and forces [n_atoms, 3] in eV/Angstrom."""
    positions = batch.positions.detach().requires_grad_(True)
    energy = model(model.geometry(replace(batch, positions=positions))).energy
    (gradient,) = torch.autograd.grad(energy.sum(), positions)
    return energy.detach(), -gradient


def training_step(model: ScaleShiftMACE, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Backward pass of ``sum E^2 + sum F^2``; returns energies and forces."""
    positions = batch.positions.detach().requires_grad_(True)
    energy = model(model.geometry(replace(batch, positions=positions))).energy
    (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    model.zero_grad()
    (energy.square().sum() + gradient.square().sum()).backward()
    return energy.detach(), -gradient.detach()


TASKS = {"E+F": energy_and_forces, "step": training_step}


class Ours:
    """fpmace in this process."""

    def __init__(self, model: ScaleShiftMACE, boxes: dict[str, dict[str, np.ndarray]]) -> None:
        self.model = model
        self.models: dict[tuple[str, str], ScaleShiftMACE] = {}
        self.batches = {name: structure_batch([box], model.r_max) for name, box in boxes.items()}

    def prepared(self, kernels: str, dtype: str) -> ScaleShiftMACE:
        """The model in a precision with its kernels; made once."""
        if (kernels, dtype) in self.models:
            return self.models[kernels, dtype]
        model = copy.deepcopy(self.model).to(getattr(torch, dtype))
        tables = kernels == "tables"
        Inference(kernels="c" if tables else kernels, radial_tables=tables).apply(model)
        self.models[kernels, dtype] = model
        return model

    def run(self, kernels: str, case: str, dtype: str, task: str, repeats: int) -> dict[str, Any]:
        model = self.prepared(kernels, dtype).requires_grad_(task == "step")
        batch = self.batches[case].to(dtype=getattr(torch, dtype))
        seconds = []
        for _ in range(repeats):
            start = time.process_time()
            energy, forces = TASKS[task](model, batch)
            seconds.append(time.process_time() - start)
        return {"seconds": seconds, "energy": float(energy[0]), "forces": forces.tolist()}


def write_inputs(
    folder: Path, boxes: dict[str, dict[str, np.ndarray]], model: Any, config: dict[str, Any]
) -> None:
    """Put structures with edges, weights and settings where the reference finds them."""
    for name, box in boxes.items():
        edges, shifts = neighborhood(box["positions"], box["cell"], box["pbc"], model.r_max)
        np.savez(folder / f"{name}.npz", edge_index=edges, unit_shifts=shifts, **box)
    state = {reference_name(key): value.numpy() for key, value in model.state_dict().items()}
    radii = [name for name in state if name.endswith("covalent_radii")]  # the same in both
    np.savez(folder / "weights.npz", **{n: v for n, v in state.items() if n not in radii})
    (folder / "config.json").write_text(json.dumps(config))


def rows_of(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model."""
    torch.manual_seed(0)
    published = name != "MACE"
    model = ScaleShiftMACE(**MODELS[name])
    shapes = {n: BOXES[n] for n in args.atoms if n == 96 or not published}
    boxes = {str(n_atoms): water_box(shape) for n_atoms, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder, boxes, model, MODELS[name])
        reference, ours = Reference(folder), Ours(model, boxes)
        found = [
            {"model": name, **row}
            for dtype in DTYPES
            for task in (["E+F"] if published else TASKS)
            for case in boxes
            for row in compare(reference, ours, case, dtype, task, args, published)
        ]
        reference.close()
    return found


def compare(
    reference: Reference,
    ours: Ours,
    case: str,
    dtype: str,
    task: str,
    args: Any,
    published: bool,
) -> list[dict[str, Any]]:
    """Alternate the two on one case and return its rows of the table."""
    # One table for each of the 7,921 pairs of 89 elements is too much.
    names = KERNELS[task][:2] if published else KERNELS[task]
    for name in names:
        ours.run(name, case, dtype, task, 2)
    reference.run(case, dtype, task, 2)
    times: dict[str, list[float]] = {name: [] for name in ("reference", *names)}
    mine = {}
    for _ in range(args.rounds):
        theirs = reference.run(case, dtype, task, args.repeats)
        times["reference"] += theirs["seconds"]
        for name in names:
            mine[name] = ours.run(name, case, dtype, task, args.repeats)
            times[name] += mine[name]["seconds"]
    size = {"edges": int(ours.batches[case].edge_index.shape[1])}
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return [
        size | {"kernels": name} | row(case, dtype, task, theirs, mine[name], seconds, name)
        for name in names
    ]


def row(
    case: str,
    dtype: str,
    task: str,
    theirs: dict[str, Any],
    mine: dict[str, Any],
    seconds: dict[str, float],
    name: str,
) -> dict[str, Any]:
    """One row of the table."""
    forces = np.array(theirs["forces"])
    scale = max(1.0, float(np.abs(forces).max()))  # eV/Angstrom
    reference_s, fpmace_s = seconds["reference"], seconds[name]
    return {
        "atoms": int(case),
        "dtype": dtype,
        "task": task,
        "reference_s": reference_s,
        "fpmace_s": fpmace_s,
        "ratio": reference_s / fpmace_s,
        "energy_error_per_atom": abs(theirs["energy"] - mine["energy"]) / int(case),
        "force_error": float(np.abs(forces - np.array(mine["forces"])).max()) / scale,
    }


def target(row: dict[str, Any]) -> float:
    """The ratio that a row is to reach."""
    compiled = COMPILED_TARGETS.get((row["task"], row["kernels"]))
    if compiled is not None and row["model"] == "MACE" and row["atoms"] == 384:
        return compiled[row["dtype"]]
    return TARGETS[row["model"]] if row["task"] == "E+F" else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--repeats", type=int, default=3, help="evaluations per round")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds per case")
    parser.add_argument("--atoms", nargs="+", type=int, choices=[*BOXES], default=[*BOXES])
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [item for name in args.models for item in rows_of(name, args)]
    print(
        "model  task  kernels  atoms  dtype    edges  mace-torch s  fpmace s  ratio  dE/atom eV  "
        "dF (relative)"
    )
    for row in rows:
        print(
            f"{row['model']:5s}  {row['task']:4s}  {row['kernels']:7s}  "
            f"{row['atoms']:5d}  {row['dtype']}  "
            f"{row['edges']:5d}  "
            f"{row['reference_s']:12.4f}  "
            f"{row['fpmace_s']:8.4f}  {row['ratio']:5.2f}  {row['energy_error_per_atom']:10.1e}  "
            f"{row['force_error']:.1e}"
        )
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))
    agree = all(
        max(row["force_error"], row["energy_error_per_atom"])
        < (TABLE_TOLERANCE if row["kernels"] == "tables" else TOLERANCE)[row["dtype"]]
        for row in rows
    )
    fast = all(row["ratio"] >= target(row) for row in rows)
    print(f"numbers agree: {agree}; as much faster as wanted everywhere: {fast}")
    return 0 if agree and fast else 1


if __name__ == "__main__":
    sys.exit(main())
