"""Model files of every format version still open and still give the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase import Atoms

from fpmace.models.io import load_model, read_model_file, weights_checksum
from fpmace.observables.predict import predict
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.systems import atoms_batch

FILES = Path(__file__).parent / "data" / "model_files"
ENERGIES = {"v1_ScaleShiftMACE": -4.374268933, "v1_FixedPoint": -5.268748423}
"""eV, of one water molecule; written when the files were made."""


@pytest.mark.parametrize("name", ENERGIES)
def test_old_model_file(name: str) -> None:
    path = FILES / f"{name}.model"
    model = load_model(path)
    assert weights_checksum(model.state_dict()) == read_model_file(path).metadata["checksum"]
    water = Atoms("OH2", [[0.1, 0.0, 0.0], [0.9, 0.5, 0.1], [-0.7, 0.6, 0.0]])
    batch = atoms_batch([water], model.r_max)
    mode = None
    if "FixedPoint" in name:
        options = ScfOptions(solver="response", scf_tolerance=1e-9)
        mode = build("training_mode", "scf", scf=options)
    energy = predict(model, batch, mode=mode, outputs=["energy"]).energy
    torch.testing.assert_close(
        energy.detach(), torch.tensor([ENERGIES[name]], dtype=torch.float64), rtol=0, atol=1e-7
    )
