"""Compiled kernels against plain torch: blocks to the third derivative, models, the choice."""

import logging

import pytest
import torch
from backbone_cases import batch_of, model, structure

from fpmace.blocks.contraction_terms import CONTRACTIONS
from fpmace.errors import ConfigError
from fpmace.kernels import choice, compiler
from fpmace.kernels.choice import use_kernels
from fpmace.models.geometry import element_index, make_geometry
from fpmace.testing.contraction import check_contraction

needs_compiler = pytest.mark.skipif(
    compiler.find_compiler() is None, reason="kernels: there is no C compiler"
)
SIZES = [
    {},
    {"max_ell": 1, "max_L": 0, "correlation": 1, "n_channels": 3},
    {"max_L": 2, "correlation": 4, "n_channels": 1},
]


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_kernels_of_the_contraction_fulfil_the_contract(name, size):
    check_contraction(name, **size)
    check_contraction(name, torch.float32, **size)


def _step(m, kernels):
    """Energy, forces, and gradients of a loss on both."""
    use_kernels(m, kernels)
    batch = batch_of(m, structure())
    positions = batch.positions.requires_grad_(True)
    energy = m(make_geometry(batch, element_index(m.atomic_numbers, batch))).energy
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    weights = list(m.parameters())
    loss = energy.square().sum() + slope.square().sum()
    return [energy, slope, *torch.autograd.grad(loss, weights, materialize_grads=True)]


@needs_compiler
def test_models_do_not_depend_on_the_kernels_or_on_threads():
    m = model(hidden_irreps="5x0e+5x1o")
    expected, n_threads = _step(m, "torch"), torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            with pytest.MonkeyPatch.context() as patch:
                for module in ("convolution", "contraction"):
                    patch.setattr(f"fpmace.kernels.{module}.ATOMS_PER_THREAD", 1)
                patch.setattr("fpmace.kernels.convolution.BONDS_PER_THREAD", 1)
                found = _step(m, "c")
        finally:
            torch.set_num_threads(n_threads)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_without_a_compiler_auto_says_so_and_c_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(choice, "find_compiler", lambda: None)
    choice._unusable.cache_clear()
    choice._say.cache_clear()
    try:
        m = model()
        with caplog.at_level(logging.WARNING, logger="fpmace.kernels.choice"):
            use_kernels(m, "auto")
        assert "plain torch instead of c: no C compiler" in caplog.text
        with pytest.raises(ConfigError, match=r"kernels: no C compiler .* kernels: torch"):
            use_kernels(m, "c")
    finally:
        choice._unusable.cache_clear()
    with pytest.raises(ConfigError, match="kernels: got 'cuda', allowed: auto, torch, c"):
        use_kernels(m, "cuda")


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "find_compiler", lambda: ("false",))
    with pytest.raises(ConfigError, match="kernels: false failed"):
        compiler.compile_function("not C")
