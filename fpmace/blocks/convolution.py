"""Edge convolution: channel-wise products of neighbour features and edge harmonics, summed."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

import fpmace.blocks.convolution_kernel  # noqa: F401  enters the built-in kernel
from fpmace.blocks.convolution_terms import Convolution, Coupling, Group, Segment, convolve
from fpmace.blocks.coupling import wigner_3j
from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.linear import Linear, uniform_multiplicity

Path = tuple[int, int, int]


def convolution_paths(
    node_irreps: Irreps, edge_irreps: Irreps, target_irreps: Irreps
) -> list[Path]:
    """Paths (l1 of the node, l2 of the edge, l3 of the message) in the order of the weights.

    Enumerated with l1 outer, l2 middle, l3 inner, kept where l3 is in the target with parity
    (-1)^l3, then stably sorted by l3.
    """
    wanted = {ir.l for _, ir in Irreps(target_irreps)}
    paths = [
        (a.l, b.l, l3)
        for _, a in Irreps(node_irreps)
        for _, b in Irreps(edge_irreps)
        for l3 in range(abs(a.l - b.l), a.l + b.l + 1)
        if l3 in wanted and (a.l + b.l + l3) % 2 == 0
    ]
    return sorted(paths, key=lambda path: path[2])


class EdgeConvolution(nn.Module):
    """``m_i = sum_j R(r_ij) (h_j x Y_ij)``, one channel-wise product per path (l1, l2 -> l3).

    Differentiable to any order, in reverse and forward mode, and open to ``torch.func``.

    Args:
        node_irreps, edge_irreps: of h, ``n x (0e+1o+...)``, and of Y, ``0e+1o+...``.
        target_irreps: the l3 that are kept.

    Attributes:
        kernel: which implementation evaluates it, a name in ``convolution_terms.KERNELS``.
    """

    kernel: str = "torch"
    coupling_matrix: Tensor
    weight_order: Tensor

    def __init__(self, node_irreps: Irreps, edge_irreps: Irreps, target_irreps: Irreps) -> None:
        super().__init__()
        self.node_irreps, self.edge_irreps = Irreps(node_irreps), Irreps(edge_irreps)
        self.n_channels = uniform_multiplicity(self.node_irreps)
        self.paths = convolution_paths(node_irreps, edge_irreps, target_irreps)
        self.irreps_out = Irreps([(self.n_channels, (l3, (-1) ** l3)) for _, _, l3 in self.paths])
        order = sorted(range(len(self.paths)), key=lambda p: (self.paths[p][1], self.paths[p][0]))
        self.groups, n_rows = _groups([self.paths[p] for p in order])
        matrix, self.couplings = _couple(self.paths, order, self.groups, n_rows)
        self.register_buffer("coupling_matrix", torch.from_numpy(matrix), persistent=False)
        self.register_buffer("weight_order", torch.tensor(order), persistent=False)

    @property
    def n_weights(self) -> int:
        return len(self.paths) * self.n_channels

    def radial_weights(self, phi: Tensor, weight: Tensor) -> Tensor:
        """R [n_pairs, n_paths, n_channels] as :meth:`forward` takes it.

        Args:
            phi: [n_pairs, n_hidden] last hidden layer of the radial network for each bond.
            weight: [n_hidden, n_weights] its last layer, paths in the order of :attr:`paths`.
        """
        n_paths = len(self.paths)
        weight = weight.view(-1, n_paths, self.n_channels).index_select(1, self.weight_order)
        return (phi @ weight.flatten(1)).view(-1, n_paths, self.n_channels)

    def forward(
        self,
        node_feats: Tensor,
        edge_attrs: Tensor,
        radial: Tensor,
        edges: EdgeLayout,
        linear: Linear,
    ) -> Tensor:
        """Convolution followed by ``linear``.

        Args:
            node_feats: [n_atoms, node_irreps.dim].
            edge_attrs: [n_edges, n_lm].
            radial: what :meth:`radial_weights` returned.
            edges: connectivity with pairs.
            linear: from ``irreps_out`` to the target.

        Returns:
            [n_atoms, linear.irreps_out.dim].
        """
        components = to_components(node_feats, self.node_irreps)
        message = convolve(radial, components, edge_attrs, self.plan(edges), self.kernel)
        return self._linear(message, linear)

    def plan(self, edges: EdgeLayout) -> Convolution:
        """What the convolution over ``edges`` needs besides its operands."""
        return Convolution(edges, self.groups, self.coupling_matrix, self.couplings)

    def _linear(self, message: Tensor, linear: Linear) -> Tensor:
        """Apply ``linear`` to [n_atoms, (l3, m3, path), n_channels]."""
        n, n_atoms = self.n_channels, message.shape[0]
        pieces, row, offset = [], 0, 0
        for mul_out, ir in linear.irreps_out:
            count = sum(1 for path in self.paths if path[2] == ir.l)
            rows = message[:, row : row + ir.dim * count].reshape(n_atoms, ir.dim, count * n)
            numel = count * n * mul_out
            weight = linear.weight[offset : offset + numel].view(count * n, mul_out)
            term = rows @ (weight * (1.0 / sqrt(max(count * n, 1))))
            pieces.append(term.transpose(1, 2).reshape(n_atoms, -1))
            row, offset = row + ir.dim * count, offset + numel
        return torch.cat(pieces, dim=-1)


def to_components(x: Tensor, irreps: Irreps) -> Tensor:
    """Bring [n_atoms, n x (0e+1o+...)] to [n_atoms, n_components, n]: channels last."""
    n = irreps[0].mul
    blocks = [
        x[:, part].reshape(-1, n, ir.dim).transpose(1, 2)
        for part, (_, ir) in zip(irreps.slices(), irreps, strict=True)
    ]
    return torch.cat(blocks, dim=1)


def _groups(paths: list[Path]) -> tuple[tuple[Group, ...], int]:
    """Group paths that are sorted by (l2, l1)."""
    groups: list[Group] = []
    row = weight = 0
    for l2 in sorted({path[1] for path in paths}):
        segments: list[Segment] = []
        column = 0
        for l1 in sorted({path[0] for path in paths if path[1] == l2}):
            count = sum(1 for path in paths if path[:2] == (l1, l2))
            width = (2 * l1 + 1) * count
            segments.append(
                Segment(
                    node=slice(l1 * l1, (l1 + 1) ** 2),
                    weight=slice(weight, weight + count),
                    column=slice(column, column + width),
                )
            )
            weight, column = weight + count, column + width
        rows = slice(row, row + (2 * l2 + 1) * column)
        groups.append(Group(slice(l2 * l2, (l2 + 1) ** 2), rows, column, tuple(segments)))
        row = rows.stop
    return tuple(groups), row


def _couple(
    paths: list[Path], order: list[int], groups: tuple[Group, ...], n_rows: int
) -> tuple[np.ndarray, tuple[Coupling, ...]]:
    """3j tensors times sqrt(2 l3+1), as [(l3, m3, path), uncoupled rows] and one by one."""
    first_row, per_degree = {}, {}
    row = 0
    for l3 in sorted({path[2] for path in paths}):
        members = [index for index, path in enumerate(paths) if path[2] == l3]
        for position, index in enumerate(members):
            first_row[index] = row + position
            per_degree[index] = len(members)
        row += len(members) * (2 * l3 + 1)
    matrix, couplings = np.zeros((row, n_rows)), []
    for group in groups:
        for segment in group.segments:
            n_paths = segment.weight.stop - segment.weight.start
            for p in range(n_paths):
                number = segment.weight.start + p
                index = order[number]
                tensor = wigner_3j(*paths[index]) * sqrt(2 * paths[index][2] + 1)
                for m1, m2, m3 in np.argwhere(np.abs(tensor) > 1e-12).tolist():
                    column = segment.column.start + m1 * n_paths + p
                    target = first_row[index] + m3 * per_degree[index]
                    source = group.row.start + m2 * group.n_columns + column
                    value = matrix[target, source] = float(tensor[m1, m2, m3])
                    node, harmonic = segment.node.start + m1, group.harmonic.start + m2
                    couplings.append((target, number, node, harmonic, value))
    return matrix, tuple(couplings)
