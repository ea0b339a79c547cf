"""Kernels of cuequivariance and openequivariance in a foreign model, put back into e3nn's form.

mace-torch can save a model whose maps and products are those of another package. Linear maps
keep e3nn's flat weights, which the polynomials in the file confirm: their paths must be those of
e3nn in order and norm. The weights of a symmetric contraction multiply polynomials that the file
holds as well; they become arrays U, as in a plain file. Layouts of features in memory
(``mul_ir``, ``ir_mul``) change no weight.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import torch
from e3nn.o3 import Irrep, Irreps, wigner_3j
from numpy.typing import NDArray

from fpmace.blocks.linear import linear_function
from fpmace.conversion.module_tree import Module, stand_in
from fpmace.conversion.safe_archive import Foreign, class_name
from fpmace.errors import ModelFileError

TOLERANCE = 1e-5
"""On coefficients of order one, which may have been worked out in float32."""

PACKAGES = {
    "cuequivariance_torch": "mace_cueq_to_e3nn",
    "openequivariance": "mace.cli.convert_oeq_e3nn",
}
"""Packages of kernels, and the program of mace-torch that brings their models back to e3nn."""


def plain_kernels(root: Module) -> int:
    """Replace every module of such a package by one of e3nn with the same meaning, in place.

    Returns:
        How many there were.

    Raises:
        ModelFileError: if one is not of a form that is known.
    """
    count = 0
    for module in list(root.walk()):
        if _package(module) in PACKAGES:
            continue
        for name, child in module.children().items():
            if _package(child) in PACKAGES:
                module.attributes["_modules"][name] = _plain(child)
                count += 1
    return count


def _package(module: Module) -> str:
    return module.class_path.partition(".")[0]


def _plain(module: Module) -> Foreign | None:
    package = _package(module)
    maker = _MAKERS.get((package, module.class_name))
    try:
        if maker is None:
            raise ValueError("its class is not known")
        return maker(module)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, ModelFileError) as error:
        raise module.refuse(
            f"not supported: the kernel {module.class_path} of {package} ({error}); convert the "
            f"model to plain e3nn with mace-torch's {PACKAGES[package]} first"
        ) from error


def _linear(module: Module) -> Foreign:
    irreps_in, irreps_out = (_irreps(module, f"irreps_{end}") for end in ("in", "out"))
    _check_paths(module, irreps_in, irreps_out, 1)
    return _map("e3nn.o3._linear.Linear", module, irreps_in, irreps_out)


def _element_linear(module: Module) -> Foreign:
    """A product with one-hot elements."""
    irreps_in, elements = _irreps(module, "irreps_in1"), _irreps(module, "irreps_in2")
    irreps_out = _irreps(module, "irreps_out")
    if elements != Irreps(f"{elements.dim}x0e"):
        raise ValueError(f"the second factor is {elements}, not scalars")
    _check_paths(module, irreps_in, irreps_out, elements.dim)
    path = "e3nn.o3._tensor_product._sub.FullyConnectedTensorProduct"
    return _map(path, module, irreps_in, irreps_out)


def _map(path: str, module: Module, irreps_in: Irreps, irreps_out: Irreps) -> Foreign:
    weight = module.tensors()["weight"]
    return stand_in(
        path, weight=weight.reshape(-1), irreps_in=str(irreps_in), irreps_out=str(irreps_out)
    )


def _check_paths(module: Module, irreps_in: Irreps, irreps_out: Irreps, n_elements: int) -> None:
    """Demand e3nn's paths in e3nn's order, each the identity over the root of its fan-in."""
    ((_, product),) = _operations(module)
    subscripts = [names for _, names in product["operands_and_subscripts"]]
    if subscripts not in (["uv", "iu", "iv"], ["uvw", "iu", "jv", "kw"]):
        raise ValueError(f"its subscripts are {subscripts}")
    given = []
    for path in product["paths"]:
        numbers = path.attributes["indices"]
        matrix = _array(path.attributes["coefficients"]).squeeze()
        norm = float(matrix.flat[0])
        if not np.allclose(matrix, norm * (np.eye(len(matrix)) if matrix.ndim else 1.0)):
            raise ValueError("a path is not a multiple of the identity")
        given.append((numbers[0], numbers[1], numbers[-1], norm))
    known = [
        (number, path.i_in, path.i_out, path.path_weight / sqrt(n_elements))
        for number, path in enumerate(linear_function(irreps_in, irreps_out, False).instructions)
    ]
    if len(given) != len(known) or not np.allclose(sorted(given), known, atol=TOLERANCE):
        raise ValueError("its weights have another order or norm than those of e3nn")


def _convolution(module: Module) -> Foreign:
    """The product of neighbours and directions; has no weights, the radial network gives them."""
    ((buffers, product),) = _operations(module)
    if buffers != (0, 1, 2, 3):
        raise ValueError(f"its factors are {buffers}")
    entries, values, sizes = _entries(product)
    given = np.zeros(sizes)
    np.add.at(given, tuple(entries.T), values)
    if not np.allclose(given, _known_products(given), atol=TOLERANCE):
        raise ValueError("its paths have another order or norm than those of e3nn")
    return stand_in("e3nn.o3._tensor_product._tensor_product.TensorProduct")


def _open_convolution(module: Module) -> Foreign:
    """As :func:`_convolution`; "uvu" paths are e3nn's by the definition of the package."""
    problem = module.attributes["problem"].attributes
    paths = [tuple(item) for item in problem["instructions_raw"]]
    norms = [problem.get(f"{name}_normalization") for name in ("irrep", "path")]
    if any(path[3] != "uvu" or path[5:] not in ((), (1.0,)) for path in paths):
        raise ValueError("its paths are not all 'uvu' of weight one")
    if norms not in ([None, None], ["component", "element"]):
        raise ValueError(f"its norms are {norms}")
    return stand_in("e3nn.o3._tensor_product._tensor_product.TensorProduct")


