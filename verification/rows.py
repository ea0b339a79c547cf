"""One row of a comparison with reference numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GoldenRow:
    """Outcome of one comparison.

    Attributes:
        case: what was computed (file and setting).
        quantity: which number.
        max_error: largest deviation, relative to the largest value of the quantity or as the
            note says; NaN where nothing was compared.
        tolerance: largest deviation that passes.
        status: ``unsupported`` where the case needs something that is not there.
        note: what a reader should know.
    """

    case: str
    quantity: str
    max_error: float
    tolerance: float
    status: Literal["pass", "FAIL", "unsupported"]
    note: str = ""


def compare(
    case: str, quantity: str, max_error: float, tolerance: float, note: str = ""
) -> GoldenRow:
    """Row with the status that follows from the error (NaN fails)."""
    status: Literal["pass", "FAIL"] = "pass" if max_error <= tolerance else "FAIL"
    return GoldenRow(case, quantity, max_error, tolerance, status, note)


def unsupported(case: str, quantity: str, note: str) -> GoldenRow:
    """Row of a case that is not computed, with the reason."""
    return GoldenRow(case, quantity, float("nan"), float("nan"), "unsupported", note)
