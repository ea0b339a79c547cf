"""An epoch as an entry of the metrics file, and that entry as one readable line."""

from __future__ import annotations

import torch

from fpmace.annotations import Values
from fpmace.metrics.scf_summary import ScfSummary
from fpmace.scf.state import ScfStatus
from fpmace.training.checkpoint import Progress
from fpmace.training.evaluate import Evaluation, TermAverages
from fpmace.training.stages import Stage

_SHOWN = (
    ("energy_per_atom", "E", "meV/atom"),
    ("forces", "F", "meV/A"),
    ("charges", "q", "me"),
)


def epoch_record(
    stage: Stage,
    progress: Progress,
    train: TermAverages,
    scf: ScfSummary,
    valid: Evaluation | None,
    optimizer: torch.optim.Optimizer,
) -> Values:
    """What the metrics file holds on an epoch."""
    return {
        "epoch": progress.epoch,
        "stage": stage.index,
        "stage_name": stage.name,
        "step": progress.step,
        "lr": {group.get("name", "all"): group["lr"] for group in optimizer.param_groups},
        "train": {
            **train.to_json(),
            "n_graphs": train.n_graphs,
            "n_used": train.n_used,
            "scf": scf.to_json(),
        },
        "valid": None if valid is None else valid.to_json(),
    }


def epoch_line(record: Values) -> str:
    """One readable line on an epoch of the metrics file."""
    parts = [
        f"epoch {record['epoch']:4d} {record['stage_name']}",
        f"train loss {record['train']['loss']:.5g}",
    ]
    train, valid = record["train"], record["valid"]
    if train["n_used"] < train["n_graphs"]:
        parts.append(f"trained on {train['n_used']}/{train['n_graphs']} structures")
    if valid is not None:
        parts.append(f"valid loss {valid['loss']:.5g}")
        for name, short, unit in _SHOWN:
            if name in valid["errors"]:
                parts.append(f"RMSE {short} {1000 * valid['errors'][name]['rmse']:.4g} {unit}")
        losses = {n: item["loss"] for n, item in valid.get("heads", {}).items() if "loss" in item}
        parts += [f"{name} {loss:.5g}" for name, loss in losses.items()]
    scf = (valid or train)["scf"]
    if scf is not None:
        n_graphs = sum(scf.get(status.name.lower(), 0) for status in ScfStatus)
        parts.append(
            f"SCF {scf.get('converged', 0)}/{n_graphs} in {scf['mean_n_steps']:.1f} steps"
        )
    parts.append(f"{record['seconds']:.1f} s")
    return " | ".join(parts)
