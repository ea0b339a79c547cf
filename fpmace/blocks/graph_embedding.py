"""Scalar features of what is given of a structure as a whole: charge, multiplicity, field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from fpmace.annotations import Count, Options, check_fields, plain
from fpmace.data.keys import INPUTS, PROPERTIES
from fpmace.errors import ConfigError, DataError, suggestion

EMBEDDED = tuple(name for name in INPUTS if PROPERTIES[name].per == "graph")
"""Inputs of a structure that can be embedded."""


@dataclass(frozen=True)
class EmbeddingSpec:
    """How one input becomes features.

    Attributes:
        type: ``categorical``: a vector for each whole number; ``continuous``: a small network.
        per: what the value belongs to; inputs of a structure are those of all its atoms.
        in_dim: numbers of the input.
        emb_dim: numbers of its vector.
        num_classes: vectors of a categorical input.
        offset: added to a categorical input to get the place of its vector.
        use_bias: biases in the network of a continuous input.
    """

    type: Literal["categorical", "continuous"]
    per: Literal["graph"] = "graph"
    in_dim: Count = 1
    emb_dim: Count = 16
    num_classes: Count = 1
    offset: int = 0
    use_bias: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        check_fields(self, f"embedding_specs.{self.name}")

    @classmethod
    def read(cls, name: str, given: Options) -> EmbeddingSpec:
        """Check one entry of ``embedding_specs``.

        Raises:
            ConfigError: for an input or option that is not known, or a value that does not fit.
        """
        where = f"embedding_specs.{name}"
        if name not in EMBEDDED:
            raise ConfigError(
                f"no input of a structure is named {name!r}{suggestion(name, EMBEDDED)} "
                f"(known: {', '.join(EMBEDDED)})",
                where=where,
            )
        known = set(cls.__dataclass_fields__) - {"name"}
        unknown = sorted(set(given) - known)
        if unknown or "type" not in given:
            problem = f"no option {unknown[0]!r}" if unknown else "type is missing"
            raise ConfigError(f"{problem} (accepts: {', '.join(sorted(known))})", where=where)
        spec = cls(**given, name=name)
        shape = PROPERTIES[name].shape
        if spec.in_dim != (shape[0] if shape else 1):
            raise ConfigError(
                f"{name} has {shape[0] if shape else 1} numbers, got {spec.in_dim}",
                where=f"{where}.in_dim",
            )
        return spec

    def network(self) -> nn.Module:
        """The embedding itself."""
        if self.type == "categorical":
            return nn.Embedding(self.num_classes, self.emb_dim, dtype=torch.float64)
        widths = (self.in_dim, self.emb_dim, self.emb_dim)
        first, second = (
            nn.Linear(n_in, n_out, bias=self.use_bias, dtype=torch.float64)
            for n_in, n_out in pairwise(widths)
        )
        return nn.Sequential(first, nn.SiLU(), second)

    def place(self, value: Tensor) -> Tensor:
        """The place [n_graphs] of the vector of a categorical input.

        Raises:
            DataError: if there is no vector for a value.
        """
        index = (value + self.offset).to(torch.int64)
        outside = (index < 0) | (index >= self.num_classes)
        if bool(outside.any()):
            raise DataError(
                f"{self.name}: {float(value[outside][0]):g} is outside of {-self.offset} to "
                f"{self.num_classes - 1 - self.offset}, which the model was made for"
            )
        return index


def check_specs(given: Mapping[str, Options]) -> None:
    """Check ``embedding_specs``; see :meth:`EmbeddingSpec.read`."""
    for name, options in given.items():
        EmbeddingSpec.read(name, options)


class GraphEmbedding(nn.Module):
    """``SiLU(P [emb_1 | emb_2 | ...])``, the embedded inputs of a structure mixed to n channels.

    Args:
        specs: :class:`EmbeddingSpec` by input, in the order of the concatenation.
        n_channels: scalars of the result.
    """

    def __init__(self, specs: Mapping[str, Options], n_channels: int) -> None:
        super().__init__()
        self.specs = {name: EmbeddingSpec.read(name, plain(item)) for name, item in specs.items()}
        self.embedders = nn.ModuleDict({n: spec.network() for n, spec in self.specs.items()})
        width = sum(spec.emb_dim for spec in self.specs.values())
        projection = nn.Linear(width, n_channels, bias=False, dtype=torch.float64)
        self.project = nn.Sequential(projection, nn.SiLU())

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Inputs [n_graphs, ...] by name to [n_graphs, n_channels].

        Raises:
            DataError: if a categorical input has a value that the model was not made for.
        """
        vectors = []
        for name, spec in self.specs.items():
            value = inputs[name]
            if spec.type == "categorical":
                vectors.append(self.embedders[name](spec.place(value)))
            else:
                vectors.append(self.embedders[name](value.view(-1, spec.in_dim)))
        mixed: Tensor = self.project(torch.cat(vectors, dim=-1))
        return mixed
