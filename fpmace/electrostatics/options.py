"""Settings of the electrostatics, each declared once: type, range, unit and meaning.

Models and the training configuration use the same types, so a setting has one range and one text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fpmace.annotations import Bounds, Doc, Positive, Unit, check_fields
from fpmace.boundaries import PbcMethod
from fpmace.electrostatics.gaussian import MAX_L
from fpmace.part_entry import Part, PartConfig

Degree = Annotated[int, Bounds(minimum=0, maximum=MAX_L)]

DensityDegree = Annotated[Degree, Doc("highest multipole of an atom (0: charges, 1: dipoles)")]
SmearingWidth = Annotated[
    Positive, Unit("Angstrom"), Doc("width of the Gaussians that carry the multipoles")
]
FeatureDegree = Annotated[Degree, Doc("highest order of the field features")]
FeatureWidths = Annotated[
    tuple[Positive, ...],
    Bounds(filled=True),
    Unit("Angstrom"),
    Doc("widths of the Gaussians that sample the potential", "[1.5, 3.0]"),
]
CutoffFactor = Annotated[Positive, Doc("factor on the cutoff of the sums over reciprocal space")]
CutoffWindow = Annotated[
    float,
    Bounds(minimum=0.0),
    Doc(
        "vectors k between the cutoff k_c and (1 + window) k_c enter with a weight that falls "
        "smoothly to 0, so that the energy is smooth in the cell; 0: sharp cutoff"
    ),
]
BoundaryMethod = Annotated[
    PbcMethod,
    Doc(
        "boundary condition of the electrostatics; auto chooses by the pbc flags of each "
        "structure: open for FFF, slab correction for TTF, plain periodic sums for TTT"
    ),
]
Summation = Annotated[
    PartConfig, Part("electrostatics"), Doc("how the Coulomb interactions are summed")
]
EnergySelfInteraction = Annotated[
    bool, Doc("keep the interaction of each atom with itself in the energy")
]
FieldSelfInteraction = Annotated[
    bool, Doc("keep the interaction of each atom with itself in the features")
]
QuadrupoleCorrections = Annotated[
    bool,
    Doc(
        "in the corrections of the features for molecule_in_box, take the widths of source and "
        "receiver in the quadratic potential into account"
    ),
]


_MODEL_OPTIONS = {
    "density_max_l": "atomic_multipoles_max_l",
    "smearing_width": "atomic_multipoles_smearing_width",
    "feature_max_l": "field_feature_max_l",
    "feature_widths": "field_feature_widths",
    "kspace_cutoff_factor": "kspace_cutoff_factor",
    "pbc_handling": "pbc_handling",
    "include_energy_self_interaction": "include_electrostatic_self_interaction",
    "include_field_self_interaction": "field_si",
    "quadrupole_feature_corrections": "quadrupole_feature_corrections",
    "kspace_window": "kspace_window",
}


@dataclass(frozen=True)
class ElectrostaticsOptions:
    """Settings of :class:`~fpmace.electrostatics.gto.GTOElectrostatics`; see the types above.

    Raises:
        ConfigError: for a value out of range.
    """

    density_max_l: DensityDegree = 1
    smearing_width: SmearingWidth = 1.5
    feature_max_l: FeatureDegree = 1
    feature_widths: FeatureWidths = (1.5, 3.0)
    kspace_cutoff_factor: CutoffFactor = 1.5
    pbc_handling: BoundaryMethod = "pbc"
    include_energy_self_interaction: EnergySelfInteraction = False
    include_field_self_interaction: FieldSelfInteraction = False
    quadrupole_feature_corrections: QuadrupoleCorrections = False
    kspace_window: CutoffWindow = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "electrostatics")

    @classmethod
    def of_model(cls, options: Mapping[str, Any]) -> ElectrostaticsOptions:
        """From the options of a model with field features, by their names there."""
        return cls(**{name: options[of_model] for name, of_model in _MODEL_OPTIONS.items()})
