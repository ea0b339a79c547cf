"""The convolution's products in plain torch, chunk by chunk; see ``convolution_terms``.

All derivatives that are wanted of a form come from one pass, in which the terms share what they
have in common: ``R h`` of the slots, and ``f`` of the atoms spread to their slots by Y.
Temporaries stay in the cache, and nothing per edge but the operands is kept for the backward.
"""

from __future__ import annotations

from functools import cache

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

_PARTNER = {RADIAL: FEATURES, FEATURES: RADIAL, HARMONICS: MESSAGE, MESSAGE: HARMONICS}


@cache
def _schedule(form: Form, wanted: int) -> tuple[int, tuple[tuple[int, Pairs], ...]]:
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
    sums = [_SUMS[_schedule(form, number)[0]](plan, form, number, pool) for number in form.wanted]
    operands = _Operands(plan, form, pool)
    for chunk in plan.chunks(operands.n_channels):
        rows = _Rows(operands, chunk)
        for total in sums:
            total.start(rows)
        for group in plan.groups:
            shared = _Shared(rows, group)
            for total in sums:
                total.add(shared)
        for total in sums:
            total.stop(rows)
    return [total.result() for total in sums]


KERNELS["torch"] = evaluate


class _Operands:
    """Tensors of the pool by number, flat and ready to be gathered."""

    def __init__(self, plan: Convolution, form: Form, pool: Pool) -> None:
        self.plan = plan
        self.position = {n: place for term in form.terms for place, n in enumerate(term)}
        self.tensors: dict[int, Tensor] = {}
        for number, place in self.position.items():
            x = pool[number]
            if x is None:
                continue
            if place == MESSAGE:
                x = x.index_select(0, plan.edges.atom_order)
            elif place == HARMONICS:
                x = torch.cat([x, x.new_zeros(1, x.shape[1])])
            else:
                self.n_channels = x.shape[2]
                x = x.flatten(1)
            self.tensors[number] = x


