"""What a foreign model may consist of; everything else is refused by name, before any weights."""

from __future__ import annotations

from fpmace.blocks.linear import SIGMOID_NORM, SILU_NORM
from fpmace.conversion.module_tree import Module
from fpmace.conversion.safe_archive import class_name
from fpmace.errors import ModelFileError
from fpmace.registry import names

POLAR_BLOCKS = (
    "AgnosticEmbeddedOneBodyVariableUpdate",
    "AgnosticChargeBiasedLinearPotentialEmbedding",
)
"""Update and embedding of PolarMACE."""

SILU_NAMES = ("silu", "mysilu", "SiLU")

_PLAIN_CLASSES = frozenset(
    {
        "ModuleList",
        "ParameterList",
        "ParameterDict",
        "ModuleDict",
        "Sequential",
        "Identity",
        "reduce_graph_module",
        "Linear",
        "FullyConnectedTensorProduct",
        "TensorProduct",
        "FullyConnectedNet",
        "_Layer",
        "Activation",
        "Gate",
        "normalize2mom",
        "SphericalHarmonics",
        "Extract",
        "Sortcut",
        "_Sortcut",
        "Irreps",
        "ElementwiseTensorProduct",
        "AtomicEnergiesBlock",
        "EquivariantProductBasisBlock",
        "LinearNodeEmbeddingBlock",
        "LinearReadoutBlock",
        "NonLinearReadoutBlock",
        "RadialEmbeddingBlock",
        "ScaleShiftBlock",
        "reshape_irreps",
        "undo_reshape",
        "SparseUvuTensorProduct",
        "GeneralNonLinearBiasReadoutBlock",
        *POLAR_BLOCKS,
        "BesselBasis",
        "GaussianBasis",
        "ChebychevBasis",
        "AgnesiTransform",
        "SoftTransform",
        "ZBLBasis",
        "RadialMLP",
        "LayerNorm",
        "SiLU",
        "GatedEquivariantBlock",
        "NonLinearBiasReadoutBlock",
        "GenericJointEmbedding",
        "Embedding",
        "PolynomialCutoff",
        "Contraction",
        "SymmetricContraction",
    }
)
"""Classes that may occur anywhere; what they mean is read from their place."""

_PACKAGES = ("graph_longrange",)
"""Packages whose modules hold constants only."""

_MODEL_OPTIONS = {"use_so3": (False, "features without parity (use_so3)")}
"""Attributes of the whole model: the one value that fpmace has, and what another one means."""

_HARMLESS_OPTIONS = frozenset(
    {
        "training",
        "apply_cutoff",
        "pair_repulsion",
        "use_agnostic_product",
        "use_last_readout_only",
        "use_edge_irreps_first",
        "use_embedding_readout",
        "heads",
        "lammps_mliap",
        "use_reduced_cg",
        "charges_irreps",
        "potential_irreps",
        "from_ell_max_field_update",
        "add_local_electron_energy",
        "return_electrostatic_potentials",
    }
)


_POLAR_OPTIONS = frozenset(
    {
        "kspace_cutoff_factor",
        "num_recursion_steps",
        "atomic_multipoles_max_l",
        "atomic_multipoles_smearing_width",
        "field_feature_max_l",
        "field_norm_factor",
        "field_si",
        "include_electrostatic_self_interaction",
        "quadrupole_feature_corrections",
        "keep_last_layer_irreps",
    }
)
"""Of PolarMACE; what they mean is read from the blocks that they made."""


def check_supported(root: Module) -> None:
    """Refuse a model that has anything fpmace does not have.

    Raises:
        ModelFileError: naming the feature and its place.
    """
    blocks = {
        name
        for kind in ("interaction", "update_rule", "field_readout", "nonlinearity")
        for name in names(kind)
    }
    blocks |= {*names("potential_embedding"), *names("field_mixer"), "AdditiveMixer"}
    for module in root.walk():
        if module.name and not _is_source_map(module):
            _check_class(module, blocks)
        _check_activation(module)
    _check_options(root)


def _is_source_map(module: Module) -> bool:
    """Local density readouts and layer mixers are recognised by their parts, not their class."""
    head, _, tail = module.name.partition(".")
    return (head == "lr_source_maps" and tail.isdigit()) or module.name == "layer_feature_mixer"


def _check_class(module: Module, blocks: set[str]) -> None:
    name, path = module.class_name, module.class_path
    package = path.partition(".")[0]
    if "lora" in name.lower():
        raise _unsupported(module, f"LoRA adapters of class {name}; merge them and save again")
    if name not in _PLAIN_CLASSES and name not in blocks and package not in _PACKAGES:
        raise _unsupported(module, f"a block of class {path}")


def _check_activation(module: Module) -> None:
    if module.class_name != "normalize2mom":
        return
    function = class_name(module.attributes.get("f"))
    constant = module.value("cst")
    known = SILU_NORM if function in SILU_NAMES else None
    if ".equivariant_nonlin.act_gates." in module.name and function == "sigmoid":
        known = SIGMOID_NORM
    if known is not None and abs(constant - known) > 1e-6:
        raise _unsupported(module, f"'{function}' normalised by {constant}, not {known}")
    if known is None and ".non_linearity." not in f"{module.name}.":
        raise _unsupported(module, f"the activation '{function}' inside a network")


def _check_options(root: Module) -> None:
    for key, (expected, meaning) in _MODEL_OPTIONS.items():
        value = root.attributes.get(key)
        if value is not None and (not isinstance(value, bool) or value is not expected):
            raise _unsupported(root, meaning)
    for key, value in root.attributes.items():
        known = key.startswith("_") or key in _HARMLESS_OPTIONS or key in _MODEL_OPTIONS
        known = known or (root.class_name == "PolarMACE" and key in _POLAR_OPTIONS)
        if not known and isinstance(value, bool | int | float | str) and value:
            raise _unsupported(root, f"the option '{key}' = {value!r}, which is not known here")


def _unsupported(module: Module, what: str) -> ModelFileError:
    return module.refuse(f"not supported: {what}")
