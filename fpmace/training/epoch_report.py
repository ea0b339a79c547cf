"""An epoch of the metrics file as one readable line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpmace.scf.state import ScfStatus

_SHOWN = (
    ("energy_per_atom", "E", "meV/atom"),
    ("forces", "F", "meV/A"),
    ("charges", "q", "me"),
)


def epoch_line(record: Mapping[str, Any]) -> str:
    """One readable line on an epoch of the metrics file."""
    parts = [
        f"epoch {record['epoch']:4d} {record['stage_name']}",
        f"train loss {record['train']['loss']:.5g}",
    ]
    valid = record["valid"]
    if valid is not None:
        parts.append(f"valid loss {valid['loss']:.5g}")
        for name, short, unit in _SHOWN:
            if name in valid["errors"]:
                parts.append(f"RMSE {short} {1000 * valid['errors'][name]['rmse']:.4g} {unit}")
    scf = (valid or record["train"])["scf"]
    if scf is not None:
        n_graphs = sum(scf.get(status.name.lower(), 0) for status in ScfStatus)
        parts.append(
            f"SCF {scf.get('converged', 0)}/{n_graphs} in {scf['mean_n_steps']:.1f} steps"
        )
    parts.append(f"{record['seconds']:.1f} s")
    return " | ".join(parts)
