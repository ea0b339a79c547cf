"""Tables of radial functions: splines of the distance in place of networks, for inference.

Between knots a quintic Hermite polynomial takes value, first and second derivative at both; it has
two continuous derivatives, so forces are smooth and exact derivatives of the energy, and second
derivatives exist. Its error falls with the sixth power of the distance of the knots.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fpmace.errors import ConfigError

FIRST = 0.2
"""Shortest distance of a table in Angstrom; below, the first polynomial goes on."""

KNOTS = (64, 128, 256, 512, 1024)
"""Numbers of intervals that are tried."""

LARGEST = 2**30
"""Bytes of the largest table."""

Functions = Callable[[Tensor, Tensor, Tensor], list[Tensor]]
"""Distances [n] and elements at both ends [n] to functions [n, n_functions] in several parts."""

Sum = Callable[[Tensor, Tensor, Tensor], Tensor]


class RadialTables(nn.Module):
    """Splines in place of functions of the distance and perhaps of the elements.

    Args:
        functions: what is tabulated, in float64.
        r_max: where the tables end, in Angstrom; the functions are zero beyond.
        n_elements: number of elements whose pairs have tables of their own; 1 if the functions do
            not depend on elements.
        tolerance: of the largest absolute value of a part; as many knots are taken as it needs.

    Attributes:
        error: the largest deviation half-way between knots, as a part of the largest value.
        n_intervals: number of intervals.

    Raises:
        ConfigError: the tables would be too large.
    """

    kernel: str = "torch"

    def __init__(
        self, functions: Functions, *, r_max: float, n_elements: int, tolerance: float
    ) -> None:
        super().__init__()
        self.r_max, self.n_elements = r_max, n_elements
        probe = functions(*self._points(torch.tensor([0.5 * r_max], dtype=torch.float64), 0))
        self.n_parts, width = len(probe), sum(x.shape[1] for x in probe)
        if n_elements**2 * KNOTS[-1] * 3 * width * 8 > LARGEST:
            raise ConfigError(
                f"{n_elements**2} pairs of elements with {width} functions may need tables of "
                f"more than {LARGEST / 2**30:g} GiB; leave them out",
                where="radial_tables",
            )
        for self.n_intervals in KNOTS:
            self.error = self._fill(functions)
            if self.error <= tolerance:
                break

    def forward(self, lengths: Tensor, source: Tensor, target: Tensor) -> list[Tensor]:
        """Functions [n, n_functions] of distances [n] in Angstrom and elements [n] int64."""
        step = (self.r_max - FIRST) / self.n_intervals
        x = (lengths - FIRST) / step
        interval = x.detach().clamp(0, self.n_intervals - 1).to(torch.int64)
        weights = _hermite(x - interval, step)
        weights = weights * (lengths < self.r_max).to(weights.dtype).unsqueeze(-1)
        first = interval
        if self.n_elements > 1:
            kind = source * self.n_elements + target
            first = first + kind * (self.n_intervals + 1)
        out = []
        for part in range(self.n_parts):
            table = getattr(self, f"table_{part}")
            out.append(_Weighted.apply(weights, 3 * first, table, self.kernel, False))
        return out

    def _points(self, r: Tensor, kind: int) -> tuple[Tensor, Tensor, Tensor]:
        source, target = divmod(kind, self.n_elements)
        like = torch.zeros_like(r, dtype=torch.int64)
        return r, like + source, like + target

    def _fill(self, functions: Functions) -> float:
        """Make the tables; return the largest error half-way between knots."""
        r = torch.linspace(FIRST, self.r_max, self.n_intervals + 1, dtype=torch.float64)
        # Just inside, where the functions and their derivatives are those of the inside.
        r[-1] = torch.nextafter(r[-1], r[-2])
        middle = 0.5 * (r[:-1] + r[1:])
        kinds = range(self.n_elements**2)
        knots: list[list[Tensor]] = [[] for _ in range(self.n_parts)]
        expected: list[list[Tensor]] = [[] for _ in range(self.n_parts)]
        for kind in kinds:
            for part, rows in enumerate(_with_derivatives(functions, self._points(r, kind))):
                knots[part].append(rows)
            for part, rows in enumerate(functions(*self._points(middle, kind))):
                expected[part].append(rows)
        for part, tables in enumerate(knots):
            table = torch.cat(tables).flatten(0, 1)
            self.register_buffer(f"table_{part}", table, persistent=False)
        errors = [0.0]
        for kind in kinds:
            for part, found in enumerate(self(*self._points(middle, kind))):
                largest = max(float(rows.abs().max()) for rows in expected[part])
                error = float((found - expected[part][kind]).abs().max())
                errors.append(error / max(largest, 1e-300))
        return max(errors)


def _with_derivatives(functions: Functions, points: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Value, first and second derivative at each point, [n, 3, n_functions] for each part."""
    r, *ends = points
    r = r.clone().requires_grad_(True)
    with torch.enable_grad():
        out = []
        for values in functions(r, *ends):
            slopes = _slopes(values, r)
            rows = torch.stack([values, slopes, _slopes(slopes, r)], dim=1)
            out.append(rows.detach())
    return out


