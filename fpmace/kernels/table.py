"""Sums over rows of radial tables in C; see ``fpmace.blocks.radial_table``."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fpmace.blocks.radial_table import TABLES
from fpmace.kernels.compiler import Range, compile_function, run_threads
from fpmace.kernels.source import function, header

BONDS_PER_THREAD = 512
"""Least work that is worth a thread."""

_SUM = """\
for (int64_t n = first; n < last; n++) {
  const V *t = VEC(TABLE + ROW[n] * NC);
  const T *w = X + n * 6;
  V *out = (V *)(OUT + n * NC);
  for (int v = 0; v < NV; v++)
    out[v] = w[0] * t[v] + w[1] * t[NV + v] + w[2] * t[2 * NV + v]
           + w[3] * t[3 * NV + v] + w[4] * t[4 * NV + v] + w[5] * t[5 * NV + v];
}"""

_DOT = """\
for (int64_t n = first; n < last; n++) {
  const V *t = VEC(TABLE + ROW[n] * NC), *g = VEC(X + n * NC);
  V s[6] = {0};
  for (int v = 0; v < NV; v++)
    for (int k = 0; k < 6; k++) s[k] += g[v] * t[k * NV + v];
  for (int k = 0; k < 6; k++) OUT[n * 6 + k] = total(s[k]);
}"""


@cache
def _compiled(body: str, n_functions: int, dtype: torch.dtype) -> Range:
    pointers = [("const T", "TABLE"), ("const int64_t", "ROW"), ("const T", "X"), ("T", "OUT")]
    return compile_function(
        f"{header(n_functions, dtype, {})}\n{function(pointers, body.splitlines())}\n"
    )


def _run(body: str, width: int, x: Tensor, first: Tensor, table: Tensor) -> Tensor:
    call = _compiled(body, table.shape[1], table.dtype)
    out = x.new_empty(len(x), width)
    operands = [table, first.contiguous(), x.contiguous()]
    run_threads(call, len(x), BONDS_PER_THREAD, operands, {0: out}, ())
    return out


def _sum_rows(weights: Tensor, first: Tensor, table: Tensor) -> Tensor:
    return _run(_SUM, table.shape[1], weights, first, table)


def _dot_rows(cotangent: Tensor, first: Tensor, table: Tensor) -> Tensor:
    return _run(_DOT, 6, cotangent, first, table)


TABLES["c"] = (_sum_rows, _dot_rows)
