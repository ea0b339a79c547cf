"""Several processes train and evaluate as one does, and end together."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import rank_cases
from ase import Atoms
from ase.io import write
from calculator_cases import affine_model, vibration, water_row

from fpmace.cli import evaluate, response
from fpmace.evaluation.evaluate import evaluate_file
from fpmace.models.io import save_model

pytestmark = pytest.mark.filterwarnings("ignore")

HELPERS = Path(rank_cases.__file__).parent
KILLED = re.compile(
    r"error: process \d of 2 \(pid \d+ on \S+\) was ended from outside: killed, or out of memory; "
    r"started again, a training goes on with --restart_latest"
)


def torchrun(n: int, *command: str, **options) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, "--nproc_per_node", str(n), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def ended(run: subprocess.Popen[str]) -> str:
    text, _ = run.communicate(timeout=240)
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    rank_cases.write_data(path)
    return path


@pytest.mark.parametrize(("n", "runs"), [(2, {"2": 4, "2x2": 8}), (3, {"3": 6})])
def test_processes_train_as_one_with_larger_batches(folder, n, runs):
    """Every loss, error, weight, average and moment, in every training mode.

    Batches are unequal (the last step leaves processes without any), labels are missing, and
    structures whose self-consistency fails are left out.
    """
    run = torchrun(n, str(HELPERS / "rank_cases.py"), str(folder))
    text = ended(run)
    assert run.returncode == 0, text
    assert text.count(" data:\n") == len(runs)
    for name, batch_size in runs.items():
        rank_cases.train(folder, f"alone{batch_size}", batch_size=batch_size)
        several = rank_cases.numbers(folder / name)
        alone = rank_cases.numbers(folder / f"alone{batch_size}")
        assert rank_cases.largest_difference(alone, several) < 1e-12
        used = [float(value) for name, value in alone.items() if name.endswith("train.n_used")]
        assert min(used) > 0
        assert any(value % 10 for value in used)


def test_a_killed_process_ends_all_and_a_restart_ends_as_if_nothing_had_been(folder):
    rank_cases.config(folder, "killed", batch_size=2)
    flags = ["--max-restarts", "1", "-m", "fpmace.cli.train", "--config", "killed.yaml"]
    run = torchrun(2, *flags, cwd=folder)
    threading.Thread(target=kill_after, args=(run, folder / "killed", 3)).start()
    text = ended(run)
    assert run.returncode == 0, text
    assert len(KILLED.findall(text)) == 1, text
    assert re.search("resuming after epoch [12]", text)
    whole = rank_cases.numbers(folder / "2")
    assert rank_cases.largest_difference(whole, rank_cases.numbers(folder / "killed")) == 0.0


def kill_after(run: subprocess.Popen[str], folder: Path, n_epochs: int) -> None:
    """SIGKILL one of the processes somewhere in the epoch after ``n_epochs`` are recorded."""
    metrics = folder / "toy_metrics.jsonl"
    while run.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= n_epochs:
            os.kill(rank_cases.children(run.pid)[1], signal.SIGKILL)
            return
        time.sleep(0.01)


def frames() -> list[Atoms]:
    found = [*vibration(water_row(1), 12), *vibration(water_row(2), 11)]
    for number, atoms in enumerate(found):
        atoms.info.update(total_charge=float(number == 1), REF_energy=-1.0 * number)
    return found


def test_files_are_shared_out_and_written_as_by_one_process(tmp_path):
    """Errors of one process reach the terminal once, with its number."""
    save_model(tmp_path / "m.model", affine_model())
    write(tmp_path / "data.xyz", frames())
    write(tmp_path / "bad.xyz", [*frames()[:3], Atoms("H2", [[0, 0, 0], [0, 0, 1e-3]])])

    def command(module, output: str, *more: str, data: str = "data.xyz"):
        files = {"configs": data, "model": "m.model", "output": output}
        given = [text for key, name in files.items() for text in (f"--{key}", tmp_path / name)]
        return module, [*map(str, given), "--batch_size", "1", *more]

    jobs = [
        (evaluate, ("e.xyz",)),
        (response, ("r.xyz",)),
        (response, ("r.npz", "--properties", "polarizability,hessian")),
    ]
    begin_evaluation(command(evaluate, "resumed.xyz")[1], after=7)
    several = [command(module, f"two_{job[0]}", *job[1:]) for module, job in jobs]
    several += [command(evaluate, "resumed.xyz", "--resume")]
    several += [command(evaluate, "never.xyz", data="bad.xyz")]
    plain = [(module.__name__.rpartition(".")[2], arguments) for module, arguments in several]
    run = torchrun(2, str(HELPERS / "rank_commands.py"), json.dumps(plain))
    for module, job in jobs:
        assert module.main(command(module, *job)[1]) == 0
    text = ended(run)
    assert run.returncode != 0
    assert text.count("going on after 7 of 23 configurations") == 1
    assert text.count("(23 configurations)") == 2
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    assert re.match(r"error: process 1 of 2: .*bad\.xyz: configuration 3", errors[0])
    for name in ("e.xyz", "r.xyz", "r.npz"):
        assert (tmp_path / name).read_bytes() == (tmp_path / f"two_{name}").read_bytes()
    assert (tmp_path / "resumed.xyz").read_bytes() == (tmp_path / "e.xyz").read_bytes()
    assert not (tmp_path / "never.xyz").exists()


def begin_evaluation(arguments: list[str], *, after: int) -> None:
    """Evaluate alone until ``after`` configurations are written, and stop."""

    def progress(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_file(evaluate.read_options(arguments), progress=progress, message=lambda _: None)
