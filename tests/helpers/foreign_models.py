"""Foreign model files and trees of stand-ins for the tests of conversion."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fpmace.blocks.coupling import symmetric_coupling
from fpmace.conversion.module_tree import Module, stand_in
from fpmace.conversion.safe_archive import Foreign, read_foreign_archive
from fpmace.testing.systems import structure_batch

DATA = Path(__file__).parents[1] / "golden" / "data"
Arrays = dict[str, NDArray[Any]]


def unpacked(name: str, folder: Path) -> Path:
    """A stored model file, as its package wrote it."""
    path = folder / f"{name}.model"
    path.write_bytes(gzip.decompress((DATA / "saved_models" / f"{name}.model.gz").read_bytes()))
    return path


def tree(name: str, folder: Path) -> Module:
    """A stored model file as a tree of stand-ins, which a test may change."""
    path = unpacked(name, folder)
    return Module(read_foreign_archive(path), "", path.name)


def stored_cases(name: str) -> list[Arrays]:
    """Structures of a stored MACE model with the energies and forces of the original package."""
    cases: dict[str, Arrays] = {}
    with np.load(DATA / "saved_models" / f"{name}.npz") as data:
        for key, value in data.items():
            case, quantity = key.split("/")
            cases.setdefault(case, {})[quantity] = value
    return [cases[key] for key in sorted(cases)]


def energy_and_forces(model: nn.Module, case: Arrays) -> tuple[Tensor, Tensor]:
    """Of a MACE model, in the precision of its weights."""
    dtype = next(model.parameters()).dtype
    batch = structure_batch([case], float(model.r_max))
    changes = {
        item.name: getattr(batch, item.name).to(dtype)
        for item in dataclasses.fields(batch)
        if isinstance(getattr(batch, item.name), Tensor)
        and getattr(batch, item.name).is_floating_point()
    }
    batch = dataclasses.replace(batch, **changes)
    positions = batch.positions.requires_grad_(True)
    energy = model(model.geometry(batch)).energy
    return energy.detach(), -torch.autograd.grad(energy.sum(), positions)[0]


def put(root: Foreign, place: str, value: Any) -> None:
    """Set an entry of a tree by its name in the state dict; missing modules are made."""
    *parents, last = place.split(".")
    module = root
    for key in parents:
        children = module.state["_modules"]
        if not isinstance(children.get(key), Foreign):
            children[key] = stand_in("torch.nn.modules.container.ModuleList")
        module = children[key]
    group = "_parameters" if isinstance(value, Tensor) else "_modules"
    module.state["_buffers"].pop(last, None)
    module.state[group][last] = value


def u_array(max_ell: int, out_l: int, degree: int) -> Tensor:
    """A dense coupling array whose symmetric part is that of fpmace."""
    coupling = symmetric_coupling(max_ell, out_l, degree)
    n = (max_ell + 1) ** 2
    dense = torch.zeros((2 * out_l + 1, *(n,) * degree, coupling.n_paths), dtype=torch.float64)
    for row, term in enumerate(coupling.monomials.tolist()):
        dense[(slice(None), *term)] = torch.from_numpy(coupling.values[:, row].copy())
    return dense[0] if out_l == 0 else dense


def golden_state(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of a stored fixed-point model."""
    config = json.loads((DATA / "fixed_point" / f"{name}.config.json").read_text())
    with np.load(DATA / "fixed_point" / f"{name}.state_dict.npz") as data:
        return config, {key: torch.from_numpy(np.asarray(value)) for key, value in data.items()}