def _slopes(values: Tensor, r: Tensor) -> Tensor:
    """Derivatives of [n, n_functions] by the distance [n] that each row belongs to.

    ``g = sum_u c_u f'_u`` is differentiated by c.
    """
    c = torch.ones_like(values, requires_grad=True)
    grad = partial(torch.autograd.grad, create_graph=True, materialize_grads=True)
    (combined,) = grad(values, r, c)
    (slopes,) = grad(combined.sum(), c)
    return slopes


def _hermite(t: Tensor, step: float) -> Tensor:
    """Weights [n, 6] of value, first and second derivative at both ends of an interval.

    Args:
        t: [n] place in the interval, from 0 to 1.
        step: length of the interval.
    """
    s = 1.0 - t
    t3, s3 = t**3, s**3
    half = 0.5 * step**2
    return torch.stack(
        [
            s3 * (1.0 + t * (3.0 + 6.0 * t)),
            s3 * t * (1.0 + 3.0 * t) * step,
            s3 * t**2 * half,
            t3 * (1.0 + s * (3.0 + 6.0 * s)),
            -t3 * s * (1.0 + 3.0 * s) * step,
            t3 * s**2 * half,
        ],
        dim=-1,
    )


def _sum_rows(weights: Tensor, first: Tensor, table: Tensor) -> Tensor:
    """``sum_k w[n, k] T[first[n] + k]``: [n, 6] to [n, n_functions]."""
    rows = first.unsqueeze(-1) + torch.arange(6, device=first.device)
    return nn.functional.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


def _dot_rows(cotangent: Tensor, first: Tensor, table: Tensor) -> Tensor:
    """``sum_u g[n, u] T[first[n] + k, u]``: [n, n_functions] to [n, 6]."""
    dots = [(cotangent * table.index_select(0, first + k)).sum(-1) for k in range(6)]
    return torch.stack(dots, dim=-1)


TABLES: dict[str, tuple[Sum, Sum]] = {"torch": (_sum_rows, _dot_rows)}
"""Implementations by name: the sum over rows and its transpose."""


class _Weighted(torch.autograd.Function):
    """The sum over rows of a table, or its transpose; each is the other's derivative."""

    @staticmethod
    def forward(x: Tensor, first: Tensor, table: Tensor, kernel: str, transpose: bool) -> Tensor:
        return TABLES[kernel if x.device.type == "cpu" else "torch"][transpose](x, first, table)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, first, table, ctx.kernel, ctx.transpose = inputs
        ctx.save_for_backward(first, table)
        ctx.save_for_forward(first, table)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        made = _Weighted.apply(cotangent, *ctx.saved_tensors, ctx.kernel, not ctx.transpose)
        return made, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        made: Tensor = _Weighted.apply(tangent, *ctx.saved_tensors, ctx.kernel, ctx.transpose)
        return made

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        rows = map(partial(_apply, rest), x.unbind(in_dims[0]))
        return torch.stack(list(rows)), 0


def _apply(rest: tuple[Any, ...], x: Tensor) -> Tensor:
    made: Tensor = _Weighted.apply(x, *rest)
    return made
