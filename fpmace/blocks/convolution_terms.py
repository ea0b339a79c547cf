"""The edge convolution as a form that is linear in each operand, and all its derivatives.

With the radial weights R of an edge, the features h of its sender, its harmonics Y and a cotangent
f of the messages,

``S(R, h, Y, f) = sum_ij C[m1, m2, m3] R[path, u] h[j, u, m1] Y[m2] f[i, m3, path, u]``

summed over paths (l1, l2 -> l3) with their coupling coefficients C.
The message is the derivative of S by f; three more products are its derivatives by R, h and Y.
Since S is linear in each operand, the derivative of any of the four is again one of the four with
one operand exchanged. A :class:`Form` is a sum of such S over a pool of tensors; differentiating
one gives another, to any order, in reverse and forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fpmace.blocks.edges import Chunk, EdgeLayout
from fpmace.errors import ConfigError

Term = tuple[int, int, int, int]
"""Numbers of the tensors of a pool that stand for R, h, Y and f in one S."""

RADIAL, FEATURES, HARMONICS, MESSAGE = range(4)
"""Positions in a :data:`Term`."""

Pool = tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Paths that share l1 and l2.

    Attributes:
        node: components of h.
        weight: paths in R.
        column: columns of the group's products, in units of channels; m1 outer, path inner.
    """

    node: slice
    weight: slice
    column: slice

    def view(self, columns: Tensor) -> Tensor:
        """[n_slots, n_columns, n_channels] as [n_slots, m1, path, n_channels]."""
        shape = (len(columns), self.node.stop - self.node.start, -1, columns.shape[2])
        return columns[:, self.column].view(shape)


@dataclass(frozen=True, slots=True)
class Group:
    """Segments that share l2.

    Attributes:
        harmonic: components of Y.
        row: rows of uncoupled messages; m2 outer, then the group's columns.
        n_columns: number of columns, in units of channels.
    """

    harmonic: slice
    row: slice
    n_columns: int
    segments: tuple[Segment, ...]

    @property
    def n_harmonics(self) -> int:
        return self.harmonic.stop - self.harmonic.start


