"""Small trainings that any number of processes run to the same end; run by torchrun, or alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.io import write

from fpmace.config.load import load_config
from fpmace.distributed.join import joined
from fpmace.distributed.process import ALONE, Process
from fpmace.training.checkpoint import Checkpoint
from fpmace.training.run import run_training

SCF = {"initial_density": "from_data", "initial_fermi_level": "from_data"}
LOOSE = {"solver": "linear", "mixing_parameter": 0.5, "scf_tolerance": 5e-3}
LOSSES = {"atomic_multipoles": 100.0, "energy_per_atom": 10.0, "forces": 100.0, "dipole": 1.0}
STAGES = {
    "implicit": (
        {
            "mode": "implicit",
            "scf": {**SCF, "num_scf_steps": 12, "charge_tolerance": 0.05, **LOOSE},
        },
        {**LOSSES, "field_pairs": 1.0},
    ),
    "direct": ({"mode": "direct", "density_noise": 0.01}, {**LOSSES, "response_bound": 1.0}),
    "unroll_scf": (
        {
            "mode": "unroll_scf",
            "scf": {**SCF, "num_scf_steps": 3, "solver": "linear", "mixing_parameter": 0.3},
        },
        LOSSES,
    ),
    "linearize_solve": ({"mode": "linearize_solve"}, {**LOSSES, "polarizability": 1.0}),
}


def molecule(rng: np.random.Generator, index: int) -> Atoms:
    """Water or hydroxide; every third has no forces, every fourth no energy."""
    positions = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    n = 3 if index % 3 else 2
    atoms = Atoms("OHH"[:n], (positions + 0.05 * rng.normal(size=(3, 3)))[:n])
    multipoles = 0.05 * rng.normal(size=(n, 4))
    multipoles[:, 0] -= multipoles[:, 0].mean()
    atoms.arrays["REF_atomic_multipoles"] = multipoles
    if index % 3 != 2:
        atoms.arrays["REF_forces"] = rng.normal(size=(n, 3))
    if index % 4 != 3:
        atoms.info["REF_energy"] = -100 + rng.normal()
    atoms.info["REF_dipole"] = rng.normal(size=3)
    atoms.info["config_dipole_weight"] = np.ones(3)
    atoms.info["REF_polarizability"] = np.eye(3) + 0.1 * rng.normal(size=(3, 3))
    atoms.info["REF_fermi_level"] = -5 + rng.normal()
    atoms.info["total_charge"] = 0.0
    return atoms


def write_data(folder: Path) -> None:
    """Ten molecules to train on, two of them twice in different fields, and seven to validate."""
    rng = np.random.default_rng(4)
    for name, count in (("train", 10), ("valid", 7)):
        frames = [molecule(rng, index) for index in range(count)]
        for number in (1, 2):
            first, second = frames[number], frames[number + 3]
            second.positions = first.positions
            second.info["external_field"] = [0.0, 0.1 * number, 0.0]
            first.info["pair_id"] = second.info["pair_id"] = number
        write(folder / f"{name}.xyz", frames, format="extxyz")


def config(folder: Path, out: str, **changes: object) -> list[str]:
    """Command line of a training that writes to ``folder/out``, two epochs in each mode."""
    schedule = {
        number: {
            "name": name,
            "start": 2 * number,
            "end": 2 * number + 1,
            "loss": losses,
            "fixed_point_training_options": mode,
        }
        for number, (name, (mode, losses)) in enumerate(STAGES.items())
    }
    values = {
        "name": "toy",
        "work_dir": str(folder / out),
        "train_file": str(folder / "train.xyz"),
        "valid_file": str(folder / "valid.xyz"),
        "r_max": 3.0,
        "hidden_irreps": "4x0e+4x1o",
        "max_ell": 1,
        "correlation": 2,
        "MLP_irreps": "4x0e",
        "radial_MLP": [8],
        "use_linear_local_charges": True,
        "electrostatic_pbc_method": "realspace",
        "error_table": "EnergyDensityDipoleRMSE",
        "eval_interval": 2,
        "train_schedule": schedule,
        **changes,
    }
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["--config", str(path)]


def train(folder: Path, out: str, process: Process = ALONE, **changes: object) -> None:
    """Train in all modes."""
    argv = process.from_first(lambda: config(folder, out, **changes))
    run_training(load_config(argv), process)


def numbers(folder: Path) -> dict[str, torch.Tensor]:
    """What runs share: losses and errors of each epoch, weights, averages, moments."""
    found: dict[str, torch.Tensor] = {}
    for line in (folder / "toy_metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        del record["seconds"]
        _flatten(record, f"epoch {record['epoch']}", found)
    _flatten(json.loads((folder / "toy_results.json").read_text()), "results", found)
    last = max((folder / "checkpoints").glob("toy_epoch-*.pt"))
    checkpoint = Checkpoint.load(last)
    _flatten(checkpoint.model, "model", found)
    _flatten(checkpoint.ema, "ema", found)
    _flatten(checkpoint.optimizer["state"], "optimizer", found)
    return found


def _flatten(value: object, name: str, found: dict[str, torch.Tensor]) -> None:
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _flatten(item, f"{name}.{key}", found)
    elif isinstance(value, (int, float, torch.Tensor)):
        found[name] = torch.as_tensor(value, dtype=torch.float64).detach()


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of two outcomes, relative to the largest number of each entry."""
    assert one.keys() == other.keys()
    worst = 0.0
    for name, value in one.items():
        scale = float(value.abs().max()) if value.numel() else 0.0
        gap = float((value - other[name]).abs().max()) if value.numel() else 0.0
        worst = max(worst, gap / max(scale, 1e-3))
    return worst


def children(launcher: int) -> list[int]:
    """Processes that a launcher has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, _, parent, *_ = path.read_text().split()
        except OSError:
            continue
        if int(parent) == launcher:
            found.append(int(pid))
    return sorted(found)


if __name__ == "__main__":
    with joined() as group:
        torch.set_num_threads(1)
        folder, n = Path(sys.argv[1]), group.process.world_size
        train(folder, f"{n}", group.process, batch_size=2)
        if n == 2:
            train(folder, "2x2", group.process, batch_size=2, accumulate=2)
