"""A structure that ends non-finite leaves the others of its batch as if it were not there."""

import pytest
import torch
from helpers.fixed_point_cases import batch_of, make_mode, scaled_model, structure

from fpmace.observables.predict import predict
from fpmace.scf.state import ScfStatus

OUTPUTS = ("energy", "forces", "stress")


@pytest.mark.parametrize("solver", ["auto", "linear", "anderson", "newton_krylov"])
@pytest.mark.parametrize("rule", ["affine", "mlp", "many_body"])
def test_lost_structure_spoils_no_derivative_of_another(rule, solver):
    model = scaled_model(rule)
    sound, lost = structure(), structure(n_molecules=1, seed=4, field=(1e308, 0.0, 0.0))
    mode = make_mode(
        "scf", solver=solver, scf_tolerance=1e-8, on_failure="ignore", mixing_parameter=0.2
    )
    alone = predict(model, batch_of(sound), mode=mode, outputs=OUTPUTS)
    for batch in (batch_of(sound, lost), batch_of(lost, sound)):
        both = predict(model, batch, mode=mode, outputs=OUTPUTS)
        here = int(both.scf.status[0] == ScfStatus.NONFINITE)
        assert both.scf.status[1 - here] == ScfStatus.NONFINITE
        assert both.scf.status[here] == alone.scf.status[0]
        atoms = batch.batch == here
        if bool(alone.scf.converged[0]):
            torch.testing.assert_close(both.forces[atoms], alone.forces, rtol=0, atol=1e-7)
            torch.testing.assert_close(both.stress[here], alone.stress[0], rtol=0, atol=1e-9)
        assert torch.isfinite(both.forces[atoms]).all()


def test_unrolled_loop_too():
    model = scaled_model("mlp")
    sound, lost = structure(), structure(n_molecules=1, seed=4, field=(1e308, 0.0, 0.0))
    mode = make_mode("unroll_scf", num_scf_steps=6, on_failure="ignore")
    alone = predict(model, batch_of(sound), mode=mode)
    both = predict(model, batch_of(sound, lost), mode=mode)
    torch.testing.assert_close(both.forces[: len(sound)], alone.forces, rtol=0, atol=1e-9)
