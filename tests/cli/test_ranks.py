"""Several processes train as one does, and end together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import rank_cases

pytestmark = pytest.mark.filterwarnings("ignore")

SCRIPT = Path(rank_cases.__file__)


def torchrun(n: int, *command: str, **options) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc_per_node", str(n), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


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
    done = torchrun(n, str(SCRIPT), str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    for run, batch_size in runs.items():
        rank_cases.train(folder, f"alone{batch_size}", batch_size=batch_size)
        several = rank_cases.numbers(folder / run)
        alone = rank_cases.numbers(folder / f"alone{batch_size}")
        assert rank_cases.largest_difference(alone, several) < 1e-12
        used = [float(value) for name, value in alone.items() if name.endswith("train.n_used")]
        assert min(used) > 0
        assert any(value % 10 for value in used)
