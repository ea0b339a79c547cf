"""An epoch as an entry of the metrics file, and that entry as one readable line."""

from __future__ import annotations

import torch

from fpmace.annotations import Values
from fpmace.metrics.scf_summary import ScfSummary
from fpmace.report.content import duration
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
    quick: Evaluation | None = None,
) -> Values:
    """What the metrics file holds on an epoch; ``quick``: of part of the validation data."""
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
        **({} if quick is None else {"quick": {**quick.to_json(), "n_graphs": quick.n_graphs}}),
    }


def epoch_line(record: Values, last_epoch: int) -> str:
    """One readable line on an epoch of the metrics file; ``last_epoch`` of the training."""
    parts = [
        f"epoch {record['epoch']:4d} of {last_epoch} {record['stage_name']}",
        f"train loss {record['train']['loss']:.5g}",
    ]
    train, valid = record["train"], record["valid"] or record.get("quick")
    if train["n_used"] < train["n_graphs"]:
        parts.append(f"trained on {train['n_used']}/{train['n_graphs']} structures")
    if valid is not None:
        part = "" if record["valid"] else f" of {valid['n_graphs']} structures"
        parts.append(f"valid loss{part} {valid['loss']:.5g}")
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
    left = record["seconds"] * (last_epoch - record["epoch"])
    parts.append(f"{record['seconds']:.1f} s{f', {duration(left)} left' if left > 60 else ''}")
    return " | ".join(parts)
