"""The convolution's products in plain torch, chunk by chunk; see ``convolution_terms``.

Messages are summed uncoupled, ``F[i, m2, m1, path] = sum_j Y[m2] R[path] h[m1]``, and coupled atom
by atom.

All derivatives that are wanted of a form come from one pass, in which the terms share what they
have in common: ``R h`` of the slots, and ``f`` of the atoms spread to their slots by Y.
Temporaries stay in the cache, and nothing per edge but the operands is kept for the backward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fpmace.blocks.convolution_terms import (
    FEATURES,
    HARMONICS,
    KERNELS,
    MESSAGE,
    RADIAL,
    Convolution,
    Form,
    Group,
    Pool,
)
from fpmace.blocks.edges import Chunk

Pairs = tuple[tuple[int, int], ...]
"""Numbers of (R, h) or of (Y, f) whose products are summed."""

Parts = tuple[tuple[int, Pairs], ...]
"""What sums over pairs are multiplied with, and the pairs."""

_PARTNER = {RADIAL: FEATURES, FEATURES: RADIAL, HARMONICS: MESSAGE, MESSAGE: HARMONICS}


@cache
def _schedule(form: Form, wanted: int) -> tuple[int, Parts]:
    """Position of ``wanted``, and by what the sum over pairs is multiplied to give it.

    A message is ``sum Y (sum R h)``, a gradient of Y ``sum f (sum R h)``, one of R
    ``sum h (sum Y f)`` and one of h ``sum R (sum Y f)``.
    """
    terms = [term for term in form.terms if wanted in term]
    position = terms[0].index(wanted)
    partner = _PARTNER[position]
    first = RADIAL if partner in (HARMONICS, MESSAGE) else HARMONICS
    pairs: dict[int, list[tuple[int, int]]] = {}
    for term in terms:
        pairs.setdefault(term[partner], []).append((term[first], term[first + 1]))
    return position, tuple((number, tuple(items)) for number, items in pairs.items())


def evaluate(plan: Convolution, form: Form, pool: Pool) -> list[Tensor]:
    """The derivatives ``form.wanted``; a :class:`~fpmace.blocks.convolution_terms.Kernel`."""
    operands = _Operands(plan, form, pool)
    sums = [_SUMS[_schedule(form, n)[0]](operands, *_schedule(form, n), n) for n in form.wanted]
    for chunk in plan.chunks(operands.n_channels):
        rows = _Rows(operands, chunk)
        for total in sums:
            total.start(rows)
        for group in plan.groups:
            rows.enter(group)
            for total in sums:
                total.add(rows, group)
        for total in sums:
            total.stop(rows)
    return [total.result() for total in sums]


KERNELS["torch"] = evaluate


class _Operands:
    """Tensors of the pool by number, flat and ready to be gathered."""

    def __init__(self, plan: Convolution, form: Form, pool: Pool) -> None:
        self.plan, self.pool = plan, pool
        self.position = {n: place for term in form.terms for place, n in enumerate(term)}
        self.tensors: dict[int, Tensor] = {}
        for number, place in self.position.items():
            x = pool[number]
            if x is None:
                continue
            if place == MESSAGE:
                x = plan.coupling.T @ x.index_select(0, plan.edges.slots.atom_order)
            elif place == HARMONICS:
                x = torch.cat([x, x.new_zeros(1, x.shape[1])])
            else:
                self.n_channels = x.shape[2]
                x = x.flatten(1)
            self.tensors[number] = x

    def table(self, position: int) -> Tensor:
        """Which row of R, h or Y each slot sees."""
        slots = self.plan.edges.slots
        return (slots.pair, slots.sender, slots.edge)[position]


class _Rows:
    """What the slots of one chunk see of the operands, and products of these in one group.

    Gathered and computed when asked for, each once.
    """

    def __init__(self, operands: _Operands, chunk: Chunk) -> None:
        self.operands, self.chunk, self.n_channels = operands, chunk, operands.n_channels
        self.n_atoms = chunk.last - chunk.first
        self.n_slots = self.n_atoms * chunk.width
        self._rows: dict[int, Tensor] = {}

    def enter(self, group: Group) -> None:
        """Start on another group."""
        self.group = group
        self._products: dict[Pairs, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        """R or h [n_slots, ..., n_channels], Y [n_chunk_atoms, width, n_lm] or f of the chunk."""
        if number not in self._rows:
            x, position = self.operands.tensors[number], self.operands.position[number]
            if position == MESSAGE:
                rows = x[self.chunk.first : self.chunk.last]
            else:
                rows = x.index_select(0, self.operands.table(position)[self.chunk.slots])
                if position == HARMONICS:
                    rows = rows.view(self.n_atoms, self.chunk.width, -1)
                else:
                    rows = rows.view(self.n_slots, -1, self.n_channels)
            self._rows[number] = rows
        return self._rows[number]

    def message(self, number: int) -> Tensor:
        """View of f: [n_chunk_atoms, n_harmonics, n_columns * n_channels]."""
        return self[number][:, self.group.row].reshape(self.n_atoms, self.group.n_harmonics, -1)

    def products(self, pairs: Pairs) -> Tensor:
        """``sum R[path] h[m1]`` over the pairs: [n_chunk_atoms, width, n_columns * n_channels]."""
        if pairs not in self._products:
            like = self[pairs[0][0]]
            out = like.new_empty(self.n_slots, self.group.n_columns, self.n_channels)
            for segment in self.group.segments:
                view = segment.view(out)
                for index, (r, h) in enumerate(pairs):
                    left = self[r][:, segment.weight].unsqueeze(1)
                    right = self[h][:, segment.node].unsqueeze(2)
                    if index == 0:
                        torch.mul(left, right, out=view)
                    else:
                        view.addcmul_(left, right)
            self._products[pairs] = out.view(self.n_atoms, self.chunk.width, -1)
        return self._products[pairs]

    def spread(self, pairs: Pairs) -> Tensor:
        """``sum over m2 of Y f`` over the pairs: [n_slots, n_columns, n_channels]."""
        if pairs not in self._products:
            terms = [
                torch.bmm(self[y][:, :, self.group.harmonic], self.message(f)) for y, f in pairs
            ]
            self._products[pairs] = sum(terms[1:], terms[0]).view(
                self.n_slots, -1, self.n_channels
            )
        return self._products[pairs]


class _Sum:
    """One derivative, summed over chunks; a subclass for each position."""

    def __init__(self, operands: _Operands, position: int, parts: Parts, wanted: int) -> None:
        self.operands, self.position, self.parts = operands, position, parts
        self.total = self.zeros(operands.pool[wanted])

    def zeros(self, like: Any) -> Tensor:
        raise NotImplementedError

    def start(self, rows: _Rows) -> None:
        """Prepare for a chunk."""

    def add(self, rows: _Rows, group: Group) -> None:
        raise NotImplementedError

    def stop(self, rows: _Rows) -> None:
        """Finish the chunk."""

    def result(self) -> Tensor:
        return self.total


class _MessageSum(_Sum):
    """``F += Y (R h)``, neighbours summed by a matrix product."""

    def zeros(self, like: Any) -> Tensor:
        plan, features = self.operands.plan, next(iter(self.operands.tensors.values()))
        n_rows = plan.coupling.shape[1]
        return features.new_zeros(plan.edges.n_atoms, n_rows, self.operands.n_channels)

    def add(self, rows: _Rows, group: Group) -> None:
        out = self.total[rows.chunk.first : rows.chunk.last, group.row]
        out = out.view(rows.n_atoms, group.n_harmonics, -1)
        for index, (y, pairs) in enumerate(self.parts):
            left, right = rows[y][:, :, group.harmonic].transpose(1, 2), rows.products(pairs)
            if index == 0:
                torch.bmm(left, right, out=out)
            else:
                out += torch.bmm(left, right)

    def result(self) -> Tensor:
        plan = self.operands.plan
        return plan.coupling @ self.total.index_select(0, plan.edges.slots.atom_place)


class _HarmonicsSum(_Sum):
    """``dY = sum over columns of f (R h)``; each slot is an edge of its own."""

    def zeros(self, like: Any) -> Tensor:
        return like.new_zeros(like.shape[0] + 1, like.shape[1])

    def add(self, rows: _Rows, group: Group) -> None:
        terms = [
            torch.bmm(rows.products(pairs), rows.message(f).transpose(1, 2))
            for f, pairs in self.parts
        ]
        values = sum(terms[1:], terms[0]).view(-1, group.n_harmonics)
        slots = self.operands.table(HARMONICS)[rows.chunk.slots]
        self.total[:, group.harmonic].index_copy_(0, slots, values)

    def result(self) -> Tensor:
        return self.total[:-1]


class _SlotSum(_Sum):
    """``dR[path] += sum over m1 of h[m1] (Y f)`` and ``dh[m1] += sum over paths of R (Y f)``."""

    def zeros(self, like: Any) -> Tensor:
        self.shape = like.shape
        return torch.zeros_like(like.flatten(1))

    def start(self, rows: _Rows) -> None:
        self.slots = self.total.new_zeros(rows.n_slots, *self.shape[1:])

    def add(self, rows: _Rows, group: Group) -> None:
        for number, pairs in self.parts:
            spread = rows.spread(pairs)
            for segment in group.segments:
                view, own, other = segment.view(spread), segment.node, segment.weight
                if self.position == RADIAL:
                    view, own, other = view.transpose(1, 2), other, own
                target, factors = self.slots[:, own], rows[number][:, other].unsqueeze(2)
                for k in range(factors.shape[1]):
                    target.addcmul_(view[:, :, k], factors[:, k])

    def stop(self, rows: _Rows) -> None:
        table = self.operands.table(self.position)[rows.chunk.slots]
        self.total.index_add_(0, table, self.slots.flatten(1))

    def result(self) -> Tensor:
        return self.total.view(self.shape)


_SUMS: tuple[type[_Sum], ...] = (_SlotSum, _SlotSum, _HarmonicsSum, _MessageSum)
