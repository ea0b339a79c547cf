"""Formal charges: where they come from, and how the first node features learn of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from ase.data import chemical_symbols
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.linear import Linear
from fpmace.data.batch import Batch
from fpmace.data.keys import PROPERTIES
from fpmace.errors import ConfigError, DataError
from fpmace.registry import register_oxidation_state_mixer, set_base

N_POLYNOMIALS = 8
"""Chebyshev polynomials T_1 to T_8 of the formal charge."""


def formal_charge_table(
    by_element: Mapping[int, float] | None, from_data: bool
) -> Mapping[int, float] | None:
    """The charges by element, None where they come with the data.

    Raises:
        ConfigError: if both or neither is asked for.
    """
    if from_data and by_element is not None:
        raise ConfigError(
            "formal_charges_from_data is true too; leave one out", where="atomic_formal_charges"
        )
    if not from_data and by_element is None:
        raise ConfigError(
            "missing; give {Z: charge in e} for every element, or formal_charges_from_data: true",
            where="atomic_formal_charges",
        )
    return by_element


def given_per_atom(batch: Batch, name: str, option: str) -> Tensor:
    """[n_atoms] property of the data that an option of the model says to read.

    Raises:
        DataError: if a structure has none.
    """
    values, weights = batch.labels.get(name), batch.weights.get(name)
    if values is None or (weights is not None and not bool((weights > 0).all())):
        raise DataError(
            f"{option} is true, but a structure has no {name}; give it the array "
            f"'{PROPERTIES[name].key}' (or the key that heads maps to {name}), or set {option} to "
            "false"
        )
    return values


class FormalCharges(nn.Module):
    """Formal charge of each atom, in e: of its element, or read with the structure.

    Args:
        by_element: atomic number -> e, for every element of the model; None: per atom, from the
            property ``formal_charges`` of the data.
        atomic_numbers: the elements of the model.

    Raises:
        ConfigError: if an element has no charge.
    """

    formal_charges: Tensor

    def __init__(
        self, by_element: Mapping[int, float] | None, atomic_numbers: Sequence[int]
    ) -> None:
        super().__init__()
        self.from_data = by_element is None
        known = dict.fromkeys(atomic_numbers, 0.0) if by_element is None else dict(by_element)
        missing = [chemical_symbols[z] for z in atomic_numbers if z not in known]
        if missing:
            raise ConfigError(
                f"gives no charge for {', '.join(missing)}; name every element of the data, "
                "{Z: charge in e}",
                where="atomic_formal_charges",
            )
        values = torch.tensor([float(known[z]) for z in atomic_numbers], dtype=torch.float64)
        self.register_buffer("formal_charges", values)

    def forward(self, element: Tensor, batch: Batch) -> Tensor:
        """[n_atoms] e.

        Raises:
            DataError: if the charges come with the structures and one has none.
        """
        if not self.from_data:
            return self.formal_charges[element]
        return given_per_atom(batch, "formal_charges", "formal_charges_from_data")


class ChebyshevEmbedding(nn.Module):
    """Linear map of Chebyshev polynomials of a charge, scaled to [-1, 1] on a range.

    Args:
        n_channels: number of scalars made.
        span: lowest and highest charge, e; beyond it the polynomials grow without bound.
    """

    def __init__(self, n_channels: int, span: tuple[float, float]) -> None:
        super().__init__()
        low, high = span
        if not low < high:
            raise ConfigError(
                f"expects two numbers, the lower one first, got {list(span)}",
                where="oxidation_state_range",
            )
        self.span = (float(low), float(high))
        self.linear = Linear(Irreps(f"{N_POLYNOMIALS}x0e"), Irreps(f"{n_channels}x0e"), bias=True)

    def forward(self, charges: Tensor) -> Tensor:
        """[n_atoms] e to [n_atoms, n_channels].

        Raises:
            DataError: for a charge outside the range.
        """
        low, high = self.span
        outside = (charges < low) | (charges > high)
        if bool(outside.any()):
            worst = float(charges[outside][0])
            raise DataError(
                f"formal charge {worst:g} e is outside oxidation_state_range [{low:g}, {high:g}]; "
                "widen the range (and train with it)"
            )
        x = 2.0 * (charges - low) / (high - low) - 1.0
        terms = [torch.ones_like(x), x]
        for _ in range(N_POLYNOMIALS - 1):
            terms.append(2.0 * x * terms[-1] - terms[-2])
        return self.linear(torch.stack(terms[1:], dim=-1))


class OxidationStateMixer(nn.Module, ABC):
    """Joins the first features of an atom's element with its formal charge.

    The constructor is given n_channels, the number of scalar features, and
    oxidation_state_range, e.
    """

    @abstractmethod
    def forward(self, node_feats: Tensor, charges: Tensor) -> Tensor:
        """Features [n_atoms, n_channels] and charges [n_atoms] to [n_atoms, n_channels]."""


set_base("oxidation_state_mixer", OxidationStateMixer)


@register_oxidation_state_mixer("NoOxidationStateMixer")
class NoOxidationStateMixer(OxidationStateMixer):
    """The features of the element alone."""

    def forward(self, node_feats: Tensor, charges: Tensor) -> Tensor:
        return node_feats


@register_oxidation_state_mixer("SumOxidationStateMixer")
class SumOxidationStateMixer(OxidationStateMixer):
    """Features of the element plus an embedding of the formal charge."""

    def __init__(self, *, n_channels: int, oxidation_state_range: tuple[float, float]) -> None:
        super().__init__()
        self.embedding = ChebyshevEmbedding(n_channels, oxidation_state_range)

    def forward(self, node_feats: Tensor, charges: Tensor) -> Tensor:
        return node_feats + self.embedding(charges)


@register_oxidation_state_mixer("ProductOxidationStateMixer")
class ProductOxidationStateMixer(OxidationStateMixer):
    """All products of element features and embedded formal charge, mixed linearly."""

    def __init__(self, *, n_channels: int, oxidation_state_range: tuple[float, float]) -> None:
        super().__init__()
        self.embedding = ChebyshevEmbedding(n_channels, oxidation_state_range)
        shape = (n_channels, n_channels, n_channels)
        self.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))

    def forward(self, node_feats: Tensor, charges: Tensor) -> Tensor:
        weight = self.weight * (1.0 / sqrt(self.weight.shape[0] * self.weight.shape[1]))
        embedded = self.embedding(charges)
        return torch.einsum("au,av,uvw->aw", node_feats, embedded, weight)
