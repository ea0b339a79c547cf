"""Convolutions with the Coulomb kernel of two Gaussians on a mesh, in three boundary conditions.

A spectrum holds the Fourier transform of the kernel, divided by that of the splines of the
spreading and of the gathering, so that a sum over the mesh is one real FFT, a product and a real
FFT back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import pi, prod, sqrt

import torch
from torch import Tensor

from fpmace.electrostatics.kspace import reciprocal_cell, taper
from fpmace.electrostatics.mesh.fourier import Sizes, times, values, wave_numbers, waves
from fpmace.electrostatics.mesh.splines import spline_transform, spline_values
from fpmace.electrostatics.mesh.transfer import Stencil
from fpmace.electrostatics.tables import upload
from fpmace.units import COULOMB_C, COULOMB_K

_TAPS = 64
"""Half length of the filter that undoes the splines; its tail is below 1e-12 for p = 10."""


@dataclass(frozen=True)
class Box:
    """The meshes of some graphs, equally large.

    Attributes:
        sizes: points that hold atoms; points of the FFT, the same along periodic axes and at
            least twice as many along open ones; waves that are kept.
        transform: [g, 3, 3]; coordinates in mesh spacings are R @ transform - origin.
        origin: [g, 3] whole numbers.
        order: p of the splines.
    """

    sizes: Sizes
    transform: Tensor
    origin: Tensor
    order: int

    def coordinates(self, positions: Tensor) -> Tensor:
        """[g, n, 3] Angstrom -> [g, n, 3] mesh spacings."""
        return torch.bmm(positions, self.transform) - self.origin[:, None]

    def stencil(self, *coordinates: Tensor) -> Stencil:
        """Where atoms lie on meshes behind each other, [n, 3] of each graph."""
        counts = [len(item) for item in coordinates]
        graph = torch.arange(len(counts), device=coordinates[0].device)
        graph = graph.repeat_interleave(torch.tensor(counts, device=graph.device))
        return Stencil(torch.cat(coordinates), self.sizes.points, self.order, graph)

    @property
    def n_points(self) -> int:
        """Points of one mesh that hold atoms."""
        return prod(self.sizes.points)

    def convolve(self, mesh: Tensor, spectra: Sequence[Tensor]) -> Tensor:
        """With each of several kernels: [1, g * n_points] -> [n_spectra, g * n_points]."""
        found = waves(mesh.view(-1, *self.sizes.points), self.sizes)
        return torch.stack([values(times(found, item), self.sizes).flatten() for item in spectra])

    def collect(self, meshes: Tensor, spectra: Sequence[Tensor]) -> Tensor:
        """The adjoint of :meth:`convolve`: [n_spectra, g * n_points] -> [1, g * n_points]."""
        shape = (-1, *self.sizes.points)
        pairs = zip(meshes, spectra, strict=True)
        found = [times(waves(mesh.view(shape), self.sizes), spectrum) for mesh, spectrum in pairs]
        return values(torch.stack(found).sum(0), self.sizes).view(1, -1)


@dataclass(frozen=True)
class Kernels(ABC):
    """Spectra of a set of graphs, [g, k, k, k] or the same for all [1, k, k, k]."""

    box: Box

    @abstractmethod
    def coulomb(self, variance: float) -> Tensor:
        """C erf(r / sqrt(2 s)) / r, for the sum s of the squared widths of two Gaussians."""

    @abstractmethod
    def gaussian(self, variance: float) -> Tensor:
        """The normalised Gaussian of variance s."""


@dataclass(frozen=True)
class WaveKernels(Kernels):
    """Of cells and slabs: given in reciprocal space, up to the cutoff of the direct sums.

    Attributes:
        square: [g, k, k, k] |k|^2.
        weight: [g, k, k, k] window / V over the splines; 0 beyond the cutoff.
        inverse: [g, k, k, k] Coulomb kernel of the boundary, K / k^2 where it is periodic.
    """

    square: Tensor
    weight: Tensor
    inverse: Tensor

    def coulomb(self, variance: float) -> Tensor:
        return self.gaussian(variance) * self.inverse

    def gaussian(self, variance: float) -> Tensor:
        return self.weight * torch.exp(-0.5 * variance * self.square)


def periodic_kernels(
    box: Box, cell: Tensor, host_cell: Tensor, cutoff: float, window: float
) -> WaveKernels:
    """Of cells [g, 3, 3]: the vectors of the direct sum, none for k = 0 in the Coulomb kernel."""
    reciprocal, volume = reciprocal_cell(cell)
    square = _squares(reciprocal, box.sizes)
    weight = _weight(box, square, volume, host_cell, cutoff, window)
    first = torch.zeros_like(square[0])
    first[0, 0, 0] = 1.0
    return WaveKernels(box, square, weight, (1.0 - first) * COULOMB_K / (square + first))


def slab_kernels(
    box: Box, cell: Tensor, host_cell: Tensor, cutoff: float, window: float, height: float
) -> WaveKernels:
    """Of slabs without images along their normal: the kernel is cut at a distance along it.

    With k = (q, z) it is K / k^2 (1 + exp(-q H) (z / q sin(z H) - cos(z H))), and that of
    -2 pi C |z| for q = 0 (C. A. Rozzi et al., PRB 73, 205119 (2006)).

    Args:
        cell: [g, 3, 3], the normal along the third vector.
        height: H, beyond the thickness of the slab, Angstrom.
    """
    reciprocal, volume = reciprocal_cell(cell)
    n1, n2, n3 = (index.to(cell) for index in wave_numbers(box.sizes, cell.device))
    flat = _squares(reciprocal[:, :2], box.sizes)
    along = n3 * reciprocal[:, 2].norm(dim=-1)[:, None, None, None]
    square = flat + along.square()
    weight = _weight(box, square, volume, host_cell, cutoff, window)
    centre = ((n1 == 0) & (n2 == 0)).to(cell)
    first = centre * (n3 == 0)
    parallel = (flat + centre).sqrt()
    sine, cosine = torch.sin(along * height), torch.cos(along * height)
    tail = torch.exp(-parallel * height) * (along / parallel * sine - cosine)
    tail = (1.0 - centre) * tail - centre * (cosine + along * height * sine)
    inverse = (1.0 + tail) / (square + first) * (1.0 - first) - first * 0.5 * height**2
    return WaveKernels(box, square, weight, COULOMB_K * inverse)


def _squares(reciprocal: Tensor, sizes: Sizes) -> Tensor:
    """|k|^2 of the waves: [g, n, 3] -> [g, k, k, k]."""
    indices = [index.to(reciprocal) for index in wave_numbers(sizes, reciprocal.device)]
    metric = torch.bmm(reciprocal, reciprocal.transpose(1, 2))[..., None, None, None]
    n = metric.shape[1]
    terms = [
        (1.0 if i == j else 2.0) * indices[i] * indices[j] * metric[:, i, j]
        for i in range(n)
        for j in range(i, n)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _weight(
    box: Box, square: Tensor, volume: Tensor, host_cell: Tensor, cutoff: float, window: float
) -> Tensor:
    """1 / V within the cutoff, smooth in the window, over the square of the splines."""
    exact = _squares(upload(reciprocal_cell(host_cell)[0], square.device), box.sizes)
    inside = (exact <= (cutoff * (1.0 + window)) ** 2).to(square)
    weight = inside * _unsplined(box.sizes, box.order, square.dtype, square.device)
    if window > 0.0:
        first = (exact == 0.0).to(square)
        weight = weight * taper(square + first * cutoff**2, cutoff, window)
    return weight / volume[:, None, None, None]


@lru_cache(maxsize=32)
def _unsplined(sizes: Sizes, order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        total = torch.ones((), dtype=torch.float64, device=device)
        for index, n in zip(wave_numbers(sizes, device), sizes.padded, strict=True):
            total = total * spline_transform(2.0 * pi * index / n, order) ** -2
        return total.to(dtype)


@dataclass(frozen=True)
class OpenKernels(Kernels):
    """Of clusters: the kernel between mesh points, as far as the box goes.

    The padded mesh keeps periodic images apart, so nothing is cut and no image is left: the
    splines interpolate the exact kernel.

    Attributes:
        spacing: of the mesh, Angstrom.
    """

    spacing: float

    def coulomb(self, variance: float) -> Tensor:
        return self._spectrum("coulomb", variance)

    def gaussian(self, variance: float) -> Tensor:
        return self._spectrum("gaussian", variance)

    def _spectrum(self, kind: str, variance: float) -> Tensor:
        like, box = self.box.transform, self.box
        return _open_spectrum(
            box.sizes, box.order, self.spacing, kind, variance, like.dtype, like.device
        )


@lru_cache(maxsize=8)
@torch.no_grad()
def _open_spectrum(
    sizes: Sizes,
    order: int,
    spacing: float,
    kind: str,
    variance: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """From the kernel at non-negative differences; the others follow from its symmetry."""
    with torch.inference_mode(False):
        half = [n // 2 for n in sizes.padded]
        axes = [
            (torch.arange(n + 1 + _TAPS, dtype=torch.float64, device=device) * spacing).square()
            for n in half
        ]
        square = axes[0][:, None, None] + axes[1][:, None] + axes[2]
        found = _RADIAL[kind](square, variance)
        for n in half:
            found = torch.tensordot(found, _unspline(n, order, device), dims=([0], [1]))
        for axis, n in enumerate(half):
            mirrored = found.flip(axis).narrow(axis, 1, n - 1)
            found = torch.cat([found, mirrored], dim=axis)
        whole = replace(sizes, points=sizes.padded)
        return (waves(found[None], whole).real / prod(sizes.padded)).to(dtype)


def _coulomb(square: Tensor, variance: float) -> Tensor:
    distance = square.sqrt()
    inner = COULOMB_C * sqrt(2.0 / (pi * variance))
    ratio = torch.erf(distance / sqrt(2.0 * variance)) / distance.clamp(min=1e-30)
    return torch.where(square == 0.0, inner, COULOMB_C * ratio)


def _gaussian(square: Tensor, variance: float) -> Tensor:
    return torch.exp(-0.5 * square / variance) / (2.0 * pi * variance) ** 1.5


_RADIAL = {"coulomb": _coulomb, "gaussian": _gaussian}


def _unspline(n: int, order: int, device: torch.device) -> Tensor:
    """Samples at 0..n + taps of an even function -> coefficients at 0..n, [n + 1, n + taps + 1].

    Splines with these coefficients, spread and gathered, interpolate the samples.
    """
    size = 8 * _TAPS
    zero = torch.zeros((), dtype=torch.float64)
    samples = torch.zeros(size, dtype=torch.float64)
    samples[torch.arange(1 - order // 2, order // 2 + 1)] = spline_values(zero, order, 0)[0]
    taps = torch.fft.irfft(torch.fft.rfft(samples).real ** -2, n=size)
    taps = torch.where(torch.arange(size // 2) <= _TAPS, taps[: size // 2], 0.0).to(device)
    last = len(taps) - 1
    row = torch.arange(n + 1, device=device)[:, None]
    column = torch.arange(n + _TAPS + 1, device=device)
    here = taps[(row - column).abs().clamp(max=last)]
    mirrored = taps[(row + column).clamp(max=last)]
    return here + torch.where(column > 0, mirrored, 0.0)
