"""Options of the model: the equivariant backbone, the density, the field and the energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fpmace.config.option import option
from fpmace.config.options_run import PbcMethod

PartValue = str | dict[str, Any]
DEFAULT_HIDDEN_IRREPS = "32x0e+32x1o"


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """Model."""

    model: str = option("FixedPoint", "the model to train", part="model")
    foundation_model: str | None = option(
        None, "model file whose backbone weights the training starts from"
    )
    r_max: float = option(5.0, "cutoff of the local environment, Angstrom", above=0.0)
    hidden_irreps: str | None = option(
        None,
        f"features of an atom; {DEFAULT_HIDDEN_IRREPS} if num_channels and max_L are not given",
    )
    num_channels: int | None = option(
        None, "number of features of each order, instead of hidden_irreps", minimum=1
    )
    max_L: int | None = option(
        None, "highest order of the features, instead of hidden_irreps", minimum=0
    )
    max_ell: int = option(3, "highest order of the spherical harmonics of an edge", minimum=0)
    correlation: int | tuple[int, ...] = option(
        3, "correlation order of the product basis; one number, or one per layer", minimum=1
    )
    num_interactions: int = option(2, "number of interaction layers", minimum=1)
    interaction: PartValue = option(
        "RealAgnosticResidualInteractionBlock",
        "interaction block of all layers but the first",
        part="interaction",
    )
    interaction_first: PartValue = option(
        "RealAgnosticResidualInteractionBlock",
        "interaction block of the first layer",
        part="interaction",
    )
    MLP_irreps: str = option("16x0e", "hidden features of the last energy readout")
    radial_type: PartValue = option("bessel", "radial basis", part="radial_basis")
    num_radial_basis: int = option(8, "number of radial basis functions", minimum=1)
    num_cutoff_basis: int = option(5, "exponent p of the polynomial cutoff", minimum=2)
    radial_MLP: tuple[int, ...] = option((64, 64, 64), "layer widths of the radial network")
    gate: Literal["silu", "tanh", "None"] = option("silu", "activation of the non-linear readouts")
    avg_num_neighbors: float | None = option(
        None, "normaliser of the messages; counted in the training data if not given", above=0.0
    )


@dataclass(frozen=True, kw_only=True)
class DensityOptions:
    """Density and electrostatics."""

    atomic_multipoles_max_l: int = option(
        1, "highest multipole of an atom (0: charges, 1: dipoles)", minimum=0, density_only=True
    )
    atomic_multipoles_smearing_width: float = option(
        1.5, "width of the Gaussians that carry the multipoles, A", above=0.0, density_only=True
    )
    kspace_cutoff_factor: float = option(
        1.5, "factor on the reciprocal-space cutoff", above=0.0, density_only=True
    )
    kspace_window: float = option(
        0.1,
        "taper the k-vectors to zero between k_c and (1+window) k_c, so that the energy is smooth "
        "in the cell; 0: sharp cutoff",
        minimum=0.0,
        density_only=True,
    )
    electrostatic_pbc_method: PbcMethod = option(
        "auto",
        "boundary condition of the electrostatics; auto chooses by the pbc flags of each "
        "configuration",
        density_only=True,
    )
    electrostatics: PartValue = option(
        "direct", "how the Coulomb sums are done", part="electrostatics", density_only=True
    )
    include_electrostatic_self_interaction: bool = option(
        False, "keep the interaction of each atom with itself in the energy", density_only=True
    )
    quadrupole_feature_corrections: bool = option(
        False, "quadrupole terms in the boundary corrections of the field", density_only=True
    )
    return_electrostatic_potentials: bool = option(
        False, "also return the potential at the atoms", density_only=True
    )
    fermi_level_offset: float | Literal["average"] = option(
        "average",
        "zero of the Fermi level, eV; average: mean over the training data",
        density_only=True,
    )
    use_linear_local_charges: bool = option(
        False,
        "field-independent multipoles by a linear map scaled per element, not by a gated network",
        density_only=True,
    )
    atom_density_scaling: Literal["None", "average"] | dict[int, float] = option(
        "None",
        "scale of the linear local multipoles per element: None (1.0), average (RMS of the "
        "reference multipoles) or {atomic number: scale}",
        density_only=True,
        example="{1: 0.5, 8: 2.0}",
    )
    local_density_config: PartValue | None = option(
        None,
        "local density readout by name; chosen by use_linear_local_charges if not given",
        part="local_density_readout",
        density_only=True,
    )


@dataclass(frozen=True, kw_only=True)
class FieldOptions:
    """Field features, fixed-point update and energy."""

    field_feature_max_l: int = option(
        1, "highest order of the field features", minimum=0, density_only=True
    )
    field_feature_widths: tuple[float, ...] = option(
        (1.5, 3.0), "widths of the Gaussians that sample the potential, A", density_only=True
    )
    field_feature_norms: Literal["None", "average"] | tuple[float, ...] = option(
        "average",
        "divisors of the field features: None (1.0), average (RMS over the training data) or one "
        "per order and width, order by order",
        density_only=True,
        example="[25.0, 25.0, 1.0, 1.0]",
    )
    include_field_si: bool = option(
        False, "keep the interaction of each atom with itself in the features", density_only=True
    )
    fixedpoint_update_config: PartValue = option(
        {
            "type": "OneBodyVariableUpdate",
            "potential_embedding_cls": "BiasedLinearPotentialEmbedding",
            "nonlinearity_cls": "NoNonLinearity",
        },
        "rule that gives the field-dependent density",
        part="update_rule",
        density_only=True,
    )
    field_readout_config: PartValue = option(
        {"type": "StrictQuadraticFieldEnergyReadout"},
        "density-dependent energy beside the electrostatic one",
        part="field_readout",
        density_only=True,
    )
    include_local_electron_energy: bool = option(
        True, "add the energy of field_readout_config", density_only=True
    )
