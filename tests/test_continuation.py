"""Branches, their special points, normal forms, cycles and exponents against closed forms and published values."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from eqjax import fields
from eqjax.relaxation import NewtonKrylov, equilibrium
from eqjax.stability import (
    Natural,
    Propagator,
    PseudoArclength,
    check,
    classify,
    continuation,
    finite_time_exponents,
    hopf_normal_form,
    lyapunov,
    periodic_orbit,
    switch,
)


class Gain(eqx.Module):
    """`ż = -z + α W tanh z`: true Hopf at α = .8 with ω = .8; Euler with ε = 1 gives up at α = .6247."""

    gain: jax.Array = fields.hyperparameter(default=0.1)
    weight: jax.Array = eqx.field(default_factory=lambda: jnp.array([[1.25, -1.0], [1.0, 1.25]]))

    def __call__(self, t, z, x):
        return -z + self.gain.astype(z.dtype) * (self.weight.astype(z.dtype) @ jnp.tanh(z))


class Polynomial(eqx.Module):
    """`ż = Σ (a_i + p b_i) w^i`, w = z - c sin p: one structure, compiled once, for many bifurcations."""

    p: jax.Array
    a: jax.Array
    b: jax.Array
    c: jax.Array

    def __init__(self, p, a=(0, 0, 0, 0), b=(0, 0, 0, 0), c=0):
        self.p, self.a, self.b, self.c = (jnp.asarray(v, float) for v in (p, a, b, c))

    def __call__(self, t, z, x):
        w = z - self.c * jnp.sin(self.p)
        return sum((self.a[i] + self.p * self.b[i]) * w**i for i in range(4))


def folding(p):
    """`ż = p + z²`"""
    return Polynomial(p, a=(0, 0, 1, 0), b=(1, 0, 0, 0))


def forked(p, c=0):
    """`ẇ = p w - w³`"""
    return Polynomial(p, a=(0, 0, 0, -1), b=(0, 1, 0, 0), c=c)


class Map(eqx.Module):
    """A map as a field: `g(z) - z`, to be stepped with ε = 1."""

    p: jax.Array
    rule: object = eqx.field(static=True)

    def __call__(self, t, z, x):
        return self.rule(z, self.p) - z


def henon(z, a):
    return jnp.stack([1 - a * z[0] ** 2 + z[1], 0.3 * z[0]])


def delayed_logistic(z, r):
    return jnp.stack([r * z[0] * (1 - z[1]), z[0]])


class Bratu(eqx.Module):
    """`u'' + λ exp(u) = 0` on [0, 1], at Chebyshev points and multiplied by the inverse of the second derivative."""

    load: jax.Array
    inverse: jax.Array

    def __init__(self, load, n=16):
        nodes = np.cos(np.pi * np.arange(n + 2) / (n + 1))
        c = np.r_[2, np.ones(n), 2] * (-1) ** np.arange(n + 2)
        gaps = nodes[:, None] - nodes + np.eye(n + 2)
        derivative = np.outer(c, 1 / c) / gaps
        derivative -= np.diag(derivative.sum(axis=1))
        second = 4 * (derivative @ derivative)[1:-1, 1:-1]
        self.load, self.inverse = jnp.asarray(load), jnp.asarray(-np.linalg.inv(second))

    def __call__(self, t, u, x):
        return self.load * (self.inverse @ jnp.exp(u)) - u


def p_of(field):
    return field.p


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


def test_a_fold_is_passed_and_classified():
    branch = continuation(
        folding(-1.0),
        jnp.array([-1.0]),
        where=p_of,
        bounds=(-2.0, 1.0),
        step=0.1,
    )
    (fold,) = branch.special_points
    assert abs(fold.parameter) < 1e-12 and (fold.flow, fold.euler) == ("fold", "fold")
    assert fold.change == fold.change_euler == 1 and fold.frequency == 0
    assert branch.states[-1] > 0 and abs(branch.parameters[-1] + 2) < 1e-12
    np.testing.assert_allclose(branch.parameters, -(branch.states[:, 0] ** 2), atol=1e-11)
    assert classify(branch).outcome == "fold"
    # Where there is no fixed point any more, it is the fold that took it.
    assert classify(branch, 0.5).outcome == "fold"
    natural = continuation(
        folding(-1.0),
        jnp.array([-1.0]),
        where=p_of,
        bounds=(-2.0, 1.0),
        path=Natural(),
        step=0.1,
    )
    assert natural.parameters[-1] < 1e-6 and "no shorter step" in natural.ended


@pytest.mark.parametrize("kind", ["pitchfork", "transcritical"])
def test_a_branch_point_is_found_on_a_branch_that_moves(kind):
    field = forked(-0.4, c=1)
    if kind == "transcritical":
        field = Polynomial(-0.4, a=(0, 0, -1, 0), b=(0, 1, 0, 0), c=1)
    start = jnp.sin(jnp.array([-0.4]))
    branch = continuation(field, start, where=p_of, bounds=(-0.5, 0.5), step=0.1)
    (point,) = branch.special_points
    assert abs(point.parameter) < 1e-9 and point.flow == "branch point" and point.change == 1
    np.testing.assert_allclose(branch.states[:, 0], np.sin(branch.parameters), atol=1e-10)
    assert classify(branch).outcome == "branch point"


def test_the_other_branch_is_found_from_a_branch_point():
    """Lorenz: the origin gives way at ρ = 1 to `x = y = ±√(β (ρ - 1))`, z = ρ - 1."""
    settings = {"where": lambda f: f.rho, "bounds": (0.0, 30.0)}
    field = fields.Lorenz(rho=0.5)
    origin = continuation(field, jnp.zeros(3), **settings)
    (point,) = origin.special_points
    assert abs(point.parameter - 1) < 1e-8 and point.flow == "branch point"
    _, mirrored = switch(field, origin, point, size=-0.02, where=lambda f: f.rho)
    onto, z = switch(field, origin, point, where=lambda f: f.rho)
    assert z[0] * mirrored[0] < 0
    other = continuation(onto, z, **settings)
    rho = np.asarray(other.parameters)
    amplitude = np.sqrt(8 / 3 * (rho - 1)) * np.sign(z[0])
    exact = np.stack([amplitude, amplitude, rho - 1], axis=1)
    np.testing.assert_allclose(other.states, exact, rtol=1e-8, atol=1e-8)
    assert [p.flow for p in other.special_points] == ["Hopf"]
    with pytest.raises(ValueError, match="no branches cross"):
        switch(field, other, other.special_points[0], where=lambda f: f.rho)


class Wave(eqx.Module):
    """The Brusselator wave model on n points about its uniform state, linear; z = (u, v)."""

    length: jax.Array

    def __call__(self, t, z, x):
        u, v = z
        scale = ((u.size + 1) / self.length) ** 2

        def laplacian(a):
            padded = jnp.pad(a, 1)
            return scale * (padded[2:] + padded[:-2] - 2 * a)

        reaction = 5.45 * u + 4 * v
        return 0.008 * laplacian(u) + reaction - u, 0.004 * laplacian(v) - reaction


def test_the_hopf_point_of_a_stiff_wave_model():
    branch = continuation(
        Wave(jnp.asarray(0.505)),
        (jnp.zeros(100), jnp.zeros(100)),
        where=lambda f: f.length,
        bounds=(0.5, 0.53),
        k=2,
        ncv=40,
        path=PseudoArclength(first=0.3, most=0.3),
    )
    (hopf,) = branch.special_points
    assert abs(hopf.parameter - 0.5129992509120) < 1e-10 and hopf.flow == "Hopf"


def test_a_real_multiplier_at_minus_one_flips():
    field = Polynomial(0.5, b=(0, -1, 0, 0.3))
    branch = continuation(field, jnp.array([0.0]), where=p_of, bounds=(0.1, 5.0), step=0.5)
    (flip,) = branch.special_points
    assert abs(flip.parameter - 4) < 1e-9 and (flip.flow, flip.euler) == ("–", "flip")
    assert abs(flip.frequency - 2 * np.pi) < 1e-9  # period two, of steps 0.5
    assert classify(branch).outcome == "flip"


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


def test_henon_folds_and_flips():
    settings = {"where": p_of, "step": 1.0}
    start = jnp.array([0.8, 0.24])
    up = continuation(Map(jnp.asarray(0.2), henon), start, bounds=(0.0, 0.5), **settings)
    (flip,) = up.special_points
    assert abs(flip.parameter - 0.3675) < 1e-9 and flip.type == "flip"
    down = continuation(
        Map(jnp.asarray(0.2), henon),
        start,
        bounds=(-0.2, 0.5),
        backwards=True,
        callback=lambda p, z, spectrum: bool(z[0] > 4),
        **settings,
    )
    (fold,) = down.special_points
    assert abs(fold.parameter + 0.1225) < 1e-10 and fold.type == "fold"
    assert down.ended == "stopped by the callback" and float(down.states[-1, 0]) > 4


def test_the_delayed_logistic_map_has_its_neimark_sacker_point():
    branch = continuation(
        Map(jnp.asarray(1.5), delayed_logistic),
        jnp.array([1 / 3, 1 / 3]),
        where=p_of,
        bounds=(1.2, 2.2),
        step=1.0,
    )
    point = branch.special_points[0]
    assert abs(point.parameter - 2) < 1e-9 and point.type == "Neimark–Sacker"
    assert abs(point.frequency - np.pi / 3) < 1e-9
    assert abs(1 + point.value - np.exp(1j * np.pi / 3 * np.sign(point.value.imag))) < 1e-8


def test_bratu_folds_where_it_is_known_to():
    branch = continuation(
        Bratu(3.0), jnp.full(16, 0.5), where=lambda f: f.load, bounds=(2.5, 4.0), k=3
    )
    (fold,) = branch.special_points
    assert abs(fold.parameter - 3.5138307191251612) < 1e-9
    assert fold.type == "fold" and fold.change == 1 and fold.status == "converged"
    assert branch.states[-1].max() > 1.5 and abs(branch.parameters[-1] - 2.5) < 1e-10


def test_brusselator_lorenz_and_fitzhugh_nagumo():
    brusselator = continuation(
        fields.Brusselator(a=1.2, b=2.0),
        jnp.array([1.2, 2 / 1.2]),
        where=lambda f: f.b,
        bounds=(1, 3),
    )
    (hopf,) = brusselator.special_points
    assert abs(hopf.parameter - 2.44) < 1e-9 and abs(hopf.frequency - 1.2) < 1e-9
    lorenz = continuation(
        fields.Lorenz(rho=20.0), jnp.array([7.0, 7.0, 19.0]), where=lambda f: f.rho, bounds=(15, 30)
    )
    np.testing.assert_allclose(
        lorenz.spectra.values[0, 0], -0.154791771062622 + 8.70866846317245j, rtol=1e-12
    )
    np.testing.assert_allclose(lorenz.spectra.critical_step[0, 0], 0.00408072346002, rtol=1e-11)
    (hopf,) = lorenz.special_points
    assert hopf.flow == "Hopf" and abs(hopf.parameter - 470 / 19) < 2e-9
    nagumo = continuation(
        fields.FitzHughNagumo(),
        jnp.array([-1.2, -0.6]),
        where=lambda f: f.current,
        bounds=(-0.1, 2.0),
    )
    first, second = nagumo.special_points
    assert abs(first.parameter - 0.331281337454746) < 1e-9 and first.change == 2
    assert abs(second.parameter - 1.41871866254525) < 1e-9 and second.change == -2
    assert abs(first.frequency - 0.275506805723561) < 1e-9


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


def test_a_branch_compiles_once():
    traced = []

    class Counted(eqx.Module):
        p: jax.Array

        def __call__(self, t, z, x):
            traced.append(None)
            return self.p + z * z - 0.1 * z**3

    def run(most, max_points=400):
        return continuation(
            Counted(jnp.asarray(-1.0)),
            jnp.array([-1.0]),
            where=lambda f: f.p,  # a new function at each call
            bounds=(-2.0, 1.0),
            path=PseudoArclength(most=most),
            max_points=max_points,
        )

    few = run(0.05, 1)
    count = len(traced)
    many = run(0.02)
    assert few.parameters.size == 1 and many.parameters.size > 50 and len(many.special_points) == 1
    # The check for finite forces at the start is the only other call.
    assert len(traced) - count <= 1


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


def test_check_tells_a_stable_fixed_point_from_one_that_newton_found():
    field = forked(1.0)
    saddle = equilibrium(field, jnp.array([0.1]), solver=NewtonKrylov(rtol=1e-10))
    assert abs(float(saddle.value[0])) < 1e-9
    verdict = check(field, saddle)
    assert not verdict.holds and verdict.fixed_point and abs(verdict.abscissa - 1) < 1e-9
    assert "leaves" in str(verdict)
    stable = check(field, jnp.array([1.0]), step=0.9)
    assert stable.holds and stable.holds_euler and "stays" in str(stable)
    coarse = check(field, jnp.array([1.0]), step=1.1)  # 1 + 1.1 · (-2) = -1.2
    assert coarse.holds and not coarse.holds_euler
    np.testing.assert_allclose(coarse.multipliers, [-1.2 + 0j], rtol=1e-9)
    adrift = check(field, jnp.array([0.5]), step=0.9)
    assert not (adrift.fixed_point or adrift.holds or adrift.holds_euler)
    assert abs(adrift.residual - 0.375) < 1e-12 and "no fixed point" in str(adrift)
    broken = check(field, jnp.array([jnp.nan]))
    assert not broken.holds and not broken.fixed_point
    batch = jax.vmap(lambda z: check(field, z, step=1.1))(jnp.array([[1.0], [0.0], [0.5]]))
    shown = str(batch).split("sample ")
    assert (
        len(shown) == 4 and "stays" in shown[1] and "leaves" in shown[2] and "no fixed" in shown[3]
    )
    assert batch.holds.tolist() == [True, False, False]
    assert batch.holds_euler.tolist() == [False, False, False]


def test_a_fast_mode_far_from_the_axis_is_seen_by_euler_alone():
    rates = jnp.array([-0.1, -0.2, -0.3, -30.0])
    verdict = check(lambda t, z, x: rates * z, jnp.zeros(4), step=0.1, k=1)
    assert verdict.holds and not verdict.holds_euler
    assert abs(verdict.abscissa + 0.1) < 1e-10


def planar_coefficient(field, z):
    """4a/ω of Guckenheimer & Holmes (1983, eq. 3.4.11), in the coordinates that make A a rotation by ω."""
    values, vectors = np.linalg.eig(np.asarray(jax.jacfwd(lambda z: field(0.0, z, None))(z)))
    i = np.argmax(values.imag)
    omega, q = values[i].imag, vectors[:, i] / np.linalg.norm(vectors[:, i])
    frame = jnp.stack([jnp.asarray(q.real), -jnp.asarray(q.imag)], axis=1)

    def turned(y):
        return jnp.linalg.solve(frame, field(0.0, z + frame @ y, None))

    second = np.asarray(jax.jacfwd(jax.jacfwd(turned))(jnp.zeros(2)))
    third = np.asarray(jax.jacfwd(jax.jacfwd(jax.jacfwd(turned)))(jnp.zeros(2)))
    (fxx, fxy, fyy), (gxx, gxy, gyy) = second[:, [0, 0, 1], [0, 1, 1]]
    cubic = third[0, 0, 0, 0] + third[0, 0, 1, 1] + third[1, 0, 0, 1] + third[1, 1, 1, 1]
    quadratic = fxy * (fxx + fyy) - gxy * (gxx + gyy) - fxx * gxx + fyy * gyy
    return 4 / omega * (cubic + quadratic / omega) / 16


class RescaledVanDerPol(eqx.Module):
    """`ẍ - (μ - x²) ẋ + x = 0` at μ = 0; in the usual scaling the nonlinearity vanishes there too, and l₁ with it."""

    def __call__(self, t, z, x):
        return jnp.stack([z[1], -z[0] - z[0] ** 2 * z[1]])


def test_hopf_normal_forms():
    # ‖q‖ = 1 makes |z|² = 2 |a|²: Stuart–Landau has l₁ = -2 l / ω.
    field = fields.StuartLandau(growth=0.0, frequency=2.0, saturation=-3.0, shear=0.7)
    found = hopf_normal_form(field, jnp.zeros(2))
    assert abs(found.l1 - 3) < 1e-10 and abs(found.frequency - 2) < 1e-12
    assert not found.supercritical and "subcritical" in str(found)
    rho = 470 / 19
    c = np.sqrt(8 / 3 * (rho - 1))
    lorenz = hopf_normal_form(fields.Lorenz(rho=rho), jnp.array([c, c, rho - 1]))
    # ω² = β (σ + ρ) there (the characteristic polynomial has a factor μ² + ω²); subcritical (Marsden & McCracken 1976)
    assert not lorenz.supercritical
    assert abs(lorenz.frequency - np.sqrt(8 / 3 * (10 + rho))) < 1e-10
    none = hopf_normal_form(lambda t, z, x: -z * jnp.array([1.0, 2.0]), jnp.zeros(2))
    assert jnp.isnan(none.l1)


@pytest.mark.parametrize("name", ["Brusselator", "van der Pol", "FitzHugh–Nagumo"])
def test_the_normal_form_is_the_planar_formula_in_the_plane(name):
    if name == "Brusselator":
        field, z, sign = fields.Brusselator(1.3, 2.69), jnp.array([1.3, 2.69 / 1.3]), -1
    elif name == "van der Pol":
        field, z, sign = RescaledVanDerPol(), jnp.zeros(2), -1
    else:
        field, sign = fields.FitzHughNagumo(current=0.331281337454746), 1
        v = -np.sqrt(1 - 0.08 * 0.8)  # trace zero
        z = jnp.array([v, (v + 0.7) / 0.8])
    found = hopf_normal_form(field, z)
    assert jnp.sign(found.l1) == sign and found.residual < 1e-10
    np.testing.assert_allclose(found.l1, planar_coefficient(field, z), rtol=1e-9)
    if name == "van der Pol":
        assert abs(found.l1 + 0.25) < 1e-12


def test_van_der_pol_has_its_period_and_multiplier():
    field, z0 = fields.VanDerPol(), jnp.array([2.0, 0.0])
    orbit = periodic_orbit(field, z0, period=6.6)
    assert abs(orbit.period - 6.663286859323) < 1e-11 and orbit.stable
    assert abs(jnp.log(orbit.transverse[0].real) + 7.0589328088) < 1e-9
    assert abs(orbit.multipliers[0] - 1) < 1e-11 and "stable cycle of period 6.663286" in str(orbit)
    stiffer = periodic_orbit(fields.VanDerPol(2.0), z0, period=7.6)
    assert abs(stiffer.period - 7.629874479675) < 1e-10
    assert abs(jnp.log(stiffer.transverse[0].real) + 18.1786) < 2e-4
    # From the fixed point "every period" would do: that is no cycle.
    fallen = periodic_orbit(field, jnp.array([1e-9, 0.0]), period=6.6, throw=False)
    assert not fallen.converged
    with pytest.raises(Exception, match="No cycle found"):
        periodic_orbit(field, jnp.array([1e-9, 0.0]), period=6.6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_cycle_of_stuart_landau_stable_or_not(sign):
    """Radius √(μ/l), period 2π/(ω - c μ/l), multiplier exp(-2μT): shooting finds the unstable cycle as well."""
    field = fields.StuartLandau(growth=0.3 * sign, saturation=sign, shear=0.5)
    orbit = periodic_orbit(field, jnp.array([0.55, 0.0]), period=7.4)
    period = 2 * np.pi / (1 - 0.15)
    assert abs(orbit.period - period) < 1e-11
    assert abs(jnp.linalg.norm(orbit.state) - np.sqrt(0.3)) < 1e-11
    multiplier = np.exp(-2 * 0.3 * sign * period)
    np.testing.assert_allclose(orbit.transverse.real, [multiplier], rtol=1e-10)
    assert bool(orbit.stable) == (sign > 0)


def test_lorenz_exponents():
    found = lyapunov(
        fields.Lorenz(),
        jnp.array([1.0, 1.0, 20.0]),
        step=0.01,
        steps=200_000,
        transient=2000,
        every=10,
    )
    assert abs(found.exponents[0] - 0.906) < 4 * found.errors[0] and found.errors[0] < 0.01
    assert abs(found.exponents[1]) < 4 * found.errors[1]
    assert abs(jnp.sum(found.exponents) + 41 / 3) < 1e-6  # the divergence is constant
    assert abs(found.dimension - 2.062) < 0.005


def test_exponents_of_maps_and_linear_fields():
    cat = Map(jnp.asarray(1.0), lambda z, p: jnp.mod(jnp.array([[2.0, 1.0], [1.0, 1.0]]) @ z, p))
    settings = {"step": 1.0, "steps": 200, "solver": dfx.Euler()}
    found = lyapunov(cat, jnp.array([0.1, 0.2]), transient=40, **settings)
    np.testing.assert_allclose(found.exponents, [0.962423650119207, -0.962423650119207], rtol=1e-13)
    batch = jax.vmap(lambda z: lyapunov(cat, z, transient=40, k=1, **settings).exponents)(
        jnp.array([[0.1, 0.2], [0.7, 0.3]])
    )
    np.testing.assert_allclose(batch, 0.962423650119207, rtol=1e-13)
    # Stable, and yet it grows at first: the singular values of exp(A T).
    matrix = jnp.array([[-1.0, 10.0], [0.0, -2.0]])
    grown = finite_time_exponents(lambda t, z, x: matrix @ z, jnp.zeros(2), step=0.01, steps=50)
    propagator = scipy.linalg.expm(0.5 * np.asarray(matrix))
    exact = np.log(np.linalg.svd(propagator, compute_uv=False)) / 0.5
    np.testing.assert_allclose(grown, exact, rtol=1e-9)
    assert grown[0] > 1
    flow = lyapunov(
        lambda t, z, x: matrix @ z, jnp.ones(2), step=0.05, steps=400, transient=600, every=2
    )
    np.testing.assert_allclose(flow.exponents, [-1, -2], atol=1e-6)


def test_misuse_of_cycles_and_exponents_is_refused():
    field, z = fields.VanDerPol(), jnp.array([2.0, 0.0])
    with pytest.raises(ValueError, match="`period`"):
        periodic_orbit(field, z, period=-1.0)
    with pytest.raises(ValueError, match="`steps`"):
        lyapunov(field, z, step=0.1, steps=7)
    with pytest.raises(ValueError, match="`k`"):
        lyapunov(field, z, step=0.1, steps=10, k=3)
    with pytest.raises(ValueError, match="`step`"):
        finite_time_exponents(field, z, step=0.0, steps=10)
    for call in (
        lambda: periodic_orbit(lambda t, z, x: z, z.astype(complex), period=1.0),
        lambda: lyapunov(lambda t, z, x: z, z.astype(complex), step=0.1, steps=10),
        lambda: hopf_normal_form(lambda t, z, x: z, z.astype(complex)),
    ):
        with pytest.raises(ValueError, match="Realified"):
            call()
