"""How this process was started: alone, by ``torchrun``, or as a task of SLURM's ``srun``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fpmace.errors import ConfigError

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _N_PORTS = 20000, 20000


@dataclass(frozen=True, slots=True)
class Launch:
    """Where a process stands among those that work together.

    Attributes:
        rank: number of this process, from 0, of ``world_size``.
        local_rank: its number on this machine, of ``n_local``.
        address, port: where the processes meet.
        agent: an agent of ``torchrun`` keeps the meeting point; else the process of rank 0 does.
        restarts: how often the processes were started again after a failure.
    """

    rank: int
    world_size: int
    local_rank: int
    n_local: int
    address: str
    port: int
    agent: bool = False
    restarts: int = 0


def find_launch(environ: Mapping[str, str]) -> Launch | None:
    """Read the variables of ``torchrun`` or else of ``srun``; None for a process on its own.

    Raises:
        ConfigError: a variable is not what it should be.
    """
    try:
        if all(environ.get(name) for name in _TORCHRUN):
            return _of_torchrun(environ)
        if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environ:
            return _of_slurm(environ)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"cannot be read ({error}); start with torchrun, or with srun and MASTER_ADDR and "
            "MASTER_PORT set",
            where="environment of torchrun or SLURM",
        ) from None
    return None


def _of_torchrun(environ: Mapping[str, str]) -> Launch:
    return Launch(
        rank=int(environ["RANK"]),
        world_size=int(environ["WORLD_SIZE"]),
        local_rank=int(environ.get("LOCAL_RANK", "0")),
        n_local=int(environ.get("LOCAL_WORLD_SIZE", "1")),
        address=environ["MASTER_ADDR"],
        port=int(environ["MASTER_PORT"]),
        agent=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        restarts=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def _of_slurm(environ: Mapping[str, str]) -> Launch:
    job, step = int(environ["SLURM_JOB_ID"]), int(environ.get("SLURM_STEP_ID", "0"))
    port = _FIRST_PORT + (job + 97 * step) % _N_PORTS
    node = int(environ.get("SLURM_NODEID", "0"))
    return Launch(
        rank=int(environ["SLURM_PROCID"]),
        world_size=int(environ["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        n_local=tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[node],
        address=environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]),
        port=int(environ.get("MASTER_PORT") or port),
        restarts=int(environ.get("SLURM_RESTART_COUNT", "0")),
    )


def first_host(nodes: str) -> str:
    """The first machine of a list such as ``gpu[003-010,12],login1``."""
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST {nodes!r}")
    return "".join(part or "" for part in match.groups())


def tasks_per_node(text: str) -> list[int]:
    """Tasks on each machine, from text such as ``4(x2),3``."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
