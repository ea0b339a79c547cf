"""What the ASE calculators share: structures to batches, batches to results."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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

from fpmace.calculators.inputs import InputKeys, ModelInputs, configuration, read_inputs
from fpmace.calculators.loading import model_device, model_dtype, open_model
from fpmace.calculators.neighbours import SkinNeighbourList
from fpmace.calculators.results import graph_results
from fpmace.data.atomic_data import AtomicData, atomic_data, collate
from fpmace.data.batch import Batch
from fpmace.data.checks import check_geometry, pbc_class
from fpmace.data.neighborhood import neighborhood
from fpmace.data.options import DataOptions
from fpmace.density_modes.base import DensityMode
from fpmace.errors import ConfigError
from fpmace.observables.predict import predict
from fpmace.observables.response import ResponseProperties, compute_response
from fpmace.scf.options import ScfOptions


class ModelCalculator(Calculator):
    """Base of the calculators that run a model.

    Args:
        model: a model file, or a model (copied).
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32`` or ``float64``; that of the file if not given.
        skin: Angstrom; see :class:`~fpmace.calculators.neighbours.SkinNeighbourList`.
        keys: where the inputs stand in a structure.
        plugins: files or modules that register parts of the model.
    """

    default_outputs: tuple[str, ...] = ()
    source_name = "structure"

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        pbc_handling: str | None = None,
        skin: float = 0.5,
        keys: InputKeys | None = None,
        plugins: Sequence[str] = (),
        **ase_options: Any,
    ) -> None:
        super().__init__(**ase_options)
        self.model = open_model(
            model, device=device, dtype=dtype, pbc_handling=pbc_handling, plugins=plugins
        )
        self.device, self.dtype = model_device(self.model), model_dtype(self.model)
        self.r_max = float(self.model.r_max)  # type: ignore[arg-type]
        self.keys = keys or InputKeys()
        self.neighbours = SkinNeighbourList(self.r_max, skin)
        self._asked: set[str] = set()
        self._last_inputs: ModelInputs | None = None

    def data_options(self) -> DataOptions:
        """Checks that structures must pass."""
        numbers = self.model.get_buffer("atomic_numbers").tolist()
        return DataOptions(
            elements=tuple(int(z) for z in numbers), allow_low_density_pbc=True, multipoles_max_l=0
        )

    def inputs(self, atoms: Atoms, where: str) -> ModelInputs:
        """Read what the model needs besides the geometry.

        Raises:
            DataError: a value is missing or unusable.
        """
        return read_inputs(atoms, self.keys, where=where)

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
        outputs = set(self.default_outputs)
        if "forces" in properties:
            outputs.add("forces")
        if "stress" in properties and periodic:
            outputs |= {"stress", "forces"}
        return frozenset(outputs)

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
        super().calculate(atoms, list(properties or ["energy"]), list(system_changes))
        structure = self.atoms
        assert structure is not None
        periodic = bool(structure.pbc.all())
        wanted = set(properties or ["energy"])
        if "stress" in wanted and not periodic:
            raise PropertyNotImplementedError(
                "stress: is defined with three periodic directions, here pbc is "
                f"{pbc_class(structure.pbc)}"
            )
        self._asked |= wanted
        inputs = self.inputs(structure, self.source_name)
        item = self._item(structure, inputs, 0, self.neighbours)
        batch = self._collate([item])
        self.results = self.solve(batch, self.outputs(self._asked, periodic=periodic))
        self._last_inputs = inputs

    def solve(self, batch: Batch, outputs: frozenset[str]) -> dict[str, Any]:
        """Results of a batch of one structure."""
        observables = predict(self.model, batch, mode=self.batch_mode(), outputs=outputs)
        return graph_results(observables, batch, 0)

    def batch_mode(self) -> DensityMode | None:
        """How the density of a batch is found; None for models without one."""
        return None

    def evaluate(
        self,
        structures: Sequence[Atoms],
        batch_size: int = 8,
        properties: Sequence[str] = ("energy", "forces"),
    ) -> list[dict[str, Any]]:
        """Results of many structures, computed in batches, each from a fresh start.

        A structure whose self-consistency loop fails has ``scf_converged`` false; nothing is
        raised for it. The state of the calculator is not changed.

        Args:
            structures: the structures; inputs are read from their info and arrays.
            batch_size: structures per batch.
            properties: what to compute; a stress is left out where it does not exist.

        Raises:
            DataError: a structure does not suit the model; it is named by its index.
        """
        if batch_size < 1:
            raise ConfigError(f"must be 1 or more, got {batch_size}", where="batch_size")
        return [
            results
            for start in range(0, len(structures), batch_size)
            for results in self._evaluate_batch(
                structures[start : start + batch_size], start, properties
            )
        ]

    def response(
        self, properties: Collection[str], atoms: Atoms | None = None
    ) -> ResponseProperties:
        """Response properties by linear response, at the tight tolerances that they need.

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
        inputs = self.inputs(structure, self.source_name)
        batch = self._collate([self._item(structure, inputs, 0, None)])
        masses = torch.as_tensor(structure.get_masses()).to(batch.positions)
        return compute_response(
            self.model, batch, properties, scf=self.response_options(), masses=masses
        )

    def response_options(self) -> ScfOptions | None:
        """Settings of the loop for :meth:`response`; None for models without one."""
        return None

    def _evaluate_batch(
        self, structures: Sequence[Atoms], start: int, properties: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        items = []
        for index, atoms in enumerate(structures, start):
            inputs = self.inputs(atoms, f"structures: configuration {index}")
            items.append(self._item(atoms, inputs, index, None, source="structures"))
        batch = self._collate(items)
        periodic = bool(batch.pbc.all(-1).any())
        outputs = self.outputs(properties, periodic=periodic)
        observables = predict(self.model, batch, mode=self.batch_mode(), outputs=outputs)
        for graph in range(batch.n_graphs):
            yield graph_results(observables, batch, graph)

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
        options = self.data_options()
        check_geometry(config, options)
        geometry = (config.positions, config.cell, config.pbc)
        if neighbours is None:
            edges = neighborhood(*geometry, self.r_max)
        else:
            edges = neighbours.edges(*geometry)
        return atomic_data(config, self.r_max, options, index=index, edges=edges)

    def _collate(self, items: Sequence[AtomicData]) -> Batch:
        return collate(items).to(self.device, self.dtype)
