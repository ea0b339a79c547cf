"""Options that models share, each declared once: type, range, unit and meaning.

The constructor of a model names these types; flags, YAML, model files, the reference page and
messages read them there. Models of one's own may use them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from ase.data import chemical_symbols
from e3nn.o3 import Irreps

from fpmace.annotations import Bounds, Check, Count, Doc, FromData, Options, Positive, Unit
from fpmace.blocks.graph_embedding import check_specs
from fpmace.errors import ConfigError
from fpmace.models.size import check_weights
from fpmace.registry import Part, PartConfig

MOST_CHANNELS = 100_000
"""Channels whose weights between two layers would fill 80 GB."""


def check_irreps(text: str) -> None:
    """Check a list of features such as "32x0e+32x1o".

    Raises:
        ValueError: if it is none, has an unusual parity, or does not begin with scalars.
    """
    try:
        irreps = Irreps(text)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"{text!r} is not a list of irreps such as '32x0e+32x1o'") from error
    for mul, ir in irreps:
        if mul < 1 or ir.p != (-1) ** ir.l:
            raise ValueError(
                f"{mul}x{ir} in {text!r} is not supported; use 0e, 1o, 2e, ... with a "
                "multiplicity of at least 1"
            )
        if mul > MOST_CHANNELS or ir.l > 12:
            raise ValueError(
                f"{mul}x{ir} in {text!r} is larger than {MOST_CHANNELS} channels of degree 12"
            )
    if not irreps or irreps[0].ir.l != 0:
        raise ValueError(f"{text!r} must begin with scalars, such as '32x0e'")


Factors = Annotated[int, Bounds(minimum=1, maximum=10)]
Order = Annotated[int, Bounds(minimum=0)]
Widths = Annotated[tuple[Count, ...], Bounds(filled=True)]

AtomicNumbers = Annotated[
    tuple[Count, ...], FromData(), Doc("elements of the model, as ascending atomic numbers")
]
Heads = Annotated[
    Annotated[tuple[str, ...], Bounds(filled=True)],
    FromData(),
    Doc(
        "names of the heads, levels of theory that share the backbone; each has atomic energies, "
        "scale, shift and a readout of its own"
    ),
]
AtomicEnergies = Annotated[
    tuple[float, ...] | tuple[tuple[float, ...], ...],
    FromData(),
    Unit("eV"),
    Doc("energy of a free atom of each element; with several heads, a list for each"),
]
CutoffRadius = Annotated[Positive, Unit("Angstrom"), Doc("cutoff of the local environment")]
RadialCount = Annotated[
    int, Bounds(minimum=1, maximum=10_000), Doc("number of radial basis functions")
]
CutoffPower = Annotated[int, Bounds(minimum=2), Doc("exponent p of the polynomial cutoff")]
EdgeDegree = Annotated[
    int, Bounds(minimum=0, maximum=12), Doc("highest order of the spherical harmonics of an edge")
]
LayerCount = Annotated[int, Bounds(minimum=1, maximum=100), Doc("number of interaction layers")]
HiddenIrreps = Annotated[str, Check(check_irreps), Doc("features of an atom", "32x0e+32x1o")]
BiasedReadout = Annotated[
    bool, Doc("give the last energy readout a second hidden layer, and biases after the first")
]
LastReadoutOnly = Annotated[bool, Doc("read the energy from the last layer alone")]
ReadoutIrreps = Annotated[
    str, Check(check_irreps), Doc("hidden features of the last energy readout", "16x0e")
]
LinearFinalReadout = Annotated[
    bool, Doc("read the energy of the last layer by a linear map too, without hidden features")
]
NeighbourCount = Annotated[
    Positive,
    FromData(),
    Doc("normaliser of the messages; counted in the training data if not given"),
]
Correlation = Annotated[
    Factors | tuple[Factors, ...],
    Doc("correlation order of the product basis; one number, or one per layer"),
]
Gate = Annotated[
    Literal["silu", "tanh", "abs"] | None, Doc("activation of the non-linear readouts; None: none")
]
RadialWidths = Annotated[Widths, Doc("layer widths of the radial network", "[64, 64, 64]")]
RadialBasis = Annotated[PartConfig, Part("radial_basis"), Doc("radial basis")]
FirstInteraction = Annotated[
    PartConfig, Part("interaction"), Doc("interaction block of the first layer")
]
Interaction = Annotated[
    PartConfig, Part("interaction"), Doc("interaction block of all layers but the first")
]
ApplyCutoff = Annotated[
    bool,
    Doc(
        "multiply the radial basis with the cutoff; false: cut the sums over neighbours instead, "
        "which non-linear interactions need to be smooth at r_max"
    ),
]
EdgeIrreps = Annotated[
    Annotated[str, Check(check_irreps)] | None,
    Doc("features that are summed over the neighbours; None: those of an atom", "16x0e+16x1o"),
]
EdgeIrrepsFirst = Annotated[
    bool, Doc("take the number of scalars of edge_irreps in the first layer too")
]
DistanceTransform = Annotated[
    PartConfig | None,
    Part("distance_transform"),
    Doc("what is done to a distance before the radial basis sees it"),
]
PairRepulsion = Annotated[
    PartConfig | None,
    Part("pair_repulsion"),
    Doc("repulsion of nuclei at short distance, added to the energy of the readouts"),
]
AgnosticProduct = Annotated[bool, Doc("give the product basis the same weights for all elements")]
ReducedCoupling = Annotated[
    bool, Doc("take linearly independent polynomials only into the product basis")
]
EmbeddingSpecs = Annotated[
    dict[str, dict[str, Any]] | None,
    Doc(
        "inputs of a structure that its features depend on, such as its charge: for each the "
        "type categorical (num_classes, offset) or continuous (in_dim, use_bias), and emb_dim",
        "{total_charge: {type: categorical, emb_dim: 16, num_classes: 21, offset: 10}}",
    ),
]
KeepLastLayer = Annotated[
    bool,
    Doc("keep vectors and higher features in the last layer of models that read scalars there"),
]
EmbeddingReadout = Annotated[
    bool, Doc("read an energy from the features that the inputs and the element give")
]
EnergyScale = Annotated[
    float | tuple[float, ...],
    FromData(),
    Doc("factor on the energy of the network, one per head; the RMS force of the data"),
]
EnergyShift = Annotated[
    float | tuple[float, ...],
    FromData(),
    Unit("eV"),
    Doc("shift per atom, one per head; the mean interaction energy of the data"),
]
FeatureNorms = Annotated[
    tuple[Positive, ...] | Literal["average", "conjugate"] | None,
    FromData("average"),
    Doc(
        "divisors of the field features: None (1.0), average (RMS over the training data), "
        "conjugate (features are the potentials conjugate to the multipoles; chosen where a part "
        "needs them) or one per order and width, order by order",
        "[25.0, 25.0, 1.0, 1.0]",
    ),
]
FermiLevelOffset = Annotated[
    float | Literal["average"],
    FromData("average"),
    Unit("eV"),
    Doc("zero of the Fermi level; average: mean over the training data"),
]
DensityScaling = Annotated[
    dict[int, Positive] | tuple[Positive, ...] | Literal["average"] | None,
    FromData("average", by_default=False),
    Doc(
        "scale of the linear local multipoles per element: None (1.0), average (RMS of the "
        "reference multipoles) or {atomic number: scale}",
        "{1: 0.5, 8: 2.0}",
    ),
]
LinearLocalDensity = Annotated[
    bool,
    Doc("field-independent multipoles by a linear map scaled per element, not by a gated network"),
]
LocalDensity = Annotated[
    PartConfig | None,
    Part("local_density_readout"),
    Doc("local density readout by name; None: chosen by use_linear_local_charges"),
]
Update = Annotated[
    PartConfig, Part("update_rule"), Doc("rule that gives the field-dependent density")
]
FieldReadout = Annotated[
    PartConfig,
    Part("field_readout"),
    Doc("density-dependent energy beside the electrostatic one"),
]
ElectronEnergy = Annotated[bool, Doc("add the energy of field_readout_config")]
AnchorAtoms = Annotated[
    bool,
    Doc(
        "let readouts and local density vanish for atoms without neighbours, so that the energy "
        "of isolated neutral atoms is E0; "
        "by itself true with VariationalFieldReadout and a passive rule"
    ),
]
ReturnPotentials = Annotated[bool, Doc("also return the potential at the atoms")]


def check_backbone(options: Options) -> None:
    """Check backbone options that have to fit together, and into the machine.

    Raises:
        ConfigError: naming the option.
    """
    orders, layers = options["correlation"], options["num_interactions"]
    if isinstance(orders, tuple) and len(orders) != layers:
        raise ConfigError(
            f"expects one order for each of the {layers} interactions, got {list(orders)}",
            where="correlation",
        )
    check_specs(options.get("embedding_specs") or {})
    if options.get("use_embedding_readout") and not options.get("embedding_specs"):
        raise ConfigError("true needs embedding_specs", where="use_embedding_readout")
    check_weights(options)


def check_norms(options: Options) -> None:
    """Check the number of field-feature norms.

    Raises:
        ConfigError: naming the option.
    """
    norms = options["field_feature_norms"]
    expected = len(options["field_feature_widths"]) * (options["field_feature_max_l"] + 1)
    if isinstance(norms, tuple) and len(norms) != expected:
        raise ConfigError(
            f"expects {expected} numbers (len(field_feature_widths) * (field_feature_max_l + 1), "
            f"order by order), got {len(norms)}",
            where="field_feature_norms",
        )


def scale_per_element(
    scaling: Mapping[int, float] | Sequence[float] | str | None, numbers: tuple[int, ...]
) -> list[float]:
    """The scale of each element, from ``atom_density_scaling``.

    Raises:
        ConfigError: if an element has none.
    """
    if scaling is None:
        return [1.0] * len(numbers)
    if isinstance(scaling, Mapping):
        missing = [number for number in numbers if number not in scaling]
        if missing:
            names = ", ".join(f"{chemical_symbols[z]} ({z})" for z in missing)
            raise ConfigError(f"has no scale for {names}", where="atom_density_scaling")
        return [float(scaling[number]) for number in numbers]
    if len(scaling) != len(numbers):
        raise ConfigError(
            f"expects {len(numbers)} values, one per element, got {len(scaling)}",
            where="atom_density_scaling",
        )
    return [float(value) for value in scaling]