Coupling = tuple[int, int, int, int, float]
"""Row of f, path in R, component of h, component of Y, coefficient."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """What a convolution needs besides its operands.

    The operands are R [n_pairs, n_paths, n_channels], h [n_atoms, n_components, n_channels],
    Y [n_edges, (max_ell+1)^2] and f [n_atoms, n_rows, n_channels].

    Attributes:
        edges: connectivity.
        groups: how uncoupled messages are laid out.
        coupling: [n_rows, uncoupled rows].
        couplings: the same, one by one.
    """

    edges: EdgeLayout
    groups: tuple[Group, ...]
    coupling: Tensor
    couplings: tuple[Coupling, ...]

    def chunks(self, n_channels: int) -> Iterator[Chunk]:
        """Chunks whose temporaries have a size that suits the cache."""
        return self.edges.slots.pieces(CHUNK_SIZE // n_channels)


CHUNK_SIZE = 32768
"""Slots times channels worked on at once on a CPU; measured best with 10 paths."""


@dataclass(frozen=True, slots=True)
class Form:
    """Derivatives of a sum of S.

    Attributes:
        terms: the S that are summed.
        wanted: numbers of the tensors by which the sum is differentiated; none of them occurs in
            two places of a term.
    """

    terms: tuple[Term, ...]
    wanted: tuple[int, ...]

    def exchanged(self, partner: Mapping[int, int], wanted: tuple[int, ...]) -> Form:
        """The sum over terms and over their tensors with a partner, exchanged for it."""
        terms = tuple(
            tuple(partner[n] if n == old else n for n in term)
            for term in self.terms
            for old in term
            if old in partner
        )
        used = {number for term in terms for number in term}
        return Form(terms, tuple(n for n in wanted if n in used))  # type: ignore[arg-type]


class Kernel(Protocol):
    """Evaluates forms without being differentiable itself."""

    def __call__(self, plan: Convolution, form: Form, pool: Pool) -> list[Tensor]:
        """The derivatives ``form.wanted``; the one number without a tensor is a message."""
        ...


def kernel_of(products: Sequence[Callable[..., Tensor]]) -> Kernel:
    """Kernel made of the four products, each evaluated by itself.

    Args:
        products: dS/dR of (plan, h, Y, f), dS/dh of (plan, R, Y, f), dS/dY of (plan, R, h, f) and
            dS/df of (plan, R, h, Y).
    """

    def kernel(plan: Convolution, form: Form, pool: Pool) -> list[Tensor]:
        out = []
        for number in form.wanted:
            parts = [
                products[term.index(number)](plan, *(pool[n] for n in term if n != number))
                for term in form.terms
                if number in term
            ]
            out.append(sum(parts[1:], parts[0]))
        return out

    return kernel


KERNELS: dict[str, Kernel] = {}
"""Implementations by name. Another one is entered here and named as ``EdgeConvolution.kernel``;
``fpmace.testing.convolution.check_kernel`` checks it."""


def convolve(
    r: Tensor, h: Tensor, harmonics: Tensor, plan: Convolution, kernel: str = "torch"
) -> Tensor:
    """Messages [n_atoms, n_rows, n_channels], differentiable to any order.

    Args:
        r: [n_pairs, n_paths, n_channels] radial weights of the bonds, in the order of the groups.
        h: [n_atoms, n_components, n_channels] features of the senders.
        harmonics: [n_edges, (max_ell+1)^2].
        plan: connectivity and paths.
        kernel: name in :data:`KERNELS`.

    Raises:
        ConfigError: for a name that is not there.
    """
    if kernel not in KERNELS:
        raise ConfigError(f"kernel: no convolution named {kernel!r} (known: {', '.join(KERNELS)})")
    form = Form(((0, 1, 2, 3),), (3,))
    (message,) = Derivatives.apply(KERNELS[kernel], plan, form, r, h, harmonics, None)
    return message


class Derivatives(torch.autograd.Function):
    """Evaluation of a form; its derivatives are forms over a larger pool.

    Of the form it uses ``wanted`` and ``exchanged``; kernel and plan are handed through.
    """

    @staticmethod
    def forward(
        kernel: Kernel, plan: Convolution, form: Form, *pool: Tensor | None
    ) -> tuple[Tensor, ...]:
        return tuple(kernel(plan, form, pool))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.kernel, ctx.plan, ctx.form, *pool = inputs
        ctx.save_for_backward(*pool)
        ctx.save_for_forward(*pool)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        pool = ctx.saved_tensors  # read once, as checkpoints allow no more
        numbers = range(len(pool))
        needed = tuple(n for n in numbers if ctx.needs_input_grad[3 + n])
        found = _exchange(ctx, pool, ctx.form.wanted, cotangents, needed)
        return (None, None, None, *(found.get(n) for n in numbers))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        pool, wanted = ctx.saved_tensors, ctx.form.wanted
        found = _exchange(ctx, pool, range(len(pool)), tangents[3:], wanted)
        return tuple(found[n] if n in found else torch.zeros_like(pool[n]) for n in wanted)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        fixed, pool, dims = inputs[:3], inputs[3:], in_dims[3:]
        rows = [
            Derivatives.apply(
                *fixed,
                *(
                    x if dim is None else x.select(dim, index)
                    for x, dim in zip(pool, dims, strict=True)
                ),
            )
            for index in range(info.batch_size)
        ]
        out = tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
        return out, (0,) * len(out)


def _exchange(
    ctx: Any,
    pool: Pool,
    numbers: Iterable[int],
    tensors: Iterable[Tensor | None],
    wanted: tuple[int, ...],
) -> dict[int, Tensor]:
    """Evaluate the form with each of ``numbers`` exchanged for its tensor, if it has one."""
    pairs = [(n, x) for n, x in zip(numbers, tensors, strict=True) if x is not None]
    partner = {n: len(pool) + place for place, (n, _) in enumerate(pairs)}
    form = ctx.form.exchanged(partner, wanted)
    if not form.wanted:
        return {}
    values = Derivatives.apply(ctx.kernel, ctx.plan, form, *pool, *(x for _, x in pairs))
    return dict(zip(form.wanted, values, strict=True))
