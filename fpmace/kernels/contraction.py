"""The symmetric contraction's products in C; see ``fpmace.blocks.contraction_terms``.

The monomials of an output are the leaves of a tree, ``N = c + sum_x A_x N_x`` (Horner's scheme).
One pass from the leaves to the root gives the polynomial, one back its gradient. Derivatives along
directions are carried along, one number N_S for each set S of directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from fpmace.blocks.contraction_plan import ContractionPlan
from fpmace.blocks.contraction_terms import (
    BASIS,
    COEFFICIENTS,
    CONTRACTIONS,
    KIND,
    OUTPUT,
    PolynomialForm,
)
from fpmace.blocks.convolution_terms import Pool
from fpmace.kernels.compiler import Range, compile_function, run_threads
from fpmace.kernels.source import function, header, indented

ATOMS_PER_THREAD = 32
"""Least work that is worth a thread."""

Set = tuple[int, ...]
"""Numbers of directions."""


def evaluate(plan: ContractionPlan, form: PolynomialForm, pool: Pool) -> list[Tensor]:
    """The derivatives ``form.wanted``."""
    tensors = {n: x.contiguous() for n, x in enumerate(pool) if x is not None}
    basis = tensors[form.terms[0][BASIS]]
    n_atoms, _, n_channels = basis.shape
    outputs = (n_atoms, plan.n_outputs, n_channels)
    out = {
        n: torch.zeros_like(tensors[n]) if n in tensors else basis.new_zeros(outputs)
        for n in form.wanted
    }
    summed = {term[COEFFICIENTS] for term in form.terms} & set(form.wanted)
    writer = _Writer(_shape(plan), form, n_channels)
    call = _compiled(writer, basis.dtype)
    operands = [tensors[KIND], *(tensors[n] for n in writer.read)]
    run_threads(call, n_atoms, ATOMS_PER_THREAD, operands, out, summed)
    return [out[n] for n in form.wanted]


CONTRACTIONS["c"] = evaluate


@dataclass(frozen=True)
class _Tree:
    """Nodes, parents before children, and the leaves that hang on each.

    Attributes:
        nodes: (parent or -1, component or output, term of its own coefficient or -1).
        leaves: (term, component) of each node.
    """

    nodes: tuple[tuple[int, int, int], ...]
    leaves: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class _Shape:
    tree: _Tree
    n_components: int
    n_outputs: int
    n_terms: int


_shapes: dict[int, tuple[ContractionPlan, _Shape]] = {}
"""By the identity of a plan, which is held so that no other plan gets the same."""


def _shape(plan: ContractionPlan) -> _Shape:
    if id(plan) not in _shapes:
        shape = _Shape(_tree(plan), plan.n_components, plan.n_outputs, len(plan.polynomials))
        _shapes[id(plan)] = plan, shape
    return _shapes[id(plan)][1]


def _tree(plan: ContractionPlan) -> _Tree:
    terms = {item: number for number, item in enumerate(plan.polynomials)}
    inner = {(m, t[:k]) for m, t in terms for k in range(len(t))}
    number: dict[tuple[int, tuple[int, ...]], int] = {}
    nodes: list[tuple[int, int, int]] = []
    leaves: list[tuple[tuple[int, int], ...]] = []
    for m, prefix in sorted(inner, key=lambda item: (item[0], len(item[1]), item[1])):
        number[m, prefix] = len(nodes)
        parent = number[m, prefix[:-1]] if prefix else -1
        nodes.append((parent, prefix[-1] if prefix else m, terms.get((m, prefix), -1)))
        leaves.append(
            tuple(
                (terms[m, (*prefix, x)], x)
                for x in range(plan.n_components)
                if (m, (*prefix, x)) in terms and (m, (*prefix, x)) not in inner
            )
        )
    return _Tree(tuple(nodes), tuple(leaves))


@dataclass(frozen=True)
class _Writer:
    """Source of the loop over atoms for the derivatives ``form.wanted``."""

    shape: _Shape
    form: PolynomialForm
    n_channels: int

    @property
    def read(self) -> list[int]:
        """Numbers of the tensors that are read."""
        found = set()
        for term in self.form.terms:
            lone = [n for n in self.form.wanted if n in term]
            found |= {n for n in term for other in lone if n != other}
            found |= {term[BASIS]} if lone else set()
        return sorted(found)

    def source(self, dtype: torch.dtype) -> str:
        shape = self.shape
        tables = self._tables()
        sizes = {
            "NODES": len(shape.tree.nodes),
            "TERMS": shape.n_terms,
            "COMPONENTS": shape.n_components,
            "OUTPUTS": shape.n_outputs,
        }
        pointers = [("const int64_t", "kind")]
        pointers += [("const T", f"X{n}") for n in self.read]
        pointers += [("T", f"OUT{n}") for n in self.form.wanted]
        steps: list[str] = []
        for group in self._groups():
            steps += ["{", *indented(_Sweep(self, group).lines()), "}"]
        body = ["for (int64_t i = first; i < last; i++) for (int v = 0; v < NV; v++) {"]
        body += [f"  const V *x{n} = VEC(X{n} + {self._row(n)}) + v;" for n in self.read]
        body += [f"  V *out{n} = (V *)(OUT{n} + {self._row(n)}) + v;" for n in self.form.wanted]
        body += [*indented(steps), "}"]
        return "\n".join(
            [header(self.n_channels, dtype, sizes), *tables, function(pointers, body)]
        )

    def _row(self, number: int) -> str:
        for term in self.form.terms:
            if number in term:
                place = term.index(number)
                if place == COEFFICIENTS:
                    return "kind[i] * TERMS * NC"
                return f"i * {'OUTPUTS' if place == OUTPUT else 'COMPONENTS'} * NC"
        raise KeyError(number)

    def _groups(self) -> list[tuple[tuple[int, ...], ...]]:
        """Terms that share a tree of values: the same c, A and directions."""
        found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for term in self.form.terms:
            if any(n in term for n in self.form.wanted):
                found.setdefault((term[COEFFICIENTS], *term[BASIS:]), []).append(term)
        return [tuple(terms) for terms in found.values()]

    def _tables(self) -> list[str]:
        nodes, leaves = self.shape.tree.nodes, self.shape.tree.leaves
        ends = [0]
        for group in leaves:
            ends.append(ends[-1] + len(group))
        flat = [leaf for group in leaves for leaf in group] or [(0, 0)]
        columns = {
            "PARENT": [node[0] for node in nodes],
            "FACTOR": [node[1] for node in nodes],
            "OWN": [node[2] for node in nodes],
            "LEAF": ends,
            "TERM": [term for term, _ in flat],
            "COMPONENT": [x for _, x in flat],
        }
        return [
            f"static const int32_t {name}[] = {{{', '.join(map(str, values))}}};"
            for name, values in columns.items()
        ]


class _Sweep:
    """C for terms that differ in g alone: values from the leaves up, then derivatives down."""

    def __init__(self, writer: _Writer, terms: tuple[tuple[int, ...], ...]) -> None:
        self.wanted = [n for n in writer.form.wanted if any(n in term for term in terms)]
        self.terms = terms
        self.c, _, self.a, *directions = terms[0]
        self.directions = tuple(directions)
        self.sets = [
            s for k in range(len(self.directions) + 1) for s in combinations(self.directions, k)
        ]

    def lines(self) -> list[str]:
        outputs = [term[OUTPUT] for term in self.terms if term[OUTPUT] in self.wanted]
        inner = [n for n in (self.a, *self.directions) if n in self.wanted]
        lines: list[str] = []
        if outputs or inner:
            lines += self._up()
        top = self._name("N", self.directions)
        for number in outputs:
            lines.append(
                "for (int n = 0; n < NODES; n++) if (PARENT[n] < 0) "
                f"out{number}[FACTOR[n] * NV] += {top}[n];"
            )
        if inner or self.c in self.wanted:
            lines += self._down(inner)
        return lines

    @staticmethod
    def _name(kind: str, which: Set) -> str:
        return "_".join([kind, *map(str, which)])

    def _value(self, which: Set, place: str) -> str:
        """A_x, or the component of the one direction in ``which``."""
        return f"x{which[0] if which else self.a}[{place} * NV]"

    def _up(self) -> list[str]:
        """N_S of all nodes: ``N_S += child_S A_x + sum_d child_(S-d) d_x``."""
        c = f"x{self.c}"
        lines = [f"V {self._name('N', s)}[NODES];" for s in self.sets]
        lines += [
            f"memset({self._name('N', s)}, 0, sizeof({self._name('N', s)}));" for s in self.sets
        ]
        lines.append("for (int n = NODES - 1; n >= 0; n--) {")
        for s in self.sets:
            lines.append(f"  V {self._name('M', s)} = {self._name('N', s)}[n];")
        lines.append(f"  if (OWN[n] >= 0) M += {c}[OWN[n] * NV];")
        lines.append("  for (int k = LEAF[n]; k < LEAF[n + 1]; k++) {")
        for s in self.sets:
            if len(s) < 2:
                value = self._value(s, "COMPONENT[k]")
                lines.append(f"    {self._name('M', s)} += {c}[TERM[k] * NV] * {value};")
        lines.append("  }")
        lines += [f"  {self._name('N', s)}[n] = {self._name('M', s)};" for s in self.sets]
        lines.append("  int p = PARENT[n];")
        lines.append("  if (p >= 0) {")
        for s in self.sets:
            parts = [f"{self._name('M', s)} * {self._value((), 'FACTOR[n]')}"]
            parts += [
                f"{self._name('M', _less(s, d))} * {self._value((d,), 'FACTOR[n]')}" for d in s
            ]
            lines.append(f"    {self._name('N', s)}[p] += {' + '.join(parts)};")
        return [*lines, "  }", "}"]

    def _down(self, inner: list[int]) -> list[str]:
        """Derivatives by N_S from parents to children, by A, directions and c on the way."""
        gs = [f"x{term[OUTPUT]}[FACTOR[n] * NV]" for term in self.terms]
        lines = [f"V {self._name('D', s)}[NODES];" for s in self.sets]
        lines.append("for (int n = 0; n < NODES; n++) {")
        lines += ["  int p = PARENT[n];", "  if (p < 0) {"]
        for s in self.sets:
            value = " + ".join(gs) if s == self.directions else "(V){0}"
            lines.append(f"    {self._name('D', s)}[n] = {value};")
        lines.append("  } else {")
        for s in self.sets:
            parts = [f"{self._name('D', s)}[p] * {self._value((), 'FACTOR[n]')}"]
            parts += [
                f"{self._name('D', _more(s, d))}[p] * {self._value((d,), 'FACTOR[n]')}"
                for d in self.directions
                if d not in s
            ]
            lines.append(f"    {self._name('D', s)}[n] = {' + '.join(parts)};")
        for number in inner:
            parts = [
                f"{self._name('D', s)}[p] * {self._name('N', _less(s, number))}[n]"
                for s in self.sets
                if number == self.a or number in s
            ]
            lines.append(f"    out{number}[FACTOR[n] * NV] += {' + '.join(parts)};")
        lines.append("  }")
        lines += [f"  V {self._name('B', s)} = {self._name('D', s)}[n];" for s in self.sets]
        if self.c in self.wanted:
            lines.append(f"  if (OWN[n] >= 0) out{self.c}[OWN[n] * NV] += B;")
        lines.append("  for (int k = LEAF[n]; k < LEAF[n + 1]; k++) {")
        lines += indented(indented(self._leaf(inner)))
        return [*lines, "  }", "}"]

    def _leaf(self, inner: list[int]) -> list[str]:
        lines = []
        for number in inner:
            b = self._name("B", () if number == self.a else (number,))
            lines.append(f"out{number}[COMPONENT[k] * NV] += {b} * x{self.c}[TERM[k] * NV];")
        if self.c in self.wanted:
            parts = [
                f"{self._name('B', s)} * {self._value(s, 'COMPONENT[k]')}"
                for s in self.sets
                if len(s) < 2
            ]
            lines.append(f"out{self.c}[TERM[k] * NV] += {' + '.join(parts)};")
        return lines


def _less(which: Set, number: int) -> Set:
    return tuple(n for n in which if n != number)


def _more(which: Set, number: int) -> Set:
    return tuple(sorted((*which, number)))


@cache
def _compiled(writer: _Writer, dtype: torch.dtype) -> Range:
    return compile_function(writer.source(dtype))