def _known_products(given: NDArray[np.float64]) -> NDArray[np.float64]:
    """e3nn's coefficients [n_paths, components of both factors and of the product].

    Factors have every degree from zero once, so their sizes say which. The paths are sorted by
    the degree of the result, then by those of the factors; which degrees of the result there are
    follows from the number of components.
    """
    degrees = [range(round(sqrt(size))) for size in given.shape[1:3]]
    paths = sorted(
        (out, left, right)
        for left in degrees[0]
        for right in degrees[1]
        for out in range(abs(left - right), left + right + 1, 2)
    )[: len(given)]
    dim_out = sum(2 * out + 1 for out, _, _ in paths)
    known = np.zeros((*given.shape[:3], dim_out))
    start = 0
    for number, (out, left, right) in enumerate(paths):
        block = wigner_3j(left, right, out, dtype=torch.float64).numpy() * sqrt(2 * out + 1)
        known[
            number,
            left**2 : (left + 1) ** 2,
            right**2 : (right + 1) ** 2,
            start : start + 2 * out + 1,
        ] = block
        start += 2 * out + 1
    if known.shape != given.shape:
        raise ValueError(f"its paths have {given.shape[3]} components, expected {dim_out}")
    return known


def _contraction(module: Module) -> Foreign:
    """A symmetric contraction as one per irrep of the result, with arrays U and their weights."""
    weight = module.tensors()["weight"]
    projection = module.tensors().get("projection")
    if projection is not None:
        weight = torch.einsum("zau,ab->zbu", weight, projection)
    irreps_out, correlation = (
        _irreps(module, "irreps_out"),
        int(module.value("contraction_degree")),
    )
    parts = [stand_in(f"{_MACE}.Contraction", correlation=correlation) for _ in irreps_out]
    degrees = set()
    for buffers, product in _operations(module):
        degree = len(buffers) - 2
        if buffers != (0, *[1] * degree, 2) or degree in degrees or not 0 < degree <= correlation:
            raise ValueError(f"its factors are {buffers}")
        degrees.add(degree)
        name = "weights_max" if degree == correlation else f"weights.{correlation - 1 - degree}"
        arrays = _couplings(product, irreps_out, weight.shape[1])
        for part, (u_array, rows) in zip(parts, arrays, strict=True):
            part.state["_buffers"][f"U_matrix_{degree}"] = torch.from_numpy(u_array)
            part.state["_parameters"][name] = (
                weight[:, rows] if len(rows) else torch.zeros_like(weight[:, :1])
            )
    if degrees != set(range(1, correlation + 1)):
        raise ValueError(f"it has the degrees {sorted(degrees)} of {correlation}")
    contractions = stand_in(_LIST, **{str(number): part for number, part in enumerate(parts)})
    return stand_in(f"{_MACE}.SymmetricContraction", contractions=contractions)


_MACE, _LIST = "mace.modules.symmetric_contraction", "torch.nn.modules.container.ModuleList"


