"""Joining the other processes that torchrun or srun started."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count

import torch
from torch import distributed

from fpmace.distributed.launch import Launch, find_launch
from fpmace.distributed.member import Member
from fpmace.distributed.process import ALONE, Process
from fpmace.distributed.voice import speak_through
from fpmace.errors import ConfigError

logger = logging.getLogger(__name__)

_TIMEOUT = 30.0
"""Seconds, until the options of the command are known."""
_LONGEST_WAIT = timedelta(hours=24)
"""For messages between living processes, some of which may work long; the dead are found else."""


_numbers = count()
"""Groups that this process has joined one after the other."""


@dataclass(frozen=True)
class Group:
    """The processes of a command, as seen from one of them."""

    process: Process
    member: Member | None = None

    def give_up_after(self, timeout: float) -> None:
        """Change the time without a sign of life after which a process is given up, s."""
        if self.member is not None:
            self.member.timeout = timeout


@contextmanager
def joined() -> Iterator[Group]:
    """Be one of the processes that torchrun or srun started, for the time of the block.

    The backend is gloo for tensors on the CPU and nccl for those on GPUs. An error leaves the
    group as it is: it is told through :mod:`fpmace.distributed.voice`, and every process ends.

    Raises:
        ConfigError: the other processes cannot be met.
    """
    launch = find_launch(os.environ)
    if launch is None or launch.world_size == 1:
        yield Group(ALONE)
        return
    _share_threads(launch)
    member = _join(launch)
    speak_through(member)
    yield Group(member.process, member)
    member.process.wait()
    member.leave()
    member.process.wait()
    speak_through(None)
    distributed.destroy_process_group()


def backends() -> str:
    """The backends of torch.distributed by device."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _join(launch: Launch) -> Member:
    try:
        store = _store(launch, server=launch.rank == 0 and not launch.agent)
        prefix = f"fpmace/{launch.restarts}/{next(_numbers)}"
        distributed.init_process_group(
            backends(),
            store=distributed.PrefixStore(prefix, store),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=_LONGEST_WAIT,
        )
        process = Process(launch.rank, launch.world_size, launch.local_rank, launch.restarts)
        own = distributed.PrefixStore(f"{prefix}/life", _store(launch, server=False))
        return Member(process, own, timeout=_TIMEOUT)
    except RuntimeError as error:
        raise ConfigError(
            f"process {launch.rank} of {launch.world_size} cannot meet the others at "
            f"{launch.address}:{launch.port} ({str(error).splitlines()[0][:200]}); check "
            "MASTER_ADDR, MASTER_PORT and the network (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)",
            where="torch.distributed",
        ) from error


def _store(launch: Launch, *, server: bool) -> distributed.TCPStore:
    return distributed.TCPStore(
        launch.address,
        launch.port,
        launch.world_size,
        is_master=server,
        timeout=timedelta(seconds=300),
        wait_for_workers=False,
    )


def _share_threads(launch: Launch) -> None:
    """The processes of a machine share its cores, unless told otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // launch.n_local)))