class _Rows:
    """What the slots of one chunk see of the operands; gathered when asked for."""

    def __init__(self, operands: _Operands, chunk: Chunk) -> None:
        self.operands, self.chunk, self.n_channels = operands, chunk, operands.n_channels
        self.n_atoms = chunk.last - chunk.first
        self.n_slots = self.n_atoms * chunk.width
        self._found: dict[int, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        """R or h [n_slots, ..., n_channels], Y [n_chunk_atoms, width, n_lm] or f of the chunk."""
        if number not in self._found:
            self._found[number] = self._gather(number)
        return self._found[number]

    def _gather(self, number: int) -> Tensor:
        x, position = self.operands.tensors[number], self.operands.position[number]
        edges, slots = self.operands.plan.edges, self.chunk.slots
        if position == MESSAGE:
            return x[self.chunk.first : self.chunk.last]
        table = (edges.slot_pair, edges.slot_sender, edges.slot_edge)[position]
        rows = x.index_select(0, table[slots])
        if position == HARMONICS:
            return rows.view(self.n_atoms, self.chunk.width, -1)
        return rows.view(self.n_slots, -1, self.n_channels)


class _Shared:
    """Products of one chunk and group, each computed once."""

    def __init__(self, rows: _Rows, group: Group) -> None:
        self.rows, self.group = rows, group
        self._found: dict[Pairs, Tensor] = {}

    def message(self, number: int) -> Tensor:
        """View of f: [n_chunk_atoms, n_harmonics, n_columns * n_channels]."""
        part = self.rows[number][:, self.group.row]
        return part.reshape(self.rows.n_atoms, self.group.n_harmonics, -1)

    def products(self, pairs: Pairs) -> Tensor:
        """``sum R[path] h[m1]`` over the pairs: [n_slots, n_columns, n_channels]."""
        if pairs not in self._found:
            first = self.rows[pairs[0][0]]
            out = first.new_empty(self.rows.n_slots, self.group.n_columns, self.rows.n_channels)
            for segment in self.group.segments:
                view = out[:, segment.column].view(
                    self.rows.n_slots, segment.n_node, segment.n_paths, -1
                )
                for index, (r, h) in enumerate(pairs):
                    left = self.rows[r][:, segment.weight].unsqueeze(1)
                    right = self.rows[h][:, segment.node].unsqueeze(2)
                    if index == 0:
                        torch.mul(left, right, out=view)
                    else:
                        view.addcmul_(left, right)
            self._found[pairs] = out
        return self._found[pairs]

    def to_slots(self, pairs: Pairs) -> Tensor:
        """``sum over m2 of Y f`` over the pairs: [n_slots, n_columns, n_channels]."""
        if pairs not in self._found:
            total: Tensor | None = None
            for y, f in pairs:
                left, right = self.rows[y][:, :, self.group.harmonic], self.message(f)
                if total is None:
                    total = torch.bmm(left, right)
                else:
                    total.baddbmm_(left, right)
            assert total is not None
            self._found[pairs] = total.view(self.rows.n_slots, -1, self.rows.n_channels)
        return self._found[pairs]


class _Sum:
    """One derivative, summed over chunks; a subclass for each position."""

    def __init__(self, plan: Convolution, form: Form, wanted: int, pool: Pool) -> None:
        self.plan = plan
        self.parts = _schedule(form, wanted)[1]
        self.total = self.zeros(pool[wanted], pool)

    def zeros(self, like: Tensor | None, pool: Pool) -> Tensor:
        assert like is not None
        self.shape = like.shape
        return torch.zeros_like(like.flatten(1))

    def start(self, rows: _Rows) -> None:
        """Prepare for a chunk."""

    def add(self, shared: _Shared) -> None:
        raise NotImplementedError

    def stop(self, rows: _Rows) -> None:
        """Finish the chunk."""

    def result(self) -> Tensor:
        return self.total.view(self.shape)


class _MessageSum(_Sum):
    """``F += Y (R h)``, neighbours summed by a matrix product."""

    def zeros(self, like: Tensor | None, pool: Pool) -> Tensor:
        features = next(x for x in pool if x is not None and x.dim() == 3)
        return features.new_zeros(self.plan.edges.n_atoms, self.plan.n_rows, features.shape[2])

    def add(self, shared: _Shared) -> None:
        rows, group = shared.rows, shared.group
        out = self.total[rows.chunk.first : rows.chunk.last, group.row]
        out = out.view(rows.n_atoms, group.n_harmonics, -1)
        for index, (y, pairs) in enumerate(self.parts):
            left = rows[y][:, :, group.harmonic].transpose(1, 2)
            right = shared.products(pairs).view(rows.n_atoms, rows.chunk.width, -1)
            if index == 0:
                torch.bmm(left, right, out=out)
            else:
                out += torch.bmm(left, right)

    def result(self) -> Tensor:
        return self.total.index_select(0, self.plan.edges.atom_place)


class _HarmonicsSum(_Sum):
    """``dY = sum over columns of f (R h)``; each slot is an edge of its own."""

    def zeros(self, like: Tensor | None, pool: Pool) -> Tensor:
        assert like is not None
        return like.new_zeros(like.shape[0] + 1, like.shape[1])

    def add(self, shared: _Shared) -> None:
        rows, group = shared.rows, shared.group
        slots = self.plan.edges.slot_edge[rows.chunk.slots]
        out: Tensor | None = None
        for f, pairs in self.parts:
            left = shared.products(pairs).view(rows.n_atoms, rows.chunk.width, -1)
            right = shared.message(f).transpose(1, 2)
            out = torch.bmm(left, right) if out is None else out.baddbmm_(left, right)
        assert out is not None
        self.total[:, group.harmonic].index_copy_(0, slots, out.view(-1, group.n_harmonics))

    def result(self) -> Tensor:
        return self.total[:-1]


class _RadialSum(_Sum):
    """``dR[path] += sum over m1 of h[m1] (Y f)``."""

    def start(self, rows: _Rows) -> None:
        self.slots = self.total.new_empty(rows.n_slots, *self.shape[1:])

    def add(self, shared: _Shared) -> None:
        for index, (h, pairs) in enumerate(self.parts):
            d = shared.to_slots(pairs)
            for segment in shared.group.segments:
                view = d[:, segment.column].view(len(d), segment.n_node, segment.n_paths, -1)
                target = self.slots[:, segment.weight]
                factors = shared.rows[h][:, segment.node].unsqueeze(2)
                for m in range(segment.n_node):
                    if index == m == 0:
                        torch.mul(view[:, m], factors[:, m], out=target)
                    else:
                        target.addcmul_(view[:, m], factors[:, m])

    def stop(self, rows: _Rows) -> None:
        pairs = self.plan.edges.slot_pair[rows.chunk.slots]
        self.total.index_add_(0, pairs, self.slots.flatten(1))


class _FeaturesSum(_Sum):
    """``dh[m1] += sum over paths of R[path] (Y f)``."""

    def start(self, rows: _Rows) -> None:
        self.slots = self.total.new_zeros(rows.n_slots, *self.shape[1:])

    def add(self, shared: _Shared) -> None:
        for r, pairs in self.parts:
            d = shared.to_slots(pairs)
            for segment in shared.group.segments:
                view = d[:, segment.column].view(len(d), segment.n_node, segment.n_paths, -1)
                target = self.slots[:, segment.node]
                factors = shared.rows[r][:, segment.weight].unsqueeze(2)
                for p in range(segment.n_paths):
                    target.addcmul_(view[:, :, p], factors[:, p])

    def stop(self, rows: _Rows) -> None:
        senders = self.plan.edges.slot_sender[rows.chunk.slots]
        self.total.index_add_(0, senders, self.slots.flatten(1))


_SUMS: tuple[type[_Sum], ...] = (_RadialSum, _FeaturesSum, _HarmonicsSum, _MessageSum)
