"""What a model is: the facts the rest of the package asks for, and one method to observables.

Nothing outside ``fpmace.models`` asks which class a model is. It asks whether the model has a
density, whether it solves a self-consistency, what it can return and what it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fpmace.annotations import Options, Values
from fpmace.data.batch import Batch
from fpmace.data.trained_range import COMPARED, TrainedRange
from fpmace.density_modes.base import DensityMode, Start
from fpmace.electrostatics.base import Electrostatics
from fpmace.errors import ConfigError
from fpmace.models.geometry import Geometry, element_index, head_index, make_geometry
from fpmace.observables.types import Observables
from fpmace.registry import set_base

ENERGY_OUTPUTS = frozenset(
    {"energy", "node_energy", "contributions", "forces", "stress", "virials"}
)
"""Fields of ``Observables`` that a model without a density returns."""

BACKBONE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "embedding": (
        "node_embedding.",
        "radial_embedding.",
        "joint_embedding.",
        "pair_repulsion_fn.",
    ),
    "interactions": ("interactions.",),
    "products": ("products.",),
    "readouts": ("readouts.", "embedding_readout."),
}
"""Group -> beginnings of the names of its parameters, within ``backbone`` or beside it."""

_DECAYED_INTERACTION_PARTS = (".linear.weight", ".skip_tp.weight")
"""Linear maps of an interaction decay; the radial network does not."""


@dataclass(frozen=True, slots=True)
class DensityInfo:
    """What the density of a model is.

    Attributes:
        max_l: highest multipole; the density has (max_l + 1)^2 numbers per atom.
        smearing_width: Angstrom, width of the Gaussians that carry the multipoles.
        meaning: one phrase, such as "self-consistent multipoles".
    """

    max_l: int
    smearing_width: float
    meaning: str

    @property
    def n_components(self) -> int:
        """Numbers per atom."""
        return (self.max_l + 1) ** 2


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a model.

    Attributes:
        outputs: fields of ``Observables`` that are wanted; others that cost nothing come along.
        mode: how the density is found and differentiated; None for models that solve nothing.
        order: how often the result will be differentiated through the density (0, 1, 2).
        start: where the search for the density starts; None: as the mode's options say.
        training: whether this is a step of a training.
    """

    outputs: frozenset[str] = frozenset({"energy"})
    mode: DensityMode | None = None
    order: int = 0
    start: Start | None = None
    training: bool = False

    @property
    def density_mode(self) -> DensityMode:
        """The mode, for models that cannot do without one.

        Raises:
            ConfigError: if there is none.
        """
        if self.mode is None:
            raise ConfigError("mode: missing; a self-consistent model needs one, such as scf")
        return self.mode


