"""Fixed-point models against reference numbers of an independent code."""

from pathlib import Path

import pytest

from verification.fixed_point import check_fixed_point

DATA = Path(__file__).parent / "data" / "fixed_point"


@pytest.fixture(scope="module")
def rows():
    return check_fixed_point(DATA)


@pytest.mark.parametrize("case", ["fp01", "fp05", "fp06"])
def test_every_stored_number_is_reproduced(rows, case):
    mine = [row for row in rows if row.case.startswith(case)]
    wrong = [row for row in mine if row.status != "pass"]
    assert len(mine) > 100
    assert not wrong


def test_step_counts_are_compared(rows):
    steps = [row for row in rows if row.quantity == "n_loop_steps"]
    assert steps
    assert all(row.max_error == 0 for row in steps)
