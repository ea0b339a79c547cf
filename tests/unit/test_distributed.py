"""How processes find each other, and who tells why they end."""

import time

import pytest
import torch.distributed as distributed

from fpmace.distributed import member as module
from fpmace.distributed.launch import find_launch, first_host, tasks_per_node
from fpmace.distributed.member import Member
from fpmace.distributed.process import Process
from fpmace.errors import ConfigError

SLURM = {
    "SLURM_JOB_ID": "812",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


def test_variables_of_torchrun_and_srun():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}
    more = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "2"}
    found = find_launch({**torchrun, **more, **SLURM})
    assert (found.rank, found.world_size, found.local_rank, found.n_local) == (3, 4, 1, 2)
    assert (found.address, found.port, found.restarts, found.agent) == ("a", 1234, 2, False)
    found = find_launch(SLURM)
    assert (found.rank, found.world_size, found.local_rank, found.n_local) == (5, 7, 1, 3)
    assert found.address == "gpu003"
    assert find_launch({**SLURM, "MASTER_ADDR": "b"}).address == "b"
    assert find_launch({}) is None
    assert find_launch({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        find_launch({**torchrun, "RANK": "first"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a1", "a1"), ("n[7-9,12],m3", "n7"), ("x2,y3", "x2"), ("r[01,04]-ib,z", "r01-ib")],
)
def test_first_machine_of_a_list(nodes, first):
    assert first_host(nodes) == first


def test_tasks_of_each_machine():
    assert tasks_per_node("4(x2),3") == [4, 4, 3]


class Alone(Process):
    """A process whose partners are other objects of the same test."""

    def gather(self, value):
        return [value] * self.world_size


@pytest.fixture
def members(monkeypatch):
    monkeypatch.setattr(module.signal, "alarm", lambda seconds: None)
    ended = []
    monkeypatch.setattr(Member, "_end", lambda self, cause: (ended.append(cause), self.leave()))
    store = distributed.HashStore()
    found = [Member(Alone(rank, 3), store, timeout=1.5) for rank in range(3)]
    yield found, ended
    for item in found:
        item.leave()


def test_the_first_failure_is_told_once(members):
    found, ended = members
    assert found[1].own("no such file") == "process 1 of 3: no such file"
    assert found[2].own("no such file") is None
    assert found[0].foreign("lost contact", None) is None
    assert not ended


def test_a_process_without_a_sign_of_life_is_named(members):
    found, ended = members
    found[2].leave()
    until = time.monotonic() + 30.0
    while not ended and time.monotonic() < until:
        time.sleep(0.05)
    assert "process 2 of 3" in ended[0]
    assert "no sign of life for 1.5 s (process_timeout)" in ended[0]


def test_a_process_that_the_system_has_ended_is_named(members, monkeypatch):
    found, _ = members
    monkeypatch.setattr(module, "_runs", lambda pid: False)
    told = found[1].foreign("lost contact", 1.0)
    assert told is None or "was ended from outside" in told
