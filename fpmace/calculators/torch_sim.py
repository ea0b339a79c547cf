"""Models as torch-sim models, for batched dynamics; needs the extra ``torch-sim``.

torch-sim keeps cells as columns and has one ``pbc`` flag for all systems; see
https://github.com/TorchSim/torch-sim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fpmace.calculators.inference import Inference
from fpmace.calculators.loading import model_device, model_dtype, open_model
from fpmace.calculators.scf_mode import InferenceScf
from fpmace.calculators.self_consistency import make_scf_options
from fpmace.data.batch import Batch
from fpmace.data.neighborhood import neighborhood
from fpmace.errors import ConfigError
from fpmace.observables.predict import predict
from fpmace.scf.options import ScfOptions

if TYPE_CHECKING:
    from torch_sim.state import SimState

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ConfigError(
        "fpmace.calculators.torch_sim needs the package torch-sim-atomistic; "
        "install it with: pip install torch-sim-atomistic"
    ) from error


class TorchSimModel(ModelInterface):
    """A model of fpmace behind torch-sim's interface.

    Args:
        model_path: a model file, or a model (copied).
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32`` or ``float64``; that of the file if not given.
        pbc_handling: boundary condition in place of the model's own.
        scf_options: as of :class:`~fpmace.calculators.FixedPointSCFCalculator`.
        total_charge, total_spin: e and multiplicity 2S + 1, one number for all systems or one
            per system; 0 and 1 if not given to a model that need not be told.
        external_field: V/Angstrom, gradient of the potential; [3] or [n_systems, 3].
        head: the head to use of a model with several.
        compute_stress: whether to compute the stress (periodic systems).
        inference: kernels, radial tables and blocks.

    Raises:
        ConfigError, ModelFileError: the model or an option is unusable.
    """

    def __init__(
        self,
        model_path: str | Path | nn.Module,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        *,
        pbc_handling: str | None = None,
        head: str | None = None,
        scf_options: ScfOptions | Mapping[str, object] | None = None,
        total_charge: float | Sequence[float] | None = None,
        total_spin: float | Sequence[float] | None = None,
        external_field: Sequence[float] | Sequence[Sequence[float]] = (0.0, 0.0, 0.0),
        compute_stress: bool = False,
        inference: Inference | None = None,
    ) -> None:
        super().__init__()
        self.model = open_model(
            model_path,
            device=device,
            dtype=dtype,
            pbc_handling=pbc_handling,
            inference=inference,
            head=head,
        )
        self._device, self._dtype = model_device(self.model), model_dtype(self.model)
        self._compute_forces, self._compute_stress = True, compute_stress
        solves = self.model.solves_self_consistency
        self.mode = InferenceScf(scf=make_scf_options(scf_options)) if solves else None
        given = {"total_charge": (total_charge, 0.0), "total_spin": (total_spin, 1.0)}
        for name, (value, blank) in given.items():
            if value is None and name in self.model.required_inputs:
                text = f"missing; a {type(self.model).__name__} must be told, give a number"
                raise ConfigError(text, where=name)
            number = torch.as_tensor(blank if value is None else value)
            self.register_buffer(name, number.to(self._device, self._dtype), persistent=False)
        self.external_field = torch.tensor(external_field, dtype=self._dtype, device=self._device)

    @property
    def compute_stress(self) -> bool:
        """Whether the stress is computed."""
        return bool(self._compute_stress)

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        self._compute_stress = compute_stress

    def forward(self, state: SimState | Mapping[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Energy [n_systems] eV, forces [n_atoms, 3] eV/Angstrom, stress eV/Angstrom^3 if on.

        A model with a density adds ``charges`` [n_atoms] and ``dipole`` [n_systems, 3], one that
        solves a self-consistency also ``fermi_level`` [n_systems].

        Raises:
            ScfError: a loop ran away.
        """
        if isinstance(state, Mapping):
            from torch_sim.state import SimState

            state = SimState(**state, masses=torch.ones_like(state["positions"][:, 0]))
        batch = self._batch(state)
        outputs = {"forces", "stress"} if self._compute_stress else {"forces"}
        found = predict(self.model, batch, mode=self.mode, outputs=outputs)
        assert found.forces is not None
        result = {"energy": found.energy, "forces": found.forces}
        if found.stress is not None:
            result["stress"] = found.stress
        if found.density is not None and found.dipole is not None:
            result |= {"charges": found.density[:, 0], "dipole": found.dipole}
        if found.fermi_level is not None:
            result["fermi_level"] = found.fermi_level
        return result

    def _batch(self, state: SimState) -> Batch:
        positions = state.positions.to(self._device, self._dtype)
        cell = state.row_vector_cell.to(self._device, self._dtype)
        system = state.system_idx.to(self._device)
        n_systems = cell.shape[0]
        counts = torch.bincount(system, minlength=n_systems)
        zero = torch.zeros(1, dtype=torch.int64, device=self._device)
        ptr = torch.cat([zero, counts.cumsum(0)])
        pbc = torch.as_tensor(state.pbc, device=self._device).expand(n_systems, 3)
        edges, shifts = self._edges(positions, cell, pbc, ptr)
        return Batch(
            positions=positions,
            atomic_numbers=state.atomic_numbers.to(self._device, torch.int64),
            cell=cell,
            pbc=pbc,
            batch=system,
            ptr=ptr,
            edge_index=edges,
            unit_shifts=shifts,
            total_charge=self.total_charge.expand(n_systems),
            total_spin=self.total_spin.expand(n_systems),
            external_field=self.external_field.expand(n_systems, 3),
            fermi_level=torch.zeros(n_systems, dtype=self._dtype, device=self._device),
            weight=torch.ones(n_systems, dtype=self._dtype, device=self._device),
            index=torch.arange(n_systems, device=self._device),
        )

    def _edges(
        self, positions: Tensor, cell: Tensor, pbc: Tensor, ptr: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Neighbour lists by matscipy, which works on the host."""
        host = [item.detach().to("cpu").numpy() for item in (positions, cell, pbc)]
        starts = ptr.tolist()
        indices, shifts = [], []
        for graph in range(len(starts) - 1):
            part = slice(starts[graph], starts[graph + 1])
            index, shift = neighborhood(
                host[0][part].astype(np.float64),
                host[1][graph].astype(np.float64),
                host[2][graph],
                self.model.r_max,
            )
            indices.append(index + starts[graph])
            shifts.append(shift)
        edge_index = torch.from_numpy(np.concatenate(indices, axis=1)).to(self._device)
        unit_shifts = torch.from_numpy(np.concatenate(shifts)).to(self._device, self._dtype)
        return edge_index, unit_shifts
