"""What a loss is, and the weighted sum of losses that a stage minimises."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fpmace import registry
from fpmace.annotations import Options
from fpmace.data.batch import Batch
from fpmace.errors import ConfigError, TrainingError
from fpmace.metrics.averages import Average
from fpmace.observables.types import Observables

logger = logging.getLogger(__name__)


class Loss:
    """One term of the training objective, without its weight: a mean over a batch.

    A subclass gives either :meth:`average`, the mean as sum and count, or ``__call__``, the mean
    alone, which then counts by the number of structures where batches are added up. The batch
    holds only structures whose prediction is usable.

    Attributes:
        requires_labels: properties that the data must carry; ``"a or b"`` where one is enough.
        requires_outputs: fields of ``Observables`` that the model must return.
    """

    requires_labels: tuple[str, ...] = ()
    requires_outputs: tuple[str, ...] = ("energy",)

    def average(self, batch: Batch, prediction: Observables) -> Average:
        """Sum and count; entries without a label count with the value zero.

        Raises:
            TrainingError: if ``__call__`` of a subclass returns something else than a scalar.
        """
        if type(self).__call__ is Loss.__call__:
            raise NotImplementedError(f"{type(self).__name__} has neither average nor __call__")
        value = self(batch, prediction)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TrainingError(
                f"loss {type(self).__name__}: __call__ returned {found}, expected a scalar tensor "
                "(the mean over the batch); end it with .mean(), or define "
                "average(batch, prediction) and return Average.of(values)"
            )
        return Average(value.reshape(()) * batch.n_graphs, batch.n_graphs)

    def describe(self, label_counts: Mapping[str, int]) -> str:
        """What it does with data that has these labels, for the log; empty if that is plain."""
        return ""

    def __call__(self, batch: Batch, prediction: Observables) -> Tensor:
        """Scalar, the mean."""
        return self.average(batch, prediction).mean


registry.set_base("loss", Loss)


@dataclass(frozen=True)
class LossTerm:
    """A named loss and the weight that the stage gives it."""

    name: str
    weight: float
    loss: Loss


@dataclass(frozen=True)
class LossSum:
    """Weighted sum of losses: ``sum_name weight_name * loss_name(batch, prediction)``."""

    terms: tuple[LossTerm, ...]

    @property
    def requires_labels(self) -> frozenset[str]:
        return frozenset(name for term in self.terms for name in term.loss.requires_labels)

    @property
    def requires_outputs(self) -> frozenset[str]:
        return frozenset(name for term in self.terms for name in term.loss.requires_outputs)

    def averages(self, batch: Batch, prediction: Observables) -> dict[str, Average]:
        """Sum and count of each term by name, without the weights of the stage."""
        return {term.name: term.loss.average(batch, prediction) for term in self.terms}

    def weighted(self, averages: Mapping[str, Average]) -> dict[str, Tensor]:
        """The mean of each term times its weight."""
        return {term.name: term.weight * averages[term.name].mean for term in self.terms}

    def __call__(self, batch: Batch, prediction: Observables) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss, and each weighted term (detached) by name."""
        values = self.weighted(self.averages(batch, prediction))
        return sum_tensors(values), {name: value.detach() for name, value in values.items()}


def sum_tensors(values: Mapping[str, Tensor]) -> Tensor:
    """Sum of at least one scalar."""
    total, *rest = values.values()
    for value in rest:
        total = total + value
    return total


def build_losses(config: Mapping[str, float | Options], *, where: str) -> LossSum:
    """Build the losses of a stage from ``{name: weight}`` or ``{name: {weight, **options}}``.

    Args:
        where: place in the configuration, such as ``train_schedule.0.loss``, for messages.

    Raises:
        ConfigError: for an unknown name or option, a weight that is missing or negative, or an
            empty mapping.
    """
    if not config:
        raise ConfigError(f"{where}: no loss given (known: {', '.join(registry.names('loss'))})")
    terms = []
    for name, given in config.items():
        registry.get("loss", name, where=where)
        options = dict(given) if isinstance(given, Mapping) else {"weight": given}
        weight = options.pop("weight", None)
        if (
            isinstance(weight, bool)
            or not isinstance(weight, (int, float))
            or not 0 <= weight < math.inf
        ):
            raise ConfigError(
                f"{where}.{name}: expected a finite weight >= 0 or a mapping with 'weight', got "
                f"{given!r}"
            )
        loss = registry.build("loss", {"type": name, **options}, where=f"{where}.{name}")
        terms.append(LossTerm(name, float(weight), loss))
    return LossSum(tuple(terms))


def check_losses(
    losses: LossSum,
    *,
    where: str,
    label_counts: Mapping[str, int],
    n_configurations: int,
    available_outputs: frozenset[str],
    looked_for: Mapping[str, str] | None = None,
) -> list[str]:
    """Find losses that this data or this model cannot serve.

    Args:
        where: place in the configuration for messages, such as ``train_schedule.1.loss``.
        label_counts: how many training configurations carry each property.
        available_outputs: fields of ``Observables`` that model and training mode return.
        looked_for: property -> the key it was looked for under, such as ``info['REF_dipole']``.

    Returns:
        One line per problem; none if training can start.
    """
    problems = []
    keys = looked_for or {}
    for term in losses.terms:
        if text := term.loss.describe(label_counts):
            logger.info("%s.%s: %s", where, term.name, text)
        for name in term.loss.requires_labels:
            either = name.split(" or ")
            if not any(label_counts.get(one, 0) for one in either):
                places = [keys[one] for one in either if one in keys]
                key = f" (looked for {' and '.join(places)})" if places else ""
                problems.append(
                    f"{where}.{term.name}: needs label '{name}'; 0 of {n_configurations} training "
                    f"configurations have it{key}; map its key under 'heads' or drop the loss"
                )
        for name in term.loss.requires_outputs:
            if name not in available_outputs:
                problems.append(
                    f"{where}.{term.name}: needs the prediction '{name}', which this model does "
                    f"not return in this training mode "
                    f"(it returns: {', '.join(sorted(available_outputs))})"
                )
    return problems


def raise_problems(problems: list[str]) -> None:
    """Raise one TrainingError that lists all problems.

    Raises:
        TrainingError: if there are any.
    """
    if len(problems) == 1:
        raise TrainingError(problems[0])
    if problems:
        lines = [f"{number:>2}. {text}" for number, text in enumerate(problems, start=1)]
        raise TrainingError("\n".join([f"{len(lines)} problems, nothing was trained", *lines]))
