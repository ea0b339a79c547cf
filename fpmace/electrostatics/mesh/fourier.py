"""Real Fourier transforms of meshes, of which few points and few waves are there.

Atoms fill a part of a padded mesh, and Gaussians leave few of its waves. The transforms go axis by
axis, with the points that hold atoms and the waves that are kept alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Sizes:
    """Of the meshes [g, *points] and of their transforms.

    Attributes:
        points: that hold atoms.
        padded: of the transform.
        kept: largest wave along each axis; half of ``padded``: all waves.
    """

    points: Shape
    padded: Shape
    kept: Shape


def waves(mesh: Tensor, sizes: Sizes) -> Tensor:
    """sum_m mesh exp(-i k.m), [g, *points] -> complex [g, k_y, k_z, k_x].

    Waves along y and x are 0, 1, ..., kept, -kept, ..., -1, along z 0, ..., kept.
    """
    apply: Callable[[Tensor, Sizes], Tensor] = _Waves.apply
    return apply(mesh, sizes)


def values(amplitudes: Tensor, sizes: Sizes) -> Tensor:
    """Re sum_k amplitudes exp(i k.m) over the kept waves and their conjugates; back to points."""
    apply: Callable[[Tensor, Sizes], Tensor] = _Values.apply
    return apply(amplitudes, sizes)


def wave_numbers(sizes: Sizes, device: torch.device) -> list[Tensor]:
    """Whole numbers of the waves along x, y and z, to broadcast over [k_y, k_z, k_x]."""

    def both(kept: int) -> Tensor:
        ahead = torch.arange(kept + 1, dtype=torch.float64, device=device)
        return torch.cat([ahead, -ahead[1:].flip(0)])

    x, y = both(sizes.kept[0]), both(sizes.kept[1])
    z = torch.arange(sizes.kept[2] + 1, dtype=torch.float64, device=device)
    return [x, y[:, None, None], z[:, None]]


class _Waves(torch.autograd.Function):
    @staticmethod
    def forward(mesh: Tensor, sizes: Sizes) -> Tensor:
        padded, kept = sizes.padded, sizes.kept
        along = torch.fft.rfft(mesh, n=padded[2])[..., : kept[2] + 1]
        along = torch.fft.fft(along.transpose(2, 3).contiguous(), n=padded[1])
        along = _keep(along, kept[1]).transpose(1, 3).contiguous()
        return _keep(torch.fft.fft(along, n=padded[0]), kept[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Sizes], output: Tensor) -> None:
        ctx.sizes = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return values(_weigh(grad, 0.5, ctx.sizes), ctx.sizes), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return waves(tangent, ctx.sizes)


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(amplitudes: Tensor, sizes: Sizes) -> Tensor:
        points, padded, kept = sizes.points, sizes.padded, sizes.kept
        along = torch.fft.ifft(_fill(amplitudes, padded[0], kept[0]), norm="forward")
        along = along[..., : points[0]].transpose(1, 3).contiguous()
        along = torch.fft.ifft(_fill(along, padded[1], kept[1]), norm="forward")
        along = along[..., : points[1]].transpose(2, 3).contiguous()
        return torch.fft.irfft(along, n=padded[2], norm="forward")[..., : points[2]].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Sizes], output: Tensor) -> None:
        ctx.sizes = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _weigh(waves(grad, ctx.sizes), 2.0, ctx.sizes), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return values(tangent, ctx.sizes)


def times(amplitudes: Tensor, spectrum: Tensor) -> Tensor:
    """Complex amplitudes times a real spectrum."""
    return torch.view_as_complex(torch.view_as_real(amplitudes) * spectrum[..., None])


def _weigh(amplitudes: Tensor, factor: float, sizes: Sizes) -> Tensor:
    """Waves with a conjugate that is not among them count twice; undone, or done."""
    weight = torch.full_like(amplitudes[0, 0, :, :1].real, factor)
    weight[0] = 1.0
    if 2 * sizes.kept[2] == sizes.padded[2]:
        weight[-1] = 1.0
    return times(amplitudes, weight)


def _keep(amplitudes: Tensor, kept: int) -> Tensor:
    size = amplitudes.shape[-1]
    if 2 * kept == size:
        return amplitudes
    return torch.cat([amplitudes[..., : kept + 1], amplitudes[..., size - kept :]], dim=-1)


def _fill(amplitudes: Tensor, size: int, kept: int) -> Tensor:
    if 2 * kept == size:
        return amplitudes
    gap = amplitudes.new_zeros(*amplitudes.shape[:-1], size - 2 * kept - 1)
    return torch.cat([amplitudes[..., : kept + 1], gap, amplitudes[..., kept + 1 :]], dim=-1)
