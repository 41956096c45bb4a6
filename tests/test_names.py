"""Whatever the settings have a name for can be built, and works."""

import dataclasses
import typing

import jax.numpy as jnp
import pytest

from eqjax.analytic import cross_entropy
from eqjax.gradients import agreement
from eqjax.recipes import TrainConfig
from eqjax.recipes._equilibrium import (
    ControllerName,
    EstimatorName,
    HomeostatName,
    SolverName,
)
from eqjax.recipes._equilibrium_build import build_estimator, build_homeostat, reference_oracle


def test_every_estimator_and_solver_that_has_a_name_works(language_batch):
    model, batch = language_batch
    base = TrainConfig(free_rtol=1e-7, nudged_rtol=1e-4, x64=True)
    truth = reference_oracle(base)(model, cross_entropy, batch).grads
    biased = {"vector-field": 0.5, "truncated": 0.9, "bptt": 0.99}
    for name in typing.get_args(EstimatorName):
        estimate = build_estimator(dataclasses.replace(base, estimator=name))(
            model, cross_entropy, batch
        )
        assert estimate.report.accepted.all(), name
        assert agreement(estimate.grads, truth)[0] > biased.get(name, 0.99999), name
    x = model.encode(batch[0][0])
    for name in typing.get_args(SolverName):
        chosen = build_estimator(dataclasses.replace(base, solver=name, estimator="oracle"))
        assert chosen.settle(model.field, x, x).residual <= 1e-7, name


@pytest.mark.parametrize("name", typing.get_args(HomeostatName))
def test_every_homeostat_that_has_a_name_can_be_built(name):
    for controller in typing.get_args(ControllerName):
        settings = TrainConfig(homeostat=name, homeostat_controller=controller)
        homeostat = build_homeostat(settings)
        assert (homeostat is None) == (name == "none")
        if homeostat is not None:
            weight, _ = homeostat.controller(homeostat.controller.init(), jnp.asarray(0.01))
            assert weight == pytest.approx(10.0, rel=0.05)
