"""Does the SCF of a trained model converge? Counts by solver, from the local guess.

    python benchmarks/scf_convergence.py MODEL FILE.xyz [FILE.xyz ...]

For each solver: how many structures converge in 100 passes to a density change of 1e-6, the
passes that those took, and the errors of energy and charges where they did.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from statistics import median
from typing import Any

import torch
from prettytable import PrettyTable
from torch import nn

from fpmace.data.batch import Batch
from fpmace.data.dataset import open_dataset
from fpmace.data.loader import make_loader
from fpmace.data.options import DataOptions
from fpmace.models.io import load_model
from fpmace.observables.predict import predict
from fpmace.registry import build
from fpmace.scf.options import ScfOptions

SOLVERS: dict[str, dict[str, Any]] = {
    "linear, mixing 0.3": {"solver": "linear", "mixing_parameter": 0.3},
    "linear, mixing 0.1": {"solver": "linear", "mixing_parameter": 0.1},
    "anderson": {"solver": "anderson"},
    "newton_krylov": {"solver": "newton_krylov"},
    "auto": {"solver": "auto"},
}


def main() -> None:
    """Print the table for the model and files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    options = DataOptions(multipoles_max_l=model.electrostatics.options.density_max_l)
    batches = [
        batch
        for name in arguments.files
        for batch in make_loader(open_dataset(name, model.r_max, options), 10, shuffle=False)
    ]
    table = PrettyTable(
        [
            "solver",
            "converged",
            "median passes",
            "most",
            "RMSE E / meV/atom",
            "median |dE| / meV/atom",
            "RMSE charge / me",
        ]
    )
    for name, solver in SOLVERS.items():
        table.add_row([name, *_row(model, batches, solver)])
    print(table)


def _row(model: nn.Module, batches: Iterable[Batch], solver: dict[str, Any]) -> list[str]:
    scf = ScfOptions(num_scf_steps=101, scf_tolerance=1e-6, on_failure="ignore", **solver)
    mode = build("training_mode", "scf", scf=scf)
    steps: list[int] = []
    count, energy, charge = 0, [], []
    for batch in batches:
        found = predict(model, batch, mode=mode, outputs=("energy",))
        assert found.scf is not None
        assert found.density is not None
        done = found.scf.converged
        count += len(done)
        steps += found.scf.n_steps[done].tolist()
        error = (found.energy - batch.labels["energy"]) / batch.atoms_per_graph
        energy += error[done].tolist()
        difference = found.density[:, 0] - batch.labels["atomic_multipoles"][:, 0]
        charge += difference[done[batch.batch]].tolist()
    if not steps:
        return [f"0 of {count}", "", "", "", "", ""]
    return [
        f"{len(steps)} of {count}",
        f"{median(steps):g}",
        str(max(steps)),
        f"{_rms(energy) * 1e3:.1f}",
        f"{median(abs(value) for value in energy) * 1e3:.1f}",
        f"{_rms(charge) * 1e3:.1f}",
    ]


def _rms(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).square().mean().sqrt())


if __name__ == "__main__":
    main()