GROUPS: tuple[str, ...] = (
    "embedding",
    "interactions",
    "products",
    "readouts",
    "field_block",
    "local_charges",
    "local_electron_energy",
    "other",
)
"""Names that a stage may use as ``<group>_lr``; a model says which parameters are in which."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay.

    Attributes:
        name: stages name its learning rate ``<name>_lr``.
        parameters: the parameters.
        decays: whether the weight decay of the group acts on them.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    decays: bool


class Model(nn.Module, ABC):
    """A model: facts about it, and :meth:`observe`.

    A family declares the class-level facts and implements :meth:`observe`; energies must be
    differentiable in the positions and the cell of the geometry it is given. Registering a class
    keeps the options of its instances in ``config``, from which ``build("model", config)`` makes
    their equal.

    Args:
        r_max: Angstrom, cutoff of the neighbour list.
        atomic_numbers: the elements, ascending.
    """

    has_density: ClassVar[bool] = False
    """Whether there are charges or multipoles on the atoms."""

    solves_self_consistency: bool = False
    """Whether the density is the solution of equations, so that a mode is needed."""

    born_charges_by_phases: ClassVar[bool] = False
    """Whether Born charges in periodic cells are formed by phase factors: for charges that are
    local, and whose dipole has a branch."""

    outputs: frozenset[str] = ENERGY_OUTPUTS
    """Fields of ``Observables`` that can be asked for."""

    inputs: frozenset[str] = frozenset()
    """What the model reads from a structure besides its geometry, by name in ``data.keys``."""

    required_inputs: frozenset[str] = frozenset()
    """Those of ``inputs`` that a structure must carry: nothing stands for them by itself."""

    group_prefixes: ClassVar[Mapping[str, tuple[str, ...]]] = BACKBONE_GROUPS
    """Parameter group -> beginnings of parameter names; what fits nowhere is ``other``."""

    undecayed_groups: ClassVar[frozenset[str]] = frozenset({"embedding", "readouts"})
    """Groups on which weight decay never acts; it acts on all others, ``other`` included."""

    heads: tuple[str, ...] = ("Default",)
    """Names of the heads: levels of theory that share all but energies of free atoms, scale and
    readouts. ``Batch.head`` counts in this order."""

    free_options: ClassVar[frozenset[str]] = frozenset()
    """Options without weights that a training may change when it starts from a file."""

    config: Options
    metadata: Values
    """What its file says of where it came from; empty for a model that was not read."""

    atomic_numbers: Tensor
    electrostatics: Electrostatics | None

    def __init__(self, *, r_max: float, atomic_numbers: Sequence[int]) -> None:
        super().__init__()
        self.r_max = float(r_max)
        self.register_buffer(
            "atomic_numbers", torch.tensor(list(atomic_numbers), dtype=torch.int64)
        )
        self.electrostatics = None
        self.metadata: Values = {}

    @classmethod
    def solves(cls, options: Options) -> bool:
        """``solves_self_consistency`` of the model with these options."""
        return cls.solves_self_consistency

    @classmethod
    def outputs_with(cls, options: Options) -> frozenset[str]:
        """``outputs`` of the model with these options."""
        return cls.outputs

    @property
    def trained_range(self) -> TrainedRange:
        """Range in the training data of what the model reads; empty if it does not know it."""
        known = self.metadata.get("trained_range", {})
        return TrainedRange({n: known[n] for n in known if COMPARED[n][1] in self.inputs})

    @property
    def density(self) -> DensityInfo | None:
        """What the density is; None where ``has_density`` is false."""
        return None

    @property
    def energy_is_stationary(self) -> bool:
        """Whether the energy is stationary in the density at the solution.

        Forces are then the explicit derivative at a held density, and need no adjoint.
        """
        return False

    @abstractmethod
    def observe(self, geometry: Geometry, batch: Batch, request: Request) -> Observables:
        """Everything about a batch that is not a derivative.

        Args:
            geometry: of the batch, perhaps strained; the energy must depend on it.
            batch: the other inputs: charge, field, Fermi level, labels.
            request: what is wanted. Forces, stress and polarizability are not made here.
        """

    def geometry(self, batch: Batch, strain: Tensor | None = None) -> Geometry:
        """Geometry of a batch for this model; see :func:`make_geometry`.

        Raises:
            DataError: if an element is unknown to the model, or one of several heads not named.
        """
        element = element_index(self.atomic_numbers, batch)
        return make_geometry(batch, element, strain, head_index(self.heads, batch))

    def check(self, outputs: frozenset[str], mode: DensityMode | None) -> None:
        """Refuse what the model cannot do.

        Raises:
            ConfigError: for an output it does not have, a mode it cannot use or a missing one.
        """
        name, known = type(self).__name__, ", ".join(sorted(self.outputs))
        missing = sorted(outputs - self.outputs)
        if missing:
            raise ConfigError(f"outputs: a {name} has no '{missing[0]}' (it has {known})")
        if self.solves_self_consistency and mode is None:
            raise ConfigError(
                f"mode: missing; a {name} solves a self-consistency and needs a mode, such as "
                "scf or direct"
            )
        if mode is not None and not self.solves_self_consistency:
            raise ConfigError(
                f"mode: a {name} solves no self-consistency and has no use for "
                f"{type(mode).__name__}; leave mode out"
            )

    def parameter_groups(self) -> list[ParameterGroup]:
        """All trainable parameters, each in exactly one group."""
        found: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and parameter.numel() > 0:
                group = self._group_of(name)
                decays = group not in self.undecayed_groups and (
                    group != "interactions" or name.endswith(_DECAYED_INTERACTION_PARTS)
                )
                found.setdefault((group, decays), []).append(parameter)
        return [ParameterGroup(name, tuple(items), d) for (name, d), items in found.items()]

    def _group_of(self, name: str) -> str:
        short = name.removeprefix("backbone.")
        for group, prefixes in self.group_prefixes.items():
            if short.startswith(prefixes):
                return group
        return "other"


set_base("model", Model)
