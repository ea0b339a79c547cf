"""The loss that keeps the eigenvalues of the density response inside two bounds."""

from __future__ import annotations

import pytest
import torch

from fpmace.errors import ConfigError
from fpmace.observables.predict import predict
from fpmace.registry import build
from fpmace.testing.systems import (
    atoms_batch,
    density_response,
    random_model,
    scale_response,
    water_box,
)
from fpmace.training.losses.stability import ResponseBoundLoss

SMALL = {"hidden_irreps": "4x0e+4x1o", "max_ell": 1, "correlation": 1, "r_max": 3.0}


@pytest.fixture(scope="module")
def system():
    batch = atoms_batch([water_box((2, 1, 1), pbc=False)], 3.0)
    model = random_model(seed=2, pbc_handling="realspace", radial_MLP=[8], **SMALL)
    scale_response(model, batch, 1.5)
    return model, batch


def value(loss, model, batch, **options):
    torch.manual_seed(0)
    mode = build("training_mode", "direct")
    found = predict(model, batch, mode=mode, outputs=loss.requires_outputs, create_graph=True)
    return loss(batch, found)


def projected_eigenvalues(model, batch):
    matrix = density_response(model, batch)
    mode = build("training_mode", "direct")
    problem = predict(model, batch, mode=mode, outputs=("problem",)).problem
    line = problem.linearise(problem.local_density, torch.zeros_like(batch.positions[:, 0]))
    t = line.fermi_response.flatten()
    q = torch.zeros_like(t)
    q[:: line.fermi_response.shape[1]] = 1.0
    project = torch.eye(len(t)) - torch.outer(t, q) / (t @ q)
    return torch.linalg.eigvals(project @ matrix).real


def test_excess_is_that_of_the_dense_eigenvalues(system):
    model, batch = system
    values = projected_eigenvalues(model, batch)
    loss = ResponseBoundLoss(upper=0.2, lower=-0.3, iterations=200)
    expected = torch.relu(values.max() - 0.2) ** 2 + torch.relu(-0.3 - values.min()) ** 2
    assert expected > 0
    torch.testing.assert_close(value(loss, model, batch).detach(), expected, rtol=1e-3, atol=1e-6)


def test_no_loss_inside_the_bounds(system):
    model, batch = system
    assert value(ResponseBoundLoss(upper=0.999, lower=-1e3, iterations=3), model, batch) >= 0
    values = projected_eigenvalues(model, batch)
    wide = ResponseBoundLoss(upper=0.9, lower=float(values.min()) - 10.0, iterations=50)
    if values.max() < 0.9:
        assert float(value(wide, model, batch)) == 0.0


def test_a_step_down_its_gradient_lowers_the_eigenvalue(system):
    model, batch = system
    before = projected_eigenvalues(model, batch).max()
    loss = ResponseBoundLoss(upper=0.0, lower=-1e3, iterations=50)
    rule = list(model.update_rule.parameters())
    gradients = torch.autograd.grad(value(loss, model, batch), rule, allow_unused=True)
    size = sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5
    state = [item.detach().clone() for item in rule]
    with torch.no_grad():
        for item, gradient in zip(rule, gradients, strict=True):
            if gradient is not None:
                item -= 1e-3 / size * gradient
    after = projected_eigenvalues(model, batch).max()
    with torch.no_grad():
        for item, old in zip(rule, state, strict=True):
            item.copy_(old)
    assert after < before


def test_bounds_that_cross_are_refused():
    with pytest.raises(ConfigError, match="lower < upper < 1"):
        ResponseBoundLoss(upper=1.5)
