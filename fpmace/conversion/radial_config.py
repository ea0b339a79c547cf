"""Options of radial functions, cutoff and repulsion, read from a foreign model."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from fpmace.annotations import Options
from fpmace.conversion.module_tree import Module

_BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
_TRANSFORMS = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}


def radial_options(root: Module) -> Options:
    """Options of the radial basis, the distance transform, the cutoff and the repulsion.

    Raises:
        ModelFileError: if one of them is not known.
    """
    radial = root.child("radial_embedding")
    basis, cutoff = radial.child("bessel_fn"), radial.child("cutoff_fn")
    inside = bool(radial.value("apply_cutoff", True))
    if inside is not bool(root.value("apply_cutoff", inside)):
        raise root.refuse("contradicts its radial embedding in apply_cutoff; not supported")
    return {
        "radial_type": _basis(basis, float(root.value("r_max"))),
        "num_bessel": max(value.numel() for value in basis.tensors().values()),
        "num_polynomial_cutoff": int(cutoff.value("p")),
        "apply_cutoff": inside,
        "distance_transform": _transform(radial.find("distance_transform")),
        "pair_repulsion": _repulsion(root, int(cutoff.value("p"))),
    }


def _basis(basis: Module, r_max: float) -> str | Options:
    if basis.class_name not in _BASES:
        raise basis.refuse(f"the radial basis {basis.class_name} is not known")
    name = _BASES[basis.class_name]
    if name != "bessel":
        return name
    trained = "bessel_weights" in basis.parameters() or not _regular(basis, r_max)
    return {"type": name, "trainable": True} if trained else name


def _regular(basis: Module, r_max: float) -> bool:
    """Whether the roots are those that training starts from."""
    roots: Tensor | None = basis.tensors().get("bessel_weights")
    if roots is None:
        raise basis.refuse("has no 'bessel_weights'")
    regular = torch.arange(1, roots.numel() + 1, dtype=torch.float64) * (pi / r_max)
    return bool(torch.allclose(roots.to(torch.float64), regular, rtol=1e-6))


def _transform(transform: Module | None) -> str | Options | None:
    if transform is None:
        return None
    if transform.class_name not in _TRANSFORMS:
        raise transform.refuse(f"the distance transform {transform.class_name} is not known")
    name = _TRANSFORMS[transform.class_name]
    return {"type": name, "trainable": True} if transform.parameters() else name


def _repulsion(root: Module, power: int) -> str | Options | None:
    repulsion = root.find("pair_repulsion_fn")
    if bool(root.value("pair_repulsion", False)) is not (repulsion is not None):
        raise root.refuse("contradicts itself in its pair_repulsion; not supported")
    if repulsion is None:
        return None
    if repulsion.class_name != "ZBLBasis":
        raise repulsion.refuse(f"the pair repulsion {repulsion.class_name} is not known")
    if int(repulsion.value("p")) != power:
        raise repulsion.refuse(
            f"is cut off with the power {repulsion.value('p')}, the radial basis with {power}; "
            "not supported"
        )
    return {"type": "ZBL", "trainable": True} if repulsion.parameters() else "ZBL"
