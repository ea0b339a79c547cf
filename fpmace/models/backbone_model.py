"""Common part of the models on a MACE backbone, and the options that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from e3nn.o3 import Irreps

from fpmace.annotations import Options
from fpmace.blocks.embedding import AtomicEnergies
from fpmace.blocks.readout import NonLinearReadout
from fpmace.errors import ConfigError
from fpmace.models import options as opt
from fpmace.models.backbone import Backbone, VectorOrder
from fpmace.models.base import Model

BACKBONE_OPTIONS = (
    "r_max",
    "num_bessel",
    "num_polynomial_cutoff",
    "max_ell",
    "num_interactions",
    "hidden_irreps",
    "avg_num_neighbors",
    "correlation",
    "radial_MLP",
    "radial_type",
    "interaction_cls_first",
    "interaction_cls",
)
"""Options of a model that are passed on to the backbone."""


def check_elements(atomic_numbers: Sequence[int], atomic_energies: Sequence[float]) -> None:
    """Check that elements ascend and that each has one energy.

    Raises:
        ConfigError: if not.
    """
    numbers = list(atomic_numbers)
    if not numbers or numbers != sorted(set(numbers)):
        raise ConfigError(f"atomic_numbers: expected ascending atomic numbers, got {numbers}")
    if len(atomic_energies) != len(numbers):
        raise ConfigError(
            f"atomic_energies: expected one energy for each of the {len(numbers)} elements, "
            f"got {len(atomic_energies)}"
        )


class BackboneModel(Model):
    """Atomic energies and a backbone; what the features are for is left to subclasses.

    A subclass takes ``**backbone`` for the options declared here, which it finds in ``config``.

    Attributes:
        vector_order: order of the components of vectors in its features.
        last_layer_scalars_only: whether the last layer keeps scalars alone.
    """

    vector_order: ClassVar[VectorOrder] = "yzx"
    last_layer_scalars_only: ClassVar[bool] = False

    def __init__(
        self,
        *,
        atomic_numbers: opt.AtomicNumbers,
        atomic_energies: opt.AtomicEnergies,
        r_max: opt.CutoffRadius = 5.0,
        num_bessel: opt.RadialCount = 8,
        num_polynomial_cutoff: opt.CutoffPower = 5,
        max_ell: opt.EdgeDegree = 3,
        num_interactions: opt.LayerCount = 2,
        hidden_irreps: opt.HiddenIrreps = "32x0e+32x1o",
        MLP_irreps: opt.ReadoutIrreps = "16x0e",
        avg_num_neighbors: opt.NeighbourCount = 1.0,
        correlation: opt.Correlation = 3,
        gate: opt.Gate = "silu",
        radial_MLP: opt.RadialWidths = (64, 64, 64),
        radial_type: opt.RadialBasis = "bessel",
        interaction_cls_first: opt.FirstInteraction = "RealAgnosticResidualInteractionBlock",
        interaction_cls: opt.Interaction = "RealAgnosticResidualInteractionBlock",
    ) -> None:
        check_elements(atomic_numbers, atomic_energies)
        super().__init__(r_max=r_max, atomic_numbers=atomic_numbers)
        self.atomic_energies_fn = AtomicEnergies(atomic_energies)
        self.backbone = Backbone(
            n_elements=len(atomic_numbers),
            vector_order=self.vector_order,
            last_layer_scalars_only=self.last_layer_scalars_only,
            **{name: self.config[name] for name in BACKBONE_OPTIONS},
        )

    def nonlinear_readout(self) -> NonLinearReadout:
        """A new readout of the last layer with ``MLP_irreps`` and ``gate``."""
        hidden = Irreps(self.config["MLP_irreps"])
        return NonLinearReadout(self.backbone.layer_irreps[-1], hidden, self.config["gate"])

    @staticmethod
    def check_options(options: Options) -> None:
        """Refuse options that do not fit together, before anything is built.

        Raises:
            ConfigError: naming the option.
        """
        opt.check_backbone(options)