def _couplings(
    product: dict[str, Any], irreps_out: Irreps, n_paths: int
) -> list[tuple[NDArray[np.float64], list[int]]]:
    """U of one degree for each irrep of the result, and the weights that it belongs to.

    Without any it is one zero polynomial, as in a plain file.
    """
    entries, values, sizes = _entries(product)
    if sizes[0] != n_paths or sizes[-1] != sum(ir.dim for _, ir in irreps_out):
        raise ValueError(f"its polynomials have sizes {sizes}")
    found, start = [], 0
    for _, ir in irreps_out:
        inside = (entries[:, -1] >= start) & (entries[:, -1] < start + ir.dim)
        chosen = entries[inside]
        rows, numbers = np.unique(chosen[:, 0], return_inverse=True)
        u_array = np.zeros((ir.dim, *sizes[1:-1], max(len(rows), 1)))
        where = (chosen[:, -1] - start, *chosen[:, 1:-1].T, numbers.reshape(-1))
        np.add.at(u_array, where, values[inside])
        found.append((u_array if ir.l else u_array[0], rows.tolist()))
        start += ir.dim
    return found


def _operations(module: Module) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """Buffers and product of every operation of the polynomial of a module."""
    holder = module if module.class_name == "SegmentedPolynomial" else module.child("f")
    return [
        (tuple(operation.attributes["buffers"]), product.attributes)
        for operation, product in holder.foreign.args[0].attributes["operations"]
    ]


def _entries(
    product: dict[str, Any],
) -> tuple[NDArray[np.int64], NDArray[np.float64], tuple[int, ...]]:
    """Non-zero coefficients of a product by the component of each factor, and numbers of these.

    A segment is a component, or has an axis of components that the coefficients share.
    """
    modes = str(product["coefficient_subscripts"].args[0])
    axes, starts = [], []
    for operand, subscripts in product["operands_and_subscripts"]:
        axis = [modes.index(mode) for mode in subscripts if mode in modes]
        if len(axis) > 1:
            raise ValueError(f"its subscripts are '{subscripts}' with coefficients '{modes}'")
        axes.append(axis)
        place = [subscripts.index(modes[number]) for number in axis]
        extents = [s[place[0]] if place else 1 for s in operand.attributes["segments"]]
        starts.append(np.concatenate([[0], np.cumsum(extents)]).astype(np.int64))
    entries, values = [], []
    for path in product["paths"]:
        numbers = path.attributes["indices"]
        block = _array(path.attributes["coefficients"])
        for cell in np.argwhere(block):
            entries.append(
                [
                    start[number] + (cell[axis[0]] if axis else 0)
                    for start, number, axis in zip(starts, numbers, axes, strict=True)
                ]
            )
            values.append(block[tuple(cell)])
    shape = (len(values), len(axes))
    return (
        np.array(entries, dtype=np.int64).reshape(shape),
        np.array(values, dtype=np.float64),
        tuple(int(start[-1]) for start in starts),
    )


def _array(value: Foreign) -> NDArray[np.float64]:
    """A pickled array of numpy of float64."""
    _, shape, dtype, is_fortran, raw = value.state
    if class_name(value) != "_reconstruct" or dtype.args[0] != "f8":
        raise ValueError("its coefficients are not float64")
    return np.frombuffer(raw, "<f8").reshape(shape, order="F" if is_fortran else "C")


def _irreps(module: Module, name: str) -> Irreps:
    blocks = module.attributes[name].attributes["_mulirreps"]
    found = []
    for block in blocks:
        ir = block.attributes["ir"]
        if class_name(ir) != "O3_e3nn":
            raise ValueError(f"its irreps are those of {class_name(ir)}, not O3_e3nn")
        found.append((block.attributes["mul"], Irrep(ir.attributes["l"], ir.attributes["p"])))
    return Irreps(found)


def _nothing(module: Module) -> None:
    """A change of layout has no weights."""


_MAKERS: dict[tuple[str, str], Callable[[Module], Foreign | None]] = {
    ("cuequivariance_torch", "Linear"): _linear,
    ("cuequivariance_torch", "FullyConnectedTensorProduct"): _element_linear,
    ("cuequivariance_torch", "ChannelWiseTensorProduct"): _convolution,
    ("cuequivariance_torch", "SegmentedPolynomial"): _convolution,
    ("cuequivariance_torch", "SymmetricContraction"): _contraction,
    ("cuequivariance_torch", "TransposeIrrepsLayout"): _nothing,
    ("openequivariance", "TensorProduct"): _open_convolution,
    ("openequivariance", "TensorProductConv"): _open_convolution,
}
