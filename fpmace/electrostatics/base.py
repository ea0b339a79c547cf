"""The interface of an electrostatics: what it can do, and plans of geometries."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fpmace.boundaries import BOUNDARIES, PBC_METHODS, boundaries_of
from fpmace.electrostatics.gaussian import MAX_L
from fpmace.electrostatics.layout import Layout
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.electrostatics.plan import BatchGeometry, Plan
from fpmace.electrostatics.tables import upload
from fpmace.errors import ConfigError
from fpmace.registry import PartConfig, build, normalise, set_base


@dataclass(frozen=True)
class Capabilities:
    """What an electrostatics can do; what is asked beyond it is refused when a model is built.

    Attributes:
        boundaries: of :data:`fpmace.boundaries.BOUNDARIES`.
        max_l: highest degree of densities and features.
        derivatives: how often it can be differentiated by positions and cell: 1 for forces and
            stress, 2 for training on them; None for any order.
        dtypes: precisions.
    """

    boundaries: tuple[str, ...] = BOUNDARIES
    max_l: int = MAX_L
    derivatives: int | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)

    def methods(self) -> list[str]:
        """The boundary methods all of whose boundaries it has."""
        return [name for name in PBC_METHODS if set(boundaries_of(name)) <= set(self.boundaries)]


class Electrostatics(Layout, ABC):
    """A way to sum the Coulomb interactions of a density of Gaussian multipoles.

    A part of one's own derives from this, declares its ``capabilities``, and makes plans:
    :class:`~fpmace.electrostatics.plan.Plan`, or more easily
    :class:`~fpmace.electrostatics.simple.SimplePlan`. :mod:`fpmace.testing` has the checks.

    Raises:
        ConfigError: if the options ask for more than the capabilities.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()
    config: PartConfig = "direct"
    """How it was named when it was built."""

    def __init__(self, options: ElectrostaticsOptions) -> None:
        super().__init__(options)
        able, name = self.capabilities, type(self).__name__
        for option in ("density_max_l", "feature_max_l"):
            value = getattr(options, option)
            if value > able.max_l:
                raise ConfigError(
                    f"electrostatics.{option}: {name} goes up to {able.max_l}, got {value}"
                )
        if options.pbc_handling not in able.methods():
            raise ConfigError(
                f"electrostatics.pbc_handling: {name} sums {', '.join(able.boundaries)} "
                f"structures, '{options.pbc_handling}' asks for "
                f"{', '.join(boundaries_of(options.pbc_handling))}; "
                f"use {', '.join(able.methods())} or another electrostatics"
            )

    def plan(
        self, positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor, ptr: Tensor
    ) -> Plan:
        """Do all geometry-dependent work.

        Args:
            positions: [n_atoms, 3] Angstrom; absolute positions enter slab and molecule
                corrections, they are not wrapped.
            cell: [n_graphs, 3, 3] Angstrom, lattice vectors are rows; unused for open graphs.
            pbc: [n_graphs, 3] bool; decides the mode in ``mixed_periodic`` and ``auto``.
            batch: [n_atoms] graph of each atom, ascending.
            ptr: [n_graphs + 1] first atom of each graph.

        Raises:
            DataError: if a cell or pbc does not fit ``pbc_handling``.
            ConfigError: if the precision is not among the capabilities.
        """
        if positions.dtype not in self.capabilities.dtypes:
            raise ConfigError(
                f"default_dtype: {type(self).__name__} computes in "
                f"{', '.join(_name(item) for item in self.capabilities.dtypes)}, "
                f"got {_name(positions.dtype)}"
            )
        method = self.options.pbc_handling
        return self.make_plan(BatchGeometry.read(method, positions, cell, pbc, batch, ptr))

    def plan_structure(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> Plan:
        """Plan of one structure: positions [n, 3], cell [3, 3], pbc [3]."""
        batch = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        ptr = upload(torch.tensor([0, len(positions)]), positions.device)
        return self.plan(positions, cell[None], pbc[None], batch, ptr)

    def check_derivatives(self, order: int) -> None:
        """Refuse to be differentiated more often by positions and cell than is declared.

        Raises:
            ConfigError: naming both orders.
        """
        able = self.capabilities.derivatives
        if able is not None and able < order:
            raise ConfigError(
                f"{type(self).__name__} can be differentiated {able} times by positions, "
                f"{order} times are needed (1 for forces, 2 to train on them); use another",
                where="electrostatics",
            )

    def record(self) -> dict[str, object]:
        """Its settings in JSON's types, to tell whether numbers were made with the same."""
        settings = {**dataclasses.asdict(self.options), "summation": self.config}
        found: dict[str, object] = json.loads(json.dumps(settings))
        return found

    @abstractmethod
    def make_plan(self, geometry: BatchGeometry) -> Plan:
        """The plan of structures whose boundaries are known and fit the capabilities."""


def build_electrostatics(
    config: PartConfig, options: ElectrostaticsOptions, *, derivatives: int = 0
) -> Electrostatics:
    """Build the registered electrostatics that ``config`` names.

    Args:
        config: a name, or ``{"type": name, ...its own options}``.
        options: settings that all electrostatics share.
        derivatives: how often it has to be differentiable by positions and cell.

    Raises:
        ConfigError: an option is wrong or asks for more than the capabilities.
    """
    found: Electrostatics = build(
        "electrostatics", config, where="electrostatics", options=options
    )
    full = normalise("electrostatics", config)
    found.config = full if len(full) > 1 else full["type"]
    found.check_derivatives(derivatives)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


set_base("electrostatics", Electrostatics)
