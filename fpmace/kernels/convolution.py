"""The convolution's products in C; see ``fpmace.blocks.convolution_terms``.

Two loops evaluate any form. One over receivers sums messages in place, the other over bonds makes
the derivatives by R (both directions of a bond at once), h and Y. Both gather, multiply and
scatter in one pass over an edge, with the coupling unrolled and ``D[m1, m3] = sum_m2 C Y[m2]``
made once per edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fpmace.blocks import convolution_kernel
from fpmace.blocks.convolution_terms import (
    FEATURES,
    HARMONICS,
    KERNELS,
    MESSAGE,
    RADIAL,
    Convolution,
    Coupling,
    Form,
    Pool,
)
from fpmace.kernels.compiler import C_TYPES, Range, compile_function, run_threads
from fpmace.kernels.source import function, header, indented, linear_combination

ATOMS_PER_THREAD, BONDS_PER_THREAD = 32, 512
"""Least work that is worth a thread."""

_Entry = tuple[int, int, int]
"""Path, component of h and row of f."""


def evaluate(plan: Convolution, form: Form, pool: Pool) -> list[Tensor]:
    """The derivatives ``form.wanted``; plain torch where tensors are not on the CPU."""
    like = next(x for x in pool if x is not None)
    if like.device.type != "cpu" or like.dtype not in C_TYPES:
        return convolution_kernel.evaluate(plan, form, pool)
    tensors = {n: x.contiguous() for n, x in enumerate(pool) if x is not None}
    place = {n: position for term in form.terms for position, n in enumerate(term)}
    n_channels = tensors[RADIAL].shape[2]  # a pool begins with R, h and Y
    shape = (plan.edges.n_atoms, plan.coupling.shape[0], n_channels)
    sizes = (shape[1], *(tensors[n].shape[1] for n in (RADIAL, FEATURES, HARMONICS)))
    out: dict[int, Tensor] = {}
    for n in form.wanted:
        if place[n] == MESSAGE:
            out[n] = like.new_empty(shape)
        else:  # R is cleared bond by bond, while it is in the cache
            clear = torch.empty_like if place[n] == RADIAL else torch.zeros_like
            out[n] = clear(tensors[n])
    messages = tuple(n for n in form.wanted if place[n] == MESSAGE)
    others = tuple(n for n in form.wanted if n not in messages)
    for writer, wanted in ((_Messages, messages), (_Gradients, others)):
        if wanted:
            part = Form(form.terms, wanted)
            writer(plan.couplings, part, sizes, n_channels).run(plan, tensors, out)
    return [out[n] for n in form.wanted]


KERNELS["c"] = evaluate


@dataclass(frozen=True)
class _Writer:
    """Source of one loop for the derivatives ``form.wanted``.

    Attributes:
        sizes: numbers of rows of f, paths, components of h and components of Y.
    """

    couplings: tuple[Coupling, ...]
    form: Form
    sizes: tuple[int, ...]
    n_channels: int

    @property
    def entries(self) -> dict[_Entry, list[tuple[int, float]]]:
        """The terms (component of Y, coefficient) of each entry of D."""
        found: dict[_Entry, list[tuple[int, float]]] = {}
        for row, path, node, harmonic, value in self.couplings:
            found.setdefault((path, node, row), []).append((harmonic, value))
        return found

    def used(self, position: int) -> list[int]:
        """Numbers of the tensors that the loop reads at a position."""
        read = {
            term[position]
            for term in self.form.terms
            if any(n in self.form.wanted for n in term)
            for n in self.form.wanted
            if n in term and term[position] != n
        }
        return sorted(read)

    def partners(self, wanted: int, position: int) -> dict[int, list[tuple[int, ...]]]:
        """Terms with ``wanted``, by their tensor at ``position``."""
        found: dict[int, list[tuple[int, ...]]] = {}
        for term in self.form.terms:
            if wanted in term:
                found.setdefault(term[position], []).append(term)
        return found

    def head(self, dtype: torch.dtype) -> str:
        names = ("ROWS", "PATHS", "NODES", "HARMONICS")
        return header(self.n_channels, dtype, dict(zip(names, self.sizes, strict=True)))

    def pointers(self, tables: Sequence[str], read: Sequence[list[int]]) -> list[tuple[str, str]]:
        """Arguments of the function: tables, operands by position, results."""
        return [
            *(("const int64_t", name) for name in tables),
            *(
                ("const T", f"{k}{n}")
                for k, group in zip("RHYF", read, strict=False)
                for n in group
            ),
            *(("T", f"OUT{n}") for n in self.form.wanted),
        ]

    def directions(self, numbers: Iterable[int]) -> list[str]:
        """D of each Y: ``T d{y}_{entry}``."""
        lines = [f"const T *y{y} = Y{y} + e * HARMONICS;" for y in numbers]
        for y in numbers:
            for place, terms in enumerate(self.entries.values()):
                value = linear_combination((c, f"y{y}[{m2}]") for m2, c in terms)
                lines.append(f"T d{y}_{place} = {value};")
        return lines

    def rows(self, kind: str, numbers: Iterable[int], size: str, index: str) -> list[str]:
        """Where the row of each operand begins."""
        return [
            f"const V *{kind.lower()}{n} = VEC({kind}{n} + {index} * {size} * NC);"
            for n in numbers
        ]


def _sum(terms: Iterable[str]) -> str:
    return " + ".join(terms)


@dataclass(frozen=True)
class _Messages(_Writer):
    """Loop over receivers: ``F[i, m3, path] = sum_j R sum_m1 h[m1] D[m1, m3]``."""

    def run(self, plan: Convolution, tensors: dict[int, Tensor], out: dict[int, Tensor]) -> None:
        edges = plan.edges
        numbers = [self.used(k) for k in (RADIAL, FEATURES, HARMONICS)]
        operands = [tensors[n] for group in numbers for n in group]
        call = _compiled(self, next(iter(tensors.values())).dtype)
        operands = [edges.first_edge, edges.sender, edges.pair, *operands]
        wanted = {n: out[n] for n in self.form.wanted}
        run_threads(call, edges.n_atoms, ATOMS_PER_THREAD, operands, wanted, ())

    def source(self, dtype: torch.dtype) -> str:
        r, h, y = (self.used(k) for k in (RADIAL, FEATURES, HARMONICS))
        pointers = self.pointers(("start", "sender", "pair"), (r, h, y))
        per_edge = [
            *self.rows("R", r, "PATHS", "pair[e]"),
            *self.rows("H", h, "NODES", "sender[e]"),
            *self.directions(y),
            "for (int v = 0; v < NV; v++) {",
            *indented(line for n in self.form.wanted for line in self.products(n)),
            "}",
        ]
        body = ["for (int64_t i = first; i < last; i++) {"]
        for n in self.form.wanted:
            body += [
                f"  V *f{n} = (V *)(OUT{n} + i * ROWS * NC);",
                f"  memset(f{n}, 0, ROWS * NC * sizeof(T));",
            ]
        body += ["  for (int64_t e = start[i]; e < start[i + 1]; e++) {"]
        body += [*indented(indented(per_edge)), "  }", "}"]
        return f"{self.head(dtype)}\n{function(pointers, body)}\n"

    def products(self, wanted: int) -> list[str]:
        """What one edge adds to a message, one vector of channels."""
        by_row: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for place, (path, node, row) in enumerate(self.entries):
            by_row.setdefault((path, row), []).append((place, node))
        return [
            f"f{wanted}[{row} * NV + v] += "
            + _sum(
                f"r{r}[{path} * NV + v] * ("
                + _sum(
                    f"h{term[FEATURES]}[{node} * NV + v] * d{term[HARMONICS]}_{place}"
                    for term in terms
                    for place, node in entries
                )
                + ")"
                for r, terms in self.partners(wanted, RADIAL).items()
            )
            + ";"
            for (path, row), entries in by_row.items()
        ]


@dataclass(frozen=True)
class _Gradients(_Writer):
    """Loop over bonds for the derivatives by R, h and Y.

    With ``g[path, m1] = sum_m3 D[m1, m3] f[m3, path]`` the derivative by R is ``sum_m1 h g``, the
    one by h is ``sum_path R g``, and the one by D is ``R h f`` summed over channels.
    """

    @property
    def columns(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """(place in D, row of f) of each path and component of h."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for place, (path, node, row) in enumerate(self.entries):
            found.setdefault((path, node), []).append((place, row))
        return found

    def run(self, plan: Convolution, tensors: dict[int, Tensor], out: dict[int, Tensor]) -> None:
        edges = plan.edges
        order, start = edges.edges_of_pairs
        numbers = [self.used(k) for k in (RADIAL, FEATURES, HARMONICS, MESSAGE)]
        operands = [tensors[n] for group in numbers for n in group]
        call = _compiled(self, next(iter(tensors.values())).dtype)
        operands = [start, order, edges.sender, edges.receiver, *operands]
        wanted = {n: out[n] for n in self.form.wanted}
        shared = self.wanted_at(FEATURES)
        run_threads(call, len(start) - 1, BONDS_PER_THREAD, operands, wanted, shared)

    def wanted_at(self, position: int) -> list[int]:
        return [n for n in self.form.wanted if any(t[position] == n for t in self.form.terms)]

    def source(self, dtype: torch.dtype) -> str:
        read = [self.used(k) for k in (RADIAL, FEATURES, HARMONICS, MESSAGE)]
        r, h, y, f = read
        pointers = self.pointers(("start", "order", "sender", "receiver"), read)
        radial, nodes, harmonics = (self.wanted_at(k) for k in (RADIAL, FEATURES, HARMONICS))
        per_edge = [
            "int64_t e = order[k];",
            *self.rows("H", h, "NODES", "sender[e]"),
            *self.rows("F", f, "ROWS", "receiver[e]"),
            *[f"V *out{n} = (V *)(OUT{n} + sender[e] * NODES * NC);" for n in nodes],
            *self.directions(y),
            *[f"V s{n}[{len(self.entries)}] = {{0}};" for n in harmonics],
            "for (int v = 0; v < NV; v++) {",
            *indented(self.products(radial, nodes, harmonics)),
            "}",
            *[line for n in harmonics for line in self.close(n)],
        ]
        body = [
            "for (int64_t p = first; p < last; p++) {",
            *indented(self.rows("R", r, "PATHS", "p")),
            *[f"  V *out{n} = (V *)(OUT{n} + p * PATHS * NC);" for n in radial],
            *[f"  memset(out{n}, 0, PATHS * NC * sizeof(T));" for n in radial],
            "  for (int64_t k = start[p]; k < start[p + 1]; k++) {",
            *indented(indented(per_edge)),
            "  }",
            "}",
        ]
        return f"{self.head(dtype)}\n{function(pointers, body)}\n"

    def products(self, radial: list[int], nodes: list[int], harmonics: list[int]) -> list[str]:
        """What one edge adds, one vector of channels."""
        lines: list[str] = []
        sums: dict[tuple[tuple[int, int], ...], int] = {}
        totals: dict[str, list[str]] = {}
        for (path, node), entries in self.columns.items():
            own_r, own_h = f"[{path} * NV + v]", f"[{node} * NV + v]"
            ways = [(n, FEATURES, own_r, f"h%d{own_h}") for n in radial]
            ways += [(n, RADIAL, own_h, f"r%d{own_r}") for n in nodes]
            for wanted, other, own, factor in ways:
                for number, terms in self.partners(wanted, other).items():
                    g = self.spread(lines, sums, terms, path, node)
                    totals.setdefault(f"out{wanted}{own}", []).append(f"{factor % number} * {g}")
            for wanted in harmonics:
                for f, terms in self.partners(wanted, MESSAGE).items():
                    product = _sum(f"r{t[RADIAL]}{own_r} * h{t[FEATURES]}{own_h}" for t in terms)
                    name = f"q{wanted}_{f}_{path}_{node}"
                    lines.append(f"V {name} = {product};")
                    lines += [
                        f"s{wanted}[{place}] += {name} * f{f}[{row} * NV + v];"
                        for place, row in entries
                    ]
        return lines + [f"{target} += {_sum(parts)};" for target, parts in totals.items()]

    def spread(
        self,
        lines: list[str],
        sums: dict[tuple[tuple[int, int], ...], int],
        terms: Sequence[tuple[int, ...]],
        path: int,
        node: int,
    ) -> str:
        """Name of ``g`` summed over the pairs (Y, f) of the terms, defined once."""
        pairs = tuple(sorted({(t[HARMONICS], t[MESSAGE]) for t in terms}))
        name = f"g{sums.setdefault(pairs, len(sums))}_{path}_{node}"
        value = _sum(
            f"f{f}[{row} * NV + v] * d{y}_{place}"
            for y, f in pairs
            for place, row in self.columns[path, node]
        )
        line = f"V {name} = {value};"
        if line not in lines:
            lines.append(line)
        return name

    def close(self, wanted: int) -> list[str]:
        """From the derivative by D to the one by Y."""
        by_harmonic: dict[int, list[tuple[float, str]]] = {}
        for place, terms in enumerate(self.entries.values()):
            for m2, c in terms:
                by_harmonic.setdefault(m2, []).append((c, f"s{wanted}[{place}]"))
        return [
            f"OUT{wanted}[e * HARMONICS + {m2}] = total({linear_combination(terms)});"
            for m2, terms in by_harmonic.items()
        ]


@cache
def _compiled(writer: _Messages | _Gradients, dtype: torch.dtype) -> Range:
    return compile_function(writer.source(dtype))
