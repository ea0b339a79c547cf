"""Builds the plan: decides how each graph is summed, then computes its tensors."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fpmace.electrostatics import gaussian, kspace
from fpmace.electrostatics.corrections import (
    Correction,
    check_cell,
    check_cubic,
    check_slab,
    molecule_matrix,
    project,
    slab_matrix,
)
from fpmace.electrostatics.plan import (
    OpenPart,
    Padding,
    PeriodicPart,
    Plan,
    make_padding,
)
from fpmace.electrostatics.realspace import as_operator, pair_kernel, pair_vectors
from fpmace.errors import DataError

if TYPE_CHECKING:
    from fpmace.electrostatics.gto import GTOElectrostatics

OPEN, PERIODIC, SLAB, MOLECULE = "open", "periodic", "slab", "molecule"

_FIXED = {"realspace": OPEN, "pbc": PERIODIC, "slab": SLAB, "molecule_in_box": MOLECULE}
_MIXED = {(False, False, False): MOLECULE, (True, True, False): SLAB}
_AUTO = {
    (False, False, False): OPEN,
    (True, True, False): SLAB,
    (True, True, True): PERIODIC,
}


def kinds_of_graphs(pbc_method: str, pbc: Tensor) -> list[str]:
    """How each graph is summed: open, periodic, slab or molecule.

    Raises:
        DataError: in ``auto``, for periodicity other than FFF, TTF or TTT.
    """
    if pbc_method in _FIXED:
        return [_FIXED[pbc_method]] * pbc.shape[0]
    flags = [tuple(row) for row in pbc.tolist()]
    if pbc_method == "mixed_periodic":
        return [_MIXED.get(flag, PERIODIC) for flag in flags]
    for graph, flag in enumerate(flags):
        if flag not in _AUTO:
            given = "".join("FT"[value] for value in flag)
            raise DataError(
                f"graph {graph}: pbc {given} has no electrostatics in pbc_method 'auto' "
                "(FFF, TTF or TTT); change pbc or choose pbc_method explicitly"
            )
    return [_AUTO[flag] for flag in flags]


def build_parts(
    model: GTOElectrostatics,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    ptr: Tensor,
) -> Plan:
    """See :meth:`GTOElectrostatics.plan`."""
    method = model.options.pbc_method
    kinds = kinds_of_graphs(method, pbc)
    what = f"pbc_method '{method}'"
    check_cell(cell, [kind != OPEN for kind in kinds], what)
    check_slab(cell, [kind == SLAB for kind in kinds], what)
    check_cubic(cell, [kind == MOLECULE for kind in kinds], what)
    offsets = ptr.tolist()
    is_open = [kind == OPEN for kind in kinds]
    parts: list[PeriodicPart | OpenPart] = []
    for wanted in (False, True):
        if wanted not in is_open:
            continue
        graphs = [g for g, value in enumerate(is_open) if value == wanted]
        subset = graphs if len(graphs) < len(kinds) else None
        padding = make_padding(offsets, subset, positions.device)
        padded = padding.pad(positions)
        if wanted:
            parts.append(_open_part(model, padding, padded))
        else:
            cells = cell if padding.graphs is None else cell[padding.graphs]
            chosen = [kinds[g] for g in graphs]
            parts.append(_periodic_part(model, padding, padded, cells, chosen))
    n_max = max((b - a for a, b in pairwise(offsets)), default=0)
    return Plan(positions, cell, pbc, batch, ptr, tuple(parts), n_max)


def _periodic_part(
    model: GTOElectrostatics, padding: Padding, positions: Tensor, cell: Tensor, kinds: list[str]
) -> PeriodicPart:
    options, columns = model.options, model.columns
    k = kspace.make_kvectors(cell, model.kspace_cutoff, options.kspace_window)
    degrees = gaussian.degree_of_components(options.density_max_l)
    source = kspace.form_factors(
        k,
        options.density_max_l,
        [options.smearing_width] * model.n_density,
        list(range(model.n_density)),
        kspace.source_scales(options.density_max_l),
    )
    receiver = kspace.form_factors(
        k,
        options.feature_max_l,
        [options.feature_widths[column.width_index] for column in columns],
        [column.component for column in columns],
        [column.scale for column in columns],
    )
    return PeriodicPart(
        padding=padding,
        k=k,
        phases=kspace.phases(k.vectors, positions),
        source=kspace.rotate(source, degrees, 1),
        receiver=kspace.rotate(
            receiver * k.weight[..., None], [column.ell for column in columns], -1
        ),
        correction=_correction(model, positions, k.volume, kinds),
    )


def _correction(
    model: GTOElectrostatics, positions: Tensor, volume: Tensor, kinds: list[str]
) -> Correction | None:
    if not {SLAB, MOLECULE} & set(kinds):
        return None
    options = model.options
    slab = volume.new_tensor([float(kind == SLAB) for kind in kinds])[:, None, None]
    molecule = volume.new_tensor([float(kind == MOLECULE) for kind in kinds])[:, None, None]
    matrix = slab * slab_matrix(volume) + molecule * molecule_matrix(volume)
    exact = options.quadrupole_feature_corrections
    source = project(positions, options.density_max_l).flatten(1, 2)
    smeared = source
    if exact:
        variance = options.smearing_width**2
        smeared = project(positions, options.density_max_l, variance).flatten(1, 2)
    by_width = [
        project(positions, options.feature_max_l, width**2 if exact else 0.0)
        for width in options.feature_widths
    ]
    rows = [by_width[c.width_index][:, :, c.component] * c.scale for c in model.columns]
    receiver = torch.stack(rows, dim=2).flatten(1, 2)
    return Correction(matrix, source, torch.bmm(receiver, matrix), smeared)


def _open_part(model: GTOElectrostatics, padding: Padding, positions: Tensor) -> OpenPart:
    options, columns = model.options, model.columns
    sigma = options.smearing_width
    vectors = pair_vectors(positions)
    by_width = pair_kernel(
        vectors,
        [sigma**2 + width**2 for width in options.feature_widths],
        options.feature_max_l,
        options.density_max_l,
    )
    rows = [by_width[..., c.width_index, c.component, :] * c.scale for c in columns]
    features = torch.stack(rows, dim=-2)
    energy = pair_kernel(
        vectors, [2.0 * sigma**2], options.density_max_l, options.density_max_l
    ).squeeze(-3)
    norm = kspace.source_scales(options.density_max_l)
    energy = energy * energy.new_tensor(norm)[:, None]
    others = 1.0 - torch.eye(positions.shape[1], dtype=vectors.dtype, device=vectors.device)
    mask = others[..., None, None]
    return OpenPart(
        padding=padding,
        features=as_operator(
            features if options.include_field_self_interaction else features * mask
        ),
        energy=as_operator(energy if options.include_energy_self_interaction else energy * mask),
    )
