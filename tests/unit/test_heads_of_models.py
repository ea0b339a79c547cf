"""Models with several heads: energies of each, and what happens when none is named."""

from dataclasses import replace

import pytest
import torch
from backbone_cases import batch_of, model, structure

from fpmace.errors import ConfigError, DataError
from fpmace.models.io import load_model, save_model
from fpmace.models.mace import MACE, ScaleShiftMACE
from fpmace.observables.predict import predict

HEADS = {
    "heads": ["pbe", "r2scan"],
    "atomic_energies": [[0.3, -0.7, 0.2], [1.0, 2.0, 3.0]],
    "atomic_inter_scale": [0.8, 1.1],
    "atomic_inter_shift": [-0.1, 0.4],
}


def _model(**options):
    return model(ScaleShiftMACE, **{**HEADS, **options})


def _energies(m, *heads):
    batch = batch_of(m, *(structure(i) for i in range(len(heads))))
    return predict(m, replace(batch, head=torch.tensor(heads)), outputs=("energy", "forces"))


@pytest.mark.parametrize("bias", [False, True])
def test_each_structure_gets_the_energy_of_its_head(bias):
    m = _model(readout_bias=bias)
    both = _energies(m, 0, 1)
    torch.testing.assert_close(both.energy[:1], _energies(m, 0).energy)
    torch.testing.assert_close(both.energy[1:], _energies(m, 1, 1).energy[1:])
    assert not torch.allclose(both.energy[0], _energies(m, 1).energy[0])


def test_the_hidden_features_of_other_heads_do_not_count():
    m = _model()
    before = _energies(m, 0).energy
    with torch.no_grad():
        hidden = m.readouts[-1].linear_1.weight.view(3, 8)
        hidden[:, 4:] += 1.0  # those of the second head
    torch.testing.assert_close(_energies(m, 0).energy, before)


def test_a_head_that_is_not_named_is_an_error():
    m = _model()
    with pytest.raises(DataError, match=r"head: the model has the heads pbe, r2scan, and"):
        predict(m, batch_of(m, structure()))
    with pytest.raises(DataError, match=r"head: number 2 is not among the 2"):
        _energies(m, 2)
    assert model().heads == ("Default",)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("heads", ["a", "a"], r"heads: expected names that differ"),
        ("atomic_energies", [0.1, 0.2, 0.3], r"atomic_energies: .*for each of the 2 heads"),
        ("atomic_inter_scale", [1.0], r"atomic_inter_scale: expected 2 numbers"),
    ],
)
def test_options_of_heads_that_do_not_fit(option, value, message):
    with pytest.raises(ConfigError, match=message):
        _model(**{option: value})


def test_heads_survive_a_file(tmp_path):
    m = _model(readout_bias=True).eval()
    save_model(tmp_path / "m.model", m)
    again = load_model(tmp_path / "m.model")
    assert again.heads == ("pbe", "r2scan")
    torch.testing.assert_close(_energies(again, 1).energy, _energies(m, 1).energy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_energy_read_from_the_last_layer_alone(dtype):
    m = model(MACE, use_last_readout_only=True).to(dtype)
    result = m(m.geometry(batch_of(m, structure()).to(dtype=dtype)))
    assert len(m.readouts) == 1
    assert result.energy.dtype == dtype
    assert result.contributions.shape == (1, 3)
