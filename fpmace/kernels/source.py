"""Pieces of C that all kernels are written with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from fpmace.kernels.compiler import C_TYPES, VECTOR_BYTES


def lanes(n_channels: int, dtype: torch.dtype) -> int:
    """Channels of a vector: a power of two that divides their number."""
    most = VECTOR_BYTES // dtype.itemsize
    return min(most, n_channels & -n_channels)


def header(n_channels: int, dtype: torch.dtype, sizes: Mapping[str, int]) -> str:
    """Types ``T`` (number) and ``V`` (vector of channels), constants ``NV``, ``NC`` and ``sizes``.

    ``NV`` is the number of vectors, ``NC`` that of channels.
    """
    n = lanes(n_channels, dtype)
    width = n * dtype.itemsize
    constants = {"NC": n_channels, "NV": n_channels // n, "LANES": n, **sizes}
    vector = "typedef T V;"
    if n > 1:
        vector = (
            f"typedef T V __attribute__((vector_size({width}), aligned({dtype.itemsize}), "
            "may_alias));"
        )
    return "\n".join(
        [
            "#include <stdint.h>",
            "#include <string.h>",
            f"typedef {C_TYPES[dtype]} T;",
            vector,
            f"enum {{{', '.join(f'{name} = {value}' for name, value in constants.items())}}};",
            "static inline T total(V x) {",
            "  T y[LANES], s = 0; memcpy(y, &x, sizeof(V));",
            "  for (int k = 0; k < LANES; k++) s += y[k];",
            "  return s;",
            "}",
            "#define VEC(p) ((const V *)(p))",
        ]
    )


def function(pointers: Sequence[tuple[str, str]], body: Iterable[str]) -> str:
    """``run(first, last, pointers)``, whose pointers are (type, name)."""
    lines = ["#include <stdint.h>", "void run(int64_t first, int64_t last, void **pointers) {"]
    lines += [f"  {kind} *{name} = pointers[{n}];" for n, (kind, name) in enumerate(pointers)]
    return "\n".join([*lines, *(f"  {line}" for line in body), "}"])


def number(value: float) -> str:
    """A coefficient in full precision."""
    return f"((T){value!r})"


def linear_combination(terms: Iterable[tuple[float, str]]) -> str:
    """``c1 * x1 + c2 * x2 + ...``"""
    return " + ".join(f"{number(c)} * {x}" for c, x in terms)


def indented(lines: Iterable[str]) -> list[str]:
    """The lines of an inner block."""
    return [f"  {line}" for line in lines]
