"""The ASE calculator of any model: structures to batches, batches to results."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import tee
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from torch import nn

from fpmace.annotations import Count, Values, check
from fpmace.boundaries import pbc_class
from fpmace.calculators.inference import Inference
from fpmace.calculators.inputs import (
    PER_ATOM_INPUTS,
    InputKeys,
    ModelInputs,
    check_structure,
    configuration,
    data_options,
    overlooked_charge,
    read_inputs,
)
from fpmace.calculators.keywords import options_of_ase, take_aliases
from fpmace.calculators.loading import model_device, model_dtype, open_model
from fpmace.calculators.neighbours import SkinNeighbourList
from fpmace.calculators.results import graph_results
from fpmace.calculators.self_consistency import SelfConsistency, make_scf_options
from fpmace.data.atomic_data import AtomicData, atomic_data, collate
from fpmace.data.batch import Batch
from fpmace.data.budget import counted_budget, in_batches
from fpmace.data.checks import check_geometry
from fpmace.data.neighborhood import neighborhood
from fpmace.data.options import chosen_defaults
from fpmace.data.trained_range import charge_and_field
from fpmace.errors import ConfigError, DataError
from fpmace.kernels.choice import KernelName
from fpmace.models.base import Model
from fpmace.observables.fields import DensitySource, no_density, no_result
from fpmace.observables.passivity import NegativePolarizabilities
from fpmace.observables.predict import predict
from fpmace.observables.response import ResponseProperties, compute_response
from fpmace.scf.options import ScfOptions

logger = logging.getLogger(__name__)

_ALWAYS = frozenset({"energy", "dipole", "density", "electrostatic_potentials"})
"""What is computed whether asked for or not, where the model has it."""


class ModelCalculator(Calculator):
    """Runs any model: energy, forces, stress; dipole and charges where it has a density.

    The properties that a model has stand in ``implemented_properties``; see
    :class:`~fpmace.calculators.FixedPointSCFCalculator` for what a self-consistency adds.

    Args:
        model_path: a model file, or a model (copied).
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32`` or ``float64``; that of the file if not given.
        pbc_handling: boundary condition in place of the model's own.
        head: the head to use of a model with several.
        scf_options: settings of the self-consistency, for models that solve one.
        restart: how it starts from earlier solutions: ``extrapolate``, ``last`` or ``none``.
        skin: Angstrom; see :class:`~fpmace.calculators.neighbours.SkinNeighbourList`.
        keys: where the inputs stand in a structure.
        default_total_charge, default_total_spin: charge (e) and multiplicity 2S + 1 of structures
            that give none, for models that must be told them.
        plugins: files or modules that register parts of the model.
        kernels, radial_tables, edges_at_once: see
            :class:`~fpmace.calculators.inference.Inference`.
        more: ``model_paths`` and ``default_dtype`` (names in mace-torch), and ASE's own options.

    Raises:
        ModelFileError: the file is not a model that the calculator runs.
        ConfigError: an option is unusable.
    """

    source_name = "structure"

    def __init__(
        self,
        model_path: str | Path | nn.Module | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        *,
        pbc_handling: str | None = None,
        head: str | None = None,
        scf_options: ScfOptions | Mapping[str, object] | None = None,
        restart: str = "extrapolate",
        skin: float = 0.5,
        keys: InputKeys | None = None,
        default_total_charge: float | None = None,
        default_total_spin: float | None = None,
        plugins: Sequence[str] = (),
        kernels: KernelName = "auto",
        radial_tables: bool = False,
        edges_at_once: int = Inference.edges_at_once,
        **more: Any,
    ) -> None:
        ase_options = options_of_ase(more, type(self))
        named = take_aliases(more, {"model_path": model_path, "dtype": dtype})
        scf = make_scf_options(scf_options)
        inference = Inference(
            kernels=kernels, radial_tables=radial_tables, edges_at_once=edges_at_once
        )
        super().__init__(**ase_options)
        source = named["model_path"]
        self.model = open_model(
            source,
            device=device,
            dtype=named["dtype"],
            pbc_handling=pbc_handling,
            plugins=plugins,
            inference=inference,
            head=head,
        )
        self.check_model(self.model, source)
        self.device, self.dtype = model_device(self.model), model_dtype(self.model)
        self.keys: InputKeys = check(keys or InputKeys(), InputKeys, where="keys")
        self.defaults = chosen_defaults(default_total_charge, default_total_spin)
        self.neighbours = SkinNeighbourList(self.model.r_max, skin)
        self.loop: SelfConsistency | None = None
        if self.model.solves_self_consistency:
            self.loop = SelfConsistency(self.model, scf, restart)
        elif scf_options is not None:
            raise ConfigError(
                f"a {type(self.model).__name__} solves no self-consistency; leave them out",
                where="scf_options",
            )
        self.data_options = data_options(self.model)
        self.implemented_properties = _properties(self.model)
        self._asked: set[str] = set()
        self._last_inputs: ModelInputs | None = None
        self._warned: set[str] = set()
        inputs = self.model.inputs - self.model.required_inputs - set(self.defaults)
        self._warn_of_charges = "total_charge" in inputs

    def check_model(self, model: Model, source: object) -> None:
        """Refuse models that the calculator does not run; by default it runs all."""

    def density_source(self) -> DensitySource:
        """What potentials and densities at points are made of, for the last structure.

        Raises:
            ConfigError: the model has no density, or the calculator holds no result.
        """
        electrostatics = self.model.electrostatics
        if electrostatics is None:
            raise no_density(self)
        if self.atoms is None or not self.results:
            raise no_result()
        density = self.results["density_coefficients"]
        field = self.atoms.info.get(self.keys.external_field, (0.0, 0.0, 0.0))
        return DensitySource(self.atoms, density, electrostatics, field)

    def inputs(self, atoms: Atoms, where: str) -> ModelInputs:
        """Read what the model needs besides the geometry.

        Raises:
            DataError: a value is missing or unusable.
        """
        check_structure(atoms, where)
        read = set(self.model.inputs)
        if self.loop is not None and self.loop.options.charge_per == "fragment":
            read |= {"cluster_id", "formal_charges"}
        per_atom = [name for name in PER_ATOM_INPUTS if name in read]
        told: Values = {"required": self.model.required_inputs, "defaults": self.defaults}
        told["mace_names"] = "total_spin" in self.model.inputs
        if self.loop is None:
            return read_inputs(atoms, self.keys, where=where, per_atom=per_atom, **told)
        if self._warn_of_charges and (text := overlooked_charge(atoms, self.keys)):
            self._warn_of_charges = False
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        options, density = self.loop.options, self.model.density
        from_data = options.initial_density == "from_data" and density is not None
        found = read_inputs(
            atoms,
            self.keys,
            where=where,
            density_columns=density.n_components if density and from_data else None,
            need_fermi_level=options.initial_fermi_level == "from_data",
            per_atom=per_atom,
            **told,
        )
        if found.fermi_level is None:
            level = options.initial_fermi_level
            if level == "zero" and not options.constant_charge:
                raise DataError(
                    f"{where}: no Fermi level to hold; set atoms.info['{self.keys.fermi_level}'], "
                    "or scf_options={'constant_charge': False, 'initial_fermi_level': level} (eV)"
                )
            number = float(level) if isinstance(level, int | float) else 0.0
            found = dataclasses.replace(found, fermi_level=number)
        return found

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """ASE's comparison of structures, and of the inputs in info and arrays."""
        changes: list[str] = list(super().check_state(atoms, tol=tol))
        if not changes and not self.inputs(atoms, self.source_name).same(self._last_inputs):
            changes.append("info")
        return changes

    def outputs(self, properties: Collection[str], *, periodic: bool) -> frozenset[str]:
        """Names for :func:`~fpmace.observables.predict.predict`.

        Raises:
            PropertyNotImplementedError: for a stress that does not exist.
        """
        known = set(self.implemented_properties)
        for name in properties:
            if name not in known:
                raise PropertyNotImplementedError(
                    f"{name}: {type(self).__name__} has {', '.join(sorted(known))}"
                )
        outputs = _ALWAYS & self.model.outputs
        if "forces" in properties:
            outputs |= {"forces"}
        if "stress" in properties and periodic:
            outputs |= {"stress", "forces"}
        return outputs

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute ``properties`` of ``atoms``; a property asked for once comes along ever after.

        Raises:
            DataError, ConfigError: the structure does not suit the model.
            ScfError: the self-consistency loop failed.
            PropertyNotImplementedError: stress without three periodic directions.
        """
        if atoms is not None:
            check_structure(atoms, self.source_name)
        super().calculate(atoms, list(properties or ["energy"]), list(system_changes))
        structure = self.atoms
        if structure is None:
            raise ConfigError("no structure given; atoms.calc = calculator attaches one")
        periodic = bool(structure.pbc.all())
        wanted = set(properties or ["energy"])
        if "stress" in wanted and not periodic:
            raise PropertyNotImplementedError(
                "stress: is defined with three periodic directions, here pbc is "
                f"{pbc_class(structure.pbc)}"
            )
        self._asked |= wanted
        inputs = self.inputs(structure, self.source_name)
        self._warn_outside(inputs, len(structure))
        item = self._item(structure, inputs, 0, self.neighbours)
        batch = self._collate([item])
        self.results = self.solve(batch, self.outputs(self._asked, periodic=periodic))
        self._last_inputs = inputs

    def solve(self, batch: Batch, outputs: frozenset[str]) -> Values:
        """Results of a batch of one structure."""
        if self.loop is None:
            return graph_results(predict(self.model, batch, outputs=outputs), batch, 0)
        observables = self.loop.solve(batch, outputs)
        results, scf = graph_results(observables, batch, 0), observables.scf
        if scf is not None:
            results |= {
                "num_map_evaluations": scf.n_map_evaluations,
                "num_matvecs": scf.n_matvecs,
            }
        return results

    def evaluate(
        self,
        structures: Sequence[Atoms],
        batch_size: int = 8,
        properties: Sequence[str] = ("energy", "forces"),
        batch_budget: Mapping[str, float] | None = None,
    ) -> list[Values]:
        """Results of many structures, computed in batches, each from a fresh start.

        A structure whose self-consistency loop fails has ``scf_converged`` false; nothing is
        raised for it. The state of the calculator is not changed.

        Args:
            structures: the structures; inputs are read from their info and arrays.
            batch_size: structures per batch.
            properties: what to compute; a stress is left out where it does not exist.
            batch_budget: ``{"atoms": N}`` or ``{"edges": N}`` that a batch may hold, in place of
                ``batch_size``; a larger structure is a batch of its own.

        Raises:
            DataError: a structure does not suit the model; it is named by its index.
        """
        size = check(batch_size, Count, where="batch_size")
        chosen = _names(properties)
        if isinstance(structures, Atoms):
            structures = [structures]
        if not isinstance(structures, Sequence):
            raise ConfigError(f"expects structures, got {structures!r}", where="structures")
        items = self._items(structures)
        if batch_budget is None:
            batches = in_batches(items, size)
        else:
            budget = counted_budget(batch_budget)
            again, items = tee(items)
            costs = (budget.cost(item.n_atoms, item.n_edges) for item in again)
            batches = budget.split(items, costs)
        return [results for batch in batches for results in self._evaluate_batch(batch, chosen)]

    def response(
        self, properties: Collection[str], atoms: Atoms | None = None
    ) -> ResponseProperties:
        """Response properties by linear response, at the tight tolerances that they need.

        A polarizability with a negative eigenvalue is a warning of the logger.

        Args:
            properties: names in :data:`fpmace.observables.response.PROPERTIES`.
            atoms: the structure; that of the last calculation if not given.

        Raises:
            ConfigError: a property is unknown or not one of the model, or there is no structure.
            ScfError: the self-consistency or a linear solve fails.
        """
        structure = atoms if atoms is not None else self.atoms
        if structure is None:
            raise ConfigError("response: give a structure, no calculation was done yet")
        properties = _names(properties)
        inputs = self.inputs(structure, self.source_name)
        batch = self._collate([self._item(structure, inputs, 0, None)])
        masses = torch.as_tensor(structure.get_masses()).to(batch.positions)
        scf = self.loop.response_options(self.dtype) if self.loop else None
        found = compute_response(self.model, batch, properties, scf=scf, masses=masses)
        if found.polarizability is not None:
            signs = NegativePolarizabilities()
            signs.add(found.polarizability, batch)
            if signs.n_negative:
                logger.warning("%s", signs.warning(self.model))
        return found

    def _items(self, structures: Sequence[Atoms]) -> Iterator[AtomicData]:
        for index, atoms in enumerate(structures):
            inputs = self.inputs(atoms, f"structures: configuration {index}")
            self._warn_outside(inputs, len(atoms))
            yield self._item(atoms, inputs, index, None, source="structures")

    def _evaluate_batch(
        self, items: Sequence[AtomicData], properties: Sequence[str]
    ) -> Iterator[Values]:
        batch = self._collate(items)
        periodic = bool(batch.pbc.all(-1).any())
        outputs = self.outputs(properties, periodic=periodic)
        mode = self.loop.tolerant if self.loop else None
        observables = predict(self.model, batch, mode=mode, outputs=outputs)
        for graph in range(batch.n_graphs):
            yield graph_results(observables, batch, graph)

    def _warn_outside(self, inputs: ModelInputs, n_atoms: int) -> None:
        """Warn once of each input that the model has not seen in training."""
        held = self.loop is not None and not self.loop.options.constant_charge
        given = charge_and_field(
            inputs.total_charge,
            inputs.external_field,
            n_atoms,
            inputs.fermi_level if held else None,
        )
        for name, text in self.model.trained_range.outside(given).items():
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(text, RuntimeWarning, stacklevel=3)

    def _item(
        self,
        atoms: Atoms,
        inputs: ModelInputs,
        index: int,
        neighbours: SkinNeighbourList | None,
        *,
        source: str = source_name,
    ) -> AtomicData:
        config = configuration(atoms, inputs, source=source, index=index)
        check_geometry(config, self.data_options)
        geometry = (config.positions, config.cell, config.pbc)
        if neighbours is None:
            edges = neighborhood(*geometry, self.model.r_max)
        else:
            edges = neighbours.edges(*geometry)
        return atomic_data(config, self.model.r_max, self.data_options, index=index, edges=edges)

    def _collate(self, items: Sequence[AtomicData]) -> Batch:
        return collate(items).to(self.device, self.dtype)


def _names(properties: Collection[str]) -> list[str]:
    """Names of properties; a text alone is one of them.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(properties, str):
        properties = [properties]
    if not isinstance(properties, Collection):
        raise ConfigError(f"expects names of properties, got {properties!r}", where="properties")
    return [check(name, str, where="properties") for name in properties]


def _properties(model: Model) -> list[str]:
    """Properties of ASE that a model has."""
    own = ["dipole", "charges"] if model.has_density else ["energies"]
    return ["energy", "free_energy", *own, "forces", "stress"]
