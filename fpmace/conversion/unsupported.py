"""What a foreign model may consist of; everything else is refused by name, before any weights."""

from __future__ import annotations

from fpmace.blocks.linear import SILU_NORM
from fpmace.conversion.module_tree import Module
from fpmace.conversion.safe_archive import class_name
from fpmace.errors import ModelFileError
from fpmace.registry import names

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
        "BesselBasis",
        "GaussianBasis",
        "PolynomialCutoff",
        "Contraction",
        "SymmetricContraction",
    }
)
"""Classes that may occur anywhere; what they mean is read from their place."""

_PACKAGES = ("graph_longrange",)
"""Packages whose modules hold constants only."""

_FEATURES = {
    "ZBLBasis": "the pair repulsion of the option pair_repulsion",
    "AgnesiTransform": "the distance transform 'Agnesi'",
    "SoftTransform": "the distance transform 'Soft'",
    "ChebychevBasis": "the radial basis 'chebyshev'",
    "GenericJointEmbedding": "an embedding of further inputs (embedding_specs)",
    "NonLinearBiasReadoutBlock": "a readout with biases (NonLinearBiasReadoutBlock)",
}

_MODEL_OPTIONS = {
    "apply_cutoff": (True, "the cutoff outside of the radial basis (apply_cutoff False)"),
    "edge_irreps": (None, "the option edge_irreps"),
    "use_agnostic_product": (False, "a product basis without elements (use_agnostic_product)"),
    "use_so3": (False, "pseudo-tensor features (use_so3)"),
    "use_last_readout_only": (False, "energy from the last layer only (use_last_readout_only)"),
    "pair_repulsion": (False, "the pair repulsion of the option pair_repulsion"),
    "embedding_specs": (None, "an embedding of further inputs (embedding_specs)"),
}
"""Attributes of the whole model: the one value that fpmace has, and what another one means."""

_HARMLESS_OPTIONS = frozenset(
    {
        "training",
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
    if name in _FEATURES:
        raise _unsupported(module, _FEATURES[name])
    if "lora" in name.lower():
        raise _unsupported(module, "LoRA adapters; merge them into the weights and save again")
    if package.startswith(("cuequivariance", "openequivariance")):
        raise _unsupported(
            module, f"kernels of {package}; convert the model to plain e3nn with mace-torch first"
        )
    if name not in _PLAIN_CLASSES and name not in blocks and package not in _PACKAGES:
        raise _unsupported(module, f"a block of class {path}")


def _check_activation(module: Module) -> None:
    if module.class_name != "normalize2mom":
        return
    function = class_name(module.attributes.get("f"))
    constant = module.value("cst")
    is_silu = function in SILU_NAMES
    if is_silu and abs(constant - SILU_NORM) > 1e-6:
        raise _unsupported(module, f"SiLU normalised by {constant}, not {SILU_NORM}")
    if not is_silu and ".non_linearity." not in f"{module.name}.":
        raise _unsupported(module, f"the activation '{function}' inside a network")


def _check_options(root: Module) -> None:
    for key, (expected, meaning) in _MODEL_OPTIONS.items():
        value = root.attributes.get(key)
        if value is not None and (not isinstance(value, bool) or value is not expected):
            raise _unsupported(root, meaning)
    heads = root.attributes.get("heads")
    if isinstance(heads, list | tuple) and len(heads) > 1:
        raise _unsupported(
            root,
            f"several heads ({', '.join(map(str, heads))}); save one head as its own model first",
        )
    for key, value in root.attributes.items():
        known = key.startswith("_") or key in _HARMLESS_OPTIONS or key in _MODEL_OPTIONS
        if not known and isinstance(value, bool | int | float | str) and value:
            raise _unsupported(root, f"the option '{key}' = {value!r}, which is not known here")


def _unsupported(module: Module, what: str) -> ModelFileError:
    return module.refuse(f"not supported: {what}")
