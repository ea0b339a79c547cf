"""Response properties against finite differences of converged calculations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ase import Atoms
from small_models import SMALL_FIXED_POINT
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.density_modes.solved import SelfConsistent
from fpmace.errors import ConfigError, ScfError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.observables.predict import predict
from fpmace.observables.response import PROPERTIES, ResponseProperties, compute_response
from fpmace.observables.types import Observables
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.systems import atoms_batch, random_model, scale_response, water_box

TOLERANCE = 1e-6
"""Relative to the largest entry of the graph; the requirement is 1e-5."""

RULES: dict[str, dict[str, Any]] = {
    "affine": {},
    "mlp": {
        "fixedpoint_update_config": {
            "type": "OneBodyVariableUpdate",
            "potential_embedding_cls": "BiasedLinearPotentialEmbedding",
            "nonlinearity_cls": "MLPNonLinearity",
        },
        "field_readout_config": {"type": "OneBodyMLPFieldReadout"},
    },
    "many_body": {"fixedpoint_update_config": {"type": "ManyBodyUpdate"}},
}


def boxed(pbc: str, *, charge: float = 0.0, field: tuple[float, ...] = (0, 0, 0)) -> Atoms:
    """A distorted molecule in a box of 6 Angstrom."""
    atoms = water_box((1, 1, 1), seed=pbc.count("T"))
    atoms.set_cell([6.0, 6.0, 6.0])
    atoms.pbc = [flag == "T" for flag in pbc]
    atoms.positions += 0.05 * torch.sin(torch.arange(3.0 * len(atoms))).reshape(-1, 3).numpy()
    atoms.info["total_charge"] = charge
    atoms.info["external_field"] = field
    return atoms


@dataclass(frozen=True)
class Case:
    """Boundary method, structures, update rule and what is held constant."""

    method: str
    structures: tuple[Atoms, ...]
    rule: str
    constant_charge: bool = True

    def model(self) -> FixedPointCore:
        model = random_model(**SMALL_FIXED_POINT, **RULES[self.rule], pbc_handling=self.method)
        scale_response(model, self.batch(), -0.7)
        return model

    def batch(self) -> Batch:
        batch = atoms_batch(list(self.structures), 3.0)
        batch.fermi_level.copy_(torch.linspace(0.5, 1.0, batch.n_graphs))
        return batch

    @property
    def scf(self) -> ScfOptions:
        return tight(self.constant_charge)


def tight(constant_charge: bool) -> ScfOptions:
    return ScfOptions(
        scf_tolerance=1e-13,
        charge_tolerance=1e-12,
        constant_charge=constant_charge,
        initial_fermi_level="zero" if constant_charge else "from_data",
        on_failure="raise",
    )


CASES = {
    "open, charged, MLP": Case("realspace", (boxed("FFF", charge=1.0),), "mlp"),
    "auto, three kinds in a batch": Case(
        "auto",
        (
            boxed("FFF", charge=-1.0, field=(0.05, -0.1, 0.02)),
            boxed("TTF"),
            boxed("TTT", charge=0.5),
        ),
        "affine",
    ),
    "periodic, charged, MLP": Case("pbc", (boxed("TTT", charge=1.0),), "mlp"),
    "slab, constant Fermi level, MLP": Case(
        "slab", (boxed("TTF", field=(0.0, 0.0, 0.1)),), "mlp", constant_charge=False
    ),
    "box, charged": Case("molecule_in_box", (boxed("FFF", charge=-1.0),), "affine"),
    "mixed, constant Fermi level": Case(
        "mixed_periodic",
        (boxed("TTT"), boxed("FFF")),
        "affine",
        constant_charge=False,
    ),
    "open, atoms coupled": Case("realspace", (boxed("FFF"),), "many_body"),
    "open, coupled, constant Fermi level": Case("auto", (boxed("FFF"),), "many_body", False),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def solved(
    request: pytest.FixtureRequest,
) -> tuple[Case, FixedPointCore, Batch, ResponseProperties]:
    case: Case = request.param
    model, batch = case.model(), case.batch()
    return case, model, batch, compute_response(model, batch, PROPERTIES, scf=case.scf)


def converged(model: FixedPointCore, batch: Batch, scf: ScfOptions) -> Observables:
    return predict(model, batch, mode=SelfConsistent(scf=scf), outputs=("forces", "density"))


class Differences:
    """Central differences of fourth order of all outputs along one perturbation."""

    def __init__(self, run: Callable[[float], Observables], h: float) -> None:
        self._runs = {k: run(k * h) for k in (-2, -1, 1, 2)}
        self._h = h

    def __getitem__(self, name: str) -> Tensor:
        m2, m1, p1, p2 = (getattr(self._runs[k], name) for k in (-2, -1, 1, 2))
        result: Tensor = (m2 - 8 * m1 + 8 * p1 - p2) / (12 * self._h)
        return result


def assert_close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 1e-4, "nothing to compare"
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCE * scale)


def test_field(solved: tuple[Case, FixedPointCore, Batch, ResponseProperties]) -> None:
    case, model, batch, found = solved
    assert found.polarizability is not None
    assert found.density_by_field is not None
    assert found.forces_by_field is not None
    for axis in range(3):

        def run(step: float, axis: int = axis) -> Observables:
            field = batch.external_field.clone()
            field[:, axis] -= step
            return converged(model, dataclasses.replace(batch, external_field=field), case.scf)

        numerical = Differences(run, 0.02)
        assert_close(found.polarizability[:, :, axis], numerical["dipole"])
        assert_close(found.density_by_field[:, :, axis], numerical["density"])
        assert_close(found.forces_by_field[:, :, axis], numerical["forces"])
        if case.constant_charge:
            assert_close(found.fermi_level_by_field[:, axis], numerical["fermi_level"])


def test_positions(solved: tuple[Case, FixedPointCore, Batch, ResponseProperties]) -> None:
    case, model, batch, found = solved
    direction = torch.sin(1.0 + torch.arange(3.0 * batch.n_atoms, dtype=torch.float64))
    direction = direction.reshape(-1, 3)

    def run(step: float) -> Observables:
        moved = dataclasses.replace(batch, positions=batch.positions + step * direction)
        return converged(model, moved, case.scf)

    numerical = Differences(run, 3e-4)
    parts = direction.split(batch.atoms_per_graph.tolist())
    along = torch.einsum("iab,ia->ib", found.born_charges, direction)
    dipole = torch.stack([part.sum(0) for part in along.split(batch.atoms_per_graph.tolist())])
    assert_close(dipole, numerical["dipole"])
    density = [
        torch.einsum("ilja,ja->il", d, v)
        for d, v in zip(found.density_by_positions, parts, strict=True)
    ]
    assert_close(torch.cat(density), numerical["density"])
    forces = [-(h @ v.flatten()).reshape(-1, 3) for h, v in zip(found.hessian, parts, strict=True)]
    assert_close(torch.cat(forces), numerical["forces"])
    if case.constant_charge:
        level = [(d * v).sum() for d, v in zip(found.fermi_level_by_positions, parts, strict=True)]
        assert_close(torch.stack(level), numerical["fermi_level"])


def test_charge_and_fermi_level(
    solved: tuple[Case, FixedPointCore, Batch, ResponseProperties],
) -> None:
    _, model, batch, found = solved
    level = found.solution.state.fermi_level
    charge = converged(model, batch, solved[0].scf).total_charge

    def at_level(step: float) -> Observables:
        shifted = dataclasses.replace(batch, fermi_level=level + step)
        return converged(model, shifted, tight(False))

    def at_charge(step: float) -> Observables:
        shifted = dataclasses.replace(batch, total_charge=charge + step)
        return converged(model, shifted, tight(True))

    numerical = Differences(at_level, 0.05)
    assert_close(found.fukui, numerical["density"])
    assert_close(found.capacitance, numerical["total_charge"])
    numerical = Differences(at_charge, 0.01)
    assert_close(found.fukui_normalised, numerical["density"])
    assert_close(found.hardness, -numerical["fermi_level"])


def test_predict_gives_the_same_polarizability() -> None:
    for name in ("open, charged, MLP", "slab, constant Fermi level, MLP"):
        case = CASES[name]
        model, batch = case.model(), case.batch()
        direct = compute_response(model, batch, ["polarizability"], scf=case.scf).polarizability
        mode = SelfConsistent(scf=case.scf)
        adjoint = predict(model, batch, mode=mode, outputs=("polarizability",)).polarizability
        torch.testing.assert_close(direct, adjoint, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("method", ["realspace", "pbc", "molecule_in_box"])
def test_acoustic_sum_rules(method: str) -> None:
    """Moving everything moves the charge: the charges sum to the total charge, in all modes
    that prefer no origin, and no force results."""
    case = Case(method, (boxed("TTT" if method == "pbc" else "FFF", charge=-1.0),), "affine")
    wanted = ("born_charges", "forces_by_field", "hessian", "density_by_positions")
    found = compute_response(case.model(), case.batch(), wanted, scf=case.scf)
    total = -torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(found.born_charges.sum(0), total, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.forces_by_field.sum(0), total, rtol=0, atol=1e-8)
    assert float(found.hessian[0].reshape(-1, 3, 3).sum(0).abs().max()) < 1e-7
    assert float(found.density_by_positions[0].sum(2).abs().max()) < 1e-8
    assert float(found.density_by_positions[0][:, 0].sum(0).abs().max()) < 1e-8


def test_graphs_of_a_batch_do_not_see_each_other() -> None:
    case = CASES["auto, three kinds in a batch"]
    model = case.model()
    together = compute_response(model, case.batch(), PROPERTIES, scf=case.scf)
    last = dataclasses.replace(case, structures=case.structures[-1:])
    alone = compute_response(model, last.batch(), PROPERTIES, scf=case.scf)
    close = {"rtol": 1e-8, "atol": 1e-9}
    torch.testing.assert_close(together.polarizability[-1:], alone.polarizability, **close)
    torch.testing.assert_close(together.born_charges[-3:], alone.born_charges, **close)
    torch.testing.assert_close(together.fukui[-3:], alone.fukui, **close)
    torch.testing.assert_close(together.hessian[-1], alone.hessian[0], **close)


def test_response_of_a_map_that_ignores_the_field() -> None:
    case = CASES["open, charged, MLP"]
    model, batch = case.model(), case.batch()
    with torch.no_grad():
        for weight in model.update_rule.parameters():
            weight.zero_()
    found = compute_response(model, batch, ["polarizability", "fukui"], scf=tight(False))
    assert float(found.polarizability.abs().max()) == 0.0
    assert float(found.capacitance.abs().max()) == 0.0
    assert bool(found.hardness.isnan().all())


def test_errors_are_one_clear_line() -> None:
    case = CASES["open, charged, MLP"]
    model, batch = case.model(), case.batch()
    with pytest.raises(ConfigError, match=r"unknown 'polarisability'; did you mean 'polarizab"):
        compute_response(model, batch, ["polarisability"])
    loose = dataclasses.replace(case.scf, num_scf_steps=2, solver="linear")
    with pytest.raises(ScfError, match="SCF not converged for 1 of 1 structures"):
        compute_response(model, batch, ["fukui"], scf=loose)
    local = build("model", {"type": "MACE", **_local_options()})
    with pytest.raises(ConfigError, match="'fukui' needs a density, which a MACE does not have"):
        compute_response(local, batch, ["fukui"])


def test_unstable_solution_is_refused() -> None:
    """With an eigenvalue of the map at 1 no response exists."""
    case = Case("realspace", (boxed("FFF"),), "affine", constant_charge=False)
    model, batch = case.model(), case.batch()
    scale_response(model, batch, 1.0)
    loose = dataclasses.replace(case.scf, on_failure="ignore", num_scf_steps=5, solver="linear")
    with pytest.raises(ScfError, match=r"linear response of structure 0 is not converged"):
        compute_response(model, batch, ["fukui"], scf=loose)


def _local_options() -> dict[str, Any]:
    options = {k: v for k, v in SMALL_FIXED_POINT.items() if k != "kspace_cutoff_factor"}
    options["avg_num_neighbors"] = 20.0
    return {**options, "atomic_numbers": [1, 8], "atomic_energies": [-13.6, -430.0]}
