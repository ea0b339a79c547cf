"""Options of heads and energy readouts, read from the modules of a foreign model."""

from __future__ import annotations

from e3nn.o3 import Irreps

from fpmace.annotations import Options
from fpmace.blocks.linear import SILU_NORM
from fpmace.blocks.readout import ABS_NORM, TANH_NORM
from fpmace.conversion.module_tree import Module
from fpmace.conversion.safe_archive import class_name
from fpmace.conversion.unsupported import SILU_NAMES


def head_options(root: Module) -> Options:
    """Names of the heads, and the energies of free atoms of each.

    Raises:
        ModelFileError: if their number is not that of the heads and elements.
    """
    heads = root.value("heads", None) or ["Default"]
    numbers, block = root.value("atomic_numbers"), root.child("atomic_energies_fn")
    energies = block.value("atomic_energies")
    per_head = energies if energies and isinstance(energies[0], list) else [energies]
    if len(per_head) != len(heads):
        raise block.refuse(
            f"has energies for {len(per_head)} heads, the model has {len(heads)}; not supported"
        )
    for values in per_head:
        if len(values) != len(numbers):
            raise block.refuse(f"has {len(values)} energies for {len(numbers)} elements")
    return {
        "heads": [str(head) for head in heads],
        "atomic_numbers": numbers,
        "atomic_energies": per_head if len(heads) > 1 else per_head[0],
    }


def scale_options(root: Module, n_heads: int) -> Options:
    """Scale and shift of the readouts, one number per head.

    Raises:
        ModelFileError: if their number is not that of the heads.
    """
    block = root.child("scale_shift")
    options: Options = {}
    for name in ("scale", "shift"):
        value = block.value(name)
        values = value if isinstance(value, list) else [value] * n_heads
        if len(values) != n_heads:
            raise block.refuse(f"has {len(values)} values of {name} for {n_heads} heads")
        numbers = [float(item) for item in values]
        options[f"atomic_inter_{name}"] = numbers if n_heads > 1 else numbers[0]
    return options


def readout_options(root: Module, n_layers: int, n_heads: int) -> Options:
    """Options of the energy readouts.

    Raises:
        ModelFileError: if a readout is of another kind than its place says.
    """
    readouts = root.child("readouts").items()
    only_last = bool(root.value("use_last_readout_only", False))
    if len(readouts) != (1 if only_last else n_layers):
        raise root.refuse(
            f"has {len(readouts)} energy readouts for {n_layers} layers (use_last_readout_only "
            f"{only_last}); not supported"
        )
    for readout in readouts:
        _check_heads(readout, n_heads)
    linear = [readout.find("linear_1") is None for readout in readouts]
    if not all(linear[:-1]):
        raise readouts[linear.index(False)].refuse("is non-linear but not the last readout")
    options: Options = {"use_last_readout_only": only_last}
    last = readouts[-1]
    if linear[-1]:
        return options
    hidden = Irreps(last.child("linear_1").value("irreps_out"))
    if hidden.dim % n_heads or hidden.lmax > 0:
        raise last.refuse(f"has hidden features {hidden} for {n_heads} heads; not supported")
    biased = last.find("linear_mid") is not None
    if biased is not (last.class_name == "NonLinearBiasReadoutBlock"):
        raise last.refuse(f"is a {last.class_name} of another form than known")
    return {
        **options,
        "MLP_irreps": f"{hidden.dim // n_heads}x0e",
        "gate": gate_of(last),
        "readout_bias": biased,
    }


def _check_heads(readout: Module, n_heads: int) -> None:
    out = (readout.find("linear_2") or readout.child("linear")).value("irreps_out")
    if Irreps(out).simplify() != Irreps(f"{n_heads}x0e"):
        raise readout.refuse(f"gives {out}, not an energy for each of {n_heads} heads")


def gate_of(readout: Module) -> str:
    """The activation of a readout, by its name in the option ``gate``.

    Raises:
        ModelFileError: if it is not known.
    """
    activations = readout.child("non_linearity.acts").items()
    if not activations:
        return "None"
    function = class_name(activations[0].attributes.get("f"))
    norm = activations[0].value("cst")
    if function in SILU_NAMES and abs(norm - SILU_NORM) < 1e-6:
        return "silu"
    for name, known in (("tanh", TANH_NORM), ("abs", ABS_NORM)):
        if function == name and abs(norm - known) < 1e-6:
            return name
    raise activations[0].refuse(
        f"the activation '{function}' is not supported (silu, tanh, abs, None)"
    )
