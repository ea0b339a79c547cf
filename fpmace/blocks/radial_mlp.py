"""Networks with layer normalisation, on features of an edge and of the elements at its ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class LayerNorm(nn.LayerNorm):
    """Layer normalisation by elementary operations.

    Torch's own (2.13) has wrong third derivatives, and wrong second ones in forward mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps)
        return x * scale * self.weight + self.bias


class RadialMLP(nn.Module):
    """Linear, layer normalisation, SiLU for each hidden width, then linear; all with biases.

    Args:
        sizes: width of the input, of the hidden layers, of the output; at least one hidden.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes[:-1]):
            layers += [
                nn.Linear(n_in, n_out, dtype=torch.float64),
                LayerNorm(n_out, dtype=torch.float64),
                nn.SiLU(),
            ]
        layers.append(nn.Linear(sizes[-2], sizes[-1], dtype=torch.float64))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., sizes[0]] to [..., sizes[-1]]."""
        y: Tensor = self.net(x)
        return y

    def hidden(self, edge_feats: Tensor, tables: tuple[Tensor, Tensor], ends: Tensor) -> Tensor:
        """The last hidden layer for the input (edge_feats, source[z_s], target[z_r]).

        The first layer is linear, so its share of the elements is worked out per pair of elements.

        Args:
            edge_feats: [n_edges, n_edge_features].
            tables: source and target [n_elements, n] of every element.
            ends: [n_edges] int64, ``z_s * n_elements + z_r``.
        """
        first, *rest = list(self.net)[:-1]
        assert isinstance(first, nn.Linear)
        source, target = tables
        n = source.shape[1]
        of_edge, of_source, of_target = first.weight.split([edge_feats.shape[1], n, n], dim=1)
        pairs = (source @ of_source.T).unsqueeze(1) + (target @ of_target.T + first.bias)
        x = edge_feats @ of_edge.T + functional.embedding(ends, pairs.flatten(0, 1))
        for layer in rest:
            x = layer(x)
        return x

    def last(self) -> nn.Linear:
        """The layer after :meth:`hidden`."""
        layer = self.net[-1]
        assert isinstance(layer, nn.Linear)
        return layer
