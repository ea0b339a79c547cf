"""Interrupts, SIGTERM, full disks, odd places for files, two runs in one place: one line each."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fpmace.cli import common, convert, evaluate, info, preprocess, response, train
from fpmace.errors import FpmaceError
from fpmace.training.checkpoint import Checkpoint, CheckpointStore

DATA = Path(__file__).resolve().parents[2] / "data" / "quickstart" / "test.xyz"
OPTIONS = {
    "name": "r",
    "train_file": DATA,
    "valid_file": DATA,
    "E0s": "average",
    "model": "MACE",
    "r_max": 3.0,
    "hidden_irreps": "2x0e",
    "MLP_irreps": "2x0e",
    "max_ell": 1,
    "num_radial_basis": 4,
    "radial_MLP": "[4]",
    "correlation": 1,
    "num_interactions": 1,
    "batch_size": 32,
    "plot": "false",
    "num_threads": 1,
}


def flags(**changes: object) -> list[str]:
    return [
        text
        for name, value in {**OPTIONS, **changes}.items()
        for text in (f"--{name}", str(value))
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    assert train.main(flags(work_dir=folder, max_num_epochs=2)) == 0
    return folder


def start(*arguments: str) -> subprocess.Popen[str]:
    code = "import sys; from fpmace.cli.launch import train; sys.exit(train())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_epochs(folder: Path, n: int) -> None:
    deadline = time.monotonic() + 100
    metrics = folder / "r_metrics.jsonl"
    while not metrics.is_file() or metrics.read_text().count("\n") < n:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_training_says_one_line_and_goes_on_where_it_was(tmp_path, number):
    long = flags(work_dir=tmp_path, max_num_epochs=1000, num_workers=1, eval_interval=400)
    process = start(*long)
    wait_for_epochs(tmp_path, 3)
    second = start(*long)
    assert "in use by another process" in second.communicate(timeout=60)[1]
    assert second.returncode == common.EXIT_FAILURE
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == {2: "interrupted\n", 15: "terminated\n"}[number]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    latest = CheckpointStore(tmp_path / "checkpoints", "r").latest()
    # No validation was due: the last epoch that was finished is kept all the same.
    records = (tmp_path / "r_metrics.jsonl").read_text().splitlines()
    assert latest.progress.epoch in (len(records) - 1, len(records) - 2)
    n_epochs = latest.progress.epoch + 2
    changes = {"max_num_epochs": n_epochs, "eval_interval": 400}
    assert train.main(flags(work_dir=tmp_path, **changes, restart_latest="true")) == 0
    assert train.main(flags(work_dir=tmp_path / "whole", **changes)) == 0
    both = [
        Checkpoint.load(folder / "checkpoints" / f"r_epoch-{n_epochs - 1}.pt").model
        for folder in (tmp_path, tmp_path / "whole")
    ]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_interrupt_inside_a_process_is_status_130(capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert common.run_command(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.fixture
def small_files():
    """No file may grow beyond 3 kB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


COMMANDS = {
    "train": (train, lambda run, out: flags(work_dir=out, max_num_epochs=1)),
    "preprocess": (
        preprocess,
        lambda run, out: ["--train_file", str(DATA), "--E0s", "average", "--output", str(out)],
    ),
    "evaluate": (
        evaluate,
        lambda run, out: [
            *(
                "--configs",
                str(DATA),
                "--model",
                str(run / "r.model"),
                "--output",
                str(out / "o.xyz"),
            )
        ],
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_full_disk_is_one_line(name, finished, tmp_path, capsys, request):
    command, arguments = COMMANDS[name]
    request.getfixturevalue("small_files")
    assert command.main(arguments(finished, tmp_path / "out")) == common.EXIT_FAILURE
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert str(tmp_path / "out") in errors[0]
    assert "File too large; write where larger files are allowed" in errors[0]
    assert not list(tmp_path.rglob("*.tmp*"))


def places(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "file").write_text("")
    (folder / "file.xyz").mkdir()
    return {
        "file for folder": (folder / "file" / "sub", "Not a directory"),
        "long": (folder / ("n" * 300), "File name too long"),
        "null": (Path("/dev/null/x"), "Not a directory"),
        "proc": (Path("/proc/nowhere"), "No such file or directory"),
    }


@pytest.mark.parametrize("place", ["file for folder", "long", "null", "proc"])
@pytest.mark.parametrize("name", COMMANDS)
def test_place_that_cannot_be_written_is_one_line(name, place, finished, tmp_path, capsys):
    command, arguments = COMMANDS[name]
    path, reason = places(tmp_path)[place]
    assert command.main(arguments(finished, path)) == common.EXIT_FAILURE
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert reason in errors[0]


def without_override() -> list[str]:
    """What a command begins with so that permissions hold for root too."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("permissions do not bind root, and there is no setpriv to drop that right")
    lost = "-dac_override,-dac_read_search"
    return ["setpriv", f"--inh-caps={lost}", f"--bounding-set={lost}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_read_only_folder_is_one_line(name, finished, tmp_path):
    command, arguments = COMMANDS[name]
    module = command.__name__.rpartition(".")[2]
    code = f"import sys; from fpmace.cli.launch import {module}; sys.exit({module}())"
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    given = [sys.executable, "-c", code, *arguments(finished, folder)]
    done = subprocess.run([*without_override(), *given], capture_output=True, text=True)
    errors = done.stderr.splitlines()
    assert done.returncode == common.EXIT_FAILURE, done.stderr
    assert len(errors) == 1
    assert f"{folder}" in errors[0]
    assert "Permission denied; change its permissions or name another" in errors[0]
    assert not list(folder.iterdir())


def test_system_errors_name_file_reason_and_remedy():
    error = OSError(28, "x", "a.model")
    assert common.explain(error) == (
        "a.model: No space left on device; free some space or write elsewhere"
    )
    assert "lower batch_size" in common.explain(MemoryError())
    assert "can't be" not in common.explain(FpmaceError("plain"))
    assert common.explain(KeyError("a fault of the program")) is None


def test_lock_is_free_when_its_process_is_gone(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from fpmace.files import locked\n"
        "with locked(Path(sys.argv[1]), 'x'): os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "r.log"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    from fpmace.files import locked

    with locked(path, "x"):
        other = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True
        )
        assert "in use by another process" in other.stderr


def test_runs_leave_the_files_of_others_alone(tmp_path):
    own, others = CheckpointStore(tmp_path, "a"), ("a_b", "a_stage-0_best", "b", "aa", "a.")
    names = [".{}_epoch-3.x1_.tmp.pt", "{}_epoch-3.pt", "{}_stage-0_best.model"]
    for name in ("a", *others):
        for pattern in names:
            (tmp_path / pattern.format(name)).write_text(json.dumps(name))
    own.remove_leftovers()
    own.set_aside()
    for name in others:
        assert all((tmp_path / pattern.format(name)).is_file() for pattern in names), name
    assert not any((tmp_path / pattern.format("a")).is_file() for pattern in names)
    assert info.main([str(tmp_path / "a_b_epoch-3.pt")]) == common.EXIT_FAILURE
    assert convert.main([str(tmp_path / "b_epoch-3.pt"), "out"]) == common.EXIT_FAILURE
    assert response.main([]) == common.EXIT_FAILURE
