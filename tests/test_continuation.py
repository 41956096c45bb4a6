"""Branches: what they count, print and conclude, by whatever path, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Gain, folding, p_of

from eqjax import fields
from eqjax.stability import (
    Natural,
    Propagator,
    PseudoArclength,
    classify,
    continuation,
)


@pytest.fixture(scope="module")
def gain_branch():
    return continuation(
        Gain(), jnp.zeros(2), where=lambda f: f.gain, bounds=(0.0, 1.0), step=1.0, k=2
    )


def test_the_gain_toy_is_lost_by_euler_first_and_by_the_flow_later(gain_branch):
    artefact, hopf = gain_branch.special_points
    assert abs(artefact.parameter - 0.624695047554424) < 1e-9
    assert abs(hopf.parameter - 0.8) < 1e-9 and abs(hopf.frequency - 0.8) < 1e-9
    assert (artefact.flow, artefact.euler, artefact.change_euler) == ("–", "Neimark–Sacker", 2)
    assert (hopf.flow, hopf.euler, hopf.change) == ("Hopf", "–", 2)
    assert artefact.value.real < -0.1 and abs(abs(1 + artefact.value) - 1) < 1e-9
    for point in (artefact, hopf):
        low, high = point.interval
        assert point.status == "converged" and low <= point.parameter <= high and high - low < 1e-9
    assert gain_branch.ended == "left the bounds" and gain_branch.reliable.all()
    assert gain_branch.parameters[0] == 0.1 and abs(gain_branch.parameters[-1] - 1) < 1e-12


def test_the_counts_of_a_branch_are_those_of_dense_eigenvalues(gain_branch):
    for gain, unstable, euler, values in zip(
        gain_branch.parameters,
        gain_branch.unstable,
        gain_branch.unstable_euler,
        gain_branch.spectra.values,
        strict=True,
    ):
        dense = np.linalg.eigvals(-np.eye(2) + float(gain) * np.array([[1.25, -1], [1, 1.25]]))
        assert unstable == np.sum(dense.real > 0) and euler == np.sum(abs(1 + dense) > 1)
        np.testing.assert_allclose(np.sort(np.asarray(values)), np.sort(dense), atol=1e-12)


def test_a_branch_prints_itself(gain_branch):
    text = str(gain_branch)
    assert "step artefact" in text and "0.6246950475" in text and "Hopf" in text
    assert "Euler step 1" in text and "left the bounds" in text


def test_outcomes_of_the_gain_toy(gain_branch):
    """Complex pair at |λ| = 1 with Re μ < 0: step artefact; Re μ → 0: Hopf; none: global or basin."""
    assert classify(gain_branch).outcome == "step artefact"
    assert classify(gain_branch, 0.7).outcome == "step artefact"
    hopf = classify(gain_branch, 0.9)
    assert hopf.outcome == "Hopf" and abs(hopf.point.frequency - 0.8) < 1e-9
    assert (hopf.unstable, hopf.unstable_euler) == (2, 2)
    settled = classify(gain_branch, 0.5)
    assert settled.outcome == "global or basin" and settled.point is None
    flow = continuation(Gain(), jnp.zeros(2), where=lambda f: f.gain, bounds=(0.0, 1.0), k=2)
    assert classify(flow).outcome == "Hopf" and len(flow.special_points) == 1
    with pytest.raises(ValueError, match="continue it further"):
        classify(gain_branch, 1.5)
    late = continuation(Gain(0.9), jnp.zeros(2), where=lambda f: f.gain, bounds=(0.0, 1.0), k=2)
    with pytest.raises(ValueError, match="unstable already"):
        classify(late)


def test_nothing_local_means_global_or_basin():
    """A subcritical field below its Hopf point: what starts outside the unstable cycle never settles."""
    field = fields.StuartLandau(growth=-0.5, saturation=-1.0)
    branch = continuation(
        field, jnp.zeros(2), where=lambda f: f.growth, bounds=(-0.6, -0.1), step=0.01
    )
    z = jnp.array([1.0, 0.0])
    for _ in range(50):
        z = z + 0.01 * field(0.0, z, None)
    assert jnp.linalg.norm(z) > 1.2  # it leaves, though the fixed point is stable
    assert classify(branch).outcome == "global or basin" and branch.special_points == ()


def test_other_paths_types_and_structures_find_the_same_points(gain_branch):
    settings = {"where": lambda f: f.gain, "bounds": (0.0, 1.0), "step": 1.0, "k": 2}
    natural = continuation(Gain(), jnp.zeros(2), path=Natural(), **settings)
    single = continuation(
        eqx.tree_at(lambda f: f.gain, Gain(), jnp.asarray(0.1, "float32")),
        jnp.zeros(2, "float32"),
        **settings,
    )
    for ours, theirs in zip(natural.special_points, gain_branch.special_points, strict=True):
        assert abs(ours.parameter - theirs.parameter) < 1e-9 and ours.type == theirs.type
    assert single.states.dtype == jnp.float32
    for ours, theirs in zip(single.special_points, gain_branch.special_points, strict=True):
        assert abs(ours.parameter - theirs.parameter) < 1e-4 and ours.type == theirs.type

    class Normal(
        eqx.Module
    ):  # the same as Stuart–Landau, in one complex number inside a dictionary
        growth: float

        def __call__(self, t, z, x):
            a = z["a"]
            rate = jax.lax.complex(jnp.asarray(self.growth), jnp.asarray(1.5))
            return {"a": rate * a - jnp.abs(a).astype(a.dtype) ** 2 * a}

    z0 = {"a": jnp.zeros(1, complex)}
    branch = continuation(Normal(-0.5), z0, where=lambda f: f.growth, bounds=(-1, 1))
    (hopf,) = branch.special_points
    assert abs(hopf.parameter) < 1e-9 and abs(hopf.frequency - 1.5) < 1e-9


def test_a_branch_compiles_once(caplog):
    traces = []

    class Cubic(eqx.Module):
        p: jax.Array

        def __call__(self, t, z, x):
            traces.append(z)
            return self.p + z * z - 0.1 * z**3

    def run(most, max_points=400, start=jnp.array([-1.0])):
        return continuation(
            Cubic(jnp.asarray(-1.0)),
            start,
            where=lambda f: f.p,  # a new function at each call
            bounds=(-2.0, 1.0),
            path=PseudoArclength(most=most),
            max_points=max_points,
        )

    few, first = run(0.05, 1, jnp.full(1, -1.0)), len(traces)  # of a weak type
    run(0.05, 2)
    assert len(traces) == first
    with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
        some, fold = run(0.05), len(traces)
    # The equations of a fold: what is kept of a branch, and told of it, is no program.
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert len(compiled) <= 3 and any("polish" in text for text in compiled), compiled
    many = run(0.02)
    # Once for the points, and once for the equations of a fold.
    assert 0 < first < fold == len(traces)
    assert few.parameters.size == 1 and many.parameters.size > max(50, some.parameters.size)
    assert len(many.special_points) == 1


def test_eigenvalues_that_do_not_converge_are_not_passed_off_as_counts():
    # One stage of a long propagator amplifies what it should damp.
    branch = continuation(
        Gain(),
        jnp.zeros(2),
        where=lambda f: f.gain,
        bounds=(0.0, 1.0),
        k=2,
        transform=Propagator(10.0, stages=1),
    )
    assert not branch.reliable[:-2].any() and "NOT CONVERGED" in str(branch)
    assert all(point.status == "bracketed" for point in branch.special_points)


def test_misuse_is_refused():
    settings = {"where": lambda f: f.gain, "bounds": (0.0, 1.0)}
    z0 = jnp.zeros(2)
    for where in (lambda f: f.nothing, lambda f: f.weight, lambda f: 3.0):
        with pytest.raises(ValueError, match="`where`"):
            continuation(Gain(), z0, where=where, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="low < high"):
        continuation(Gain(), z0, where=lambda f: f.gain, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match="present value"):
        continuation(Gain(), z0, where=lambda f: f.gain, bounds=(0.5, 1.0))
    with pytest.raises(ValueError, match="not finite"):
        continuation(Gain(), z0 * jnp.nan, **settings)
    with pytest.raises(ValueError, match="not finite"):
        continuation(
            eqx.tree_at(lambda f: f.weight, Gain(), jnp.full((2, 2), jnp.nan)), z0, **settings
        )
    with pytest.raises(ValueError, match="does not settle"):
        empty = folding(0.5)
        continuation(empty, jnp.array([1.0]), where=p_of, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="`step`"):
        continuation(Gain(), z0, step=-1.0, **settings)
