"""Places where a wrong answer came without a word: each with the right one, had another way."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from jax import lax

from eqjax import analytic
from eqjax.fields import (
    DeltaSynapse,
    ExponentialSynapse,
    LeakyIntegrateAndFire,
    SpikingNetwork,
)
from eqjax.gradients import check_holomorphic
from eqjax.relaxation import (
    GMRES,
    Anderson,
    AndersonTypeI,
    Broyden,
    EventDriven,
    FixedStep,
    SpikingState,
    equilibrium,
    fire,
)

# GMRES


def solved(a, b, solver, **options):
    operator = lineax.MatrixLinearOperator(a)
    return lineax.linear_solve(operator, b, solver, options=options, throw=False)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex64])
@pytest.mark.parametrize("rtol", [1e-1, 1e-5])
def test_gmres_solves_alike_at_every_scale(dtype, rtol):
    """A (s y) = b has the solution of (s A) y = b, and as many products find it; whether or not the cycle is filled."""
    a = jnp.diag(jnp.arange(1.0, 11.0)) + 0.1 * jnp.ones((10, 10))
    a, b = a.astype(dtype), jnp.ones(10, dtype)
    one = solved(a, b, GMRES(rtol))
    assert one.stats["num_steps"] < 12
    for s in (1e-30, 1e-20, 1e-12, 1e-7, 1e7, 1e20, 1e30):
        small = solved(a * np.asarray(s, dtype), b, GMRES(rtol))
        short = solved(a, b * np.asarray(s, dtype), GMRES(rtol))
        for out, y in ((small, small.value * s), (short, short.value / s)):
            assert out.result == lineax.RESULTS.successful
            assert jnp.linalg.norm(a @ y.astype(dtype) - b) <= 1.01 * rtol * jnp.linalg.norm(b)
            assert out.stats["num_steps"] == one.stats["num_steps"]


def test_gmres_drops_a_singular_direction_at_every_scale():
    """Least squares of a projector: as small in the direction that it loses as without it."""
    a, b = jnp.diag(jnp.array([1.0, 2.0, 0.0])), jnp.array([1.0, 1.0, 1e-3])
    for s in (1e-12, 1.0, 1e12):
        out = solved(s * a, b, GMRES(1e-2))
        assert out.result == lineax.RESULTS.successful
        assert jnp.allclose(s * (a @ out.value), jnp.array([1.0, 1.0, 0.0]), atol=1e-2)


def test_gmres_drops_a_guess_that_is_no_better_than_none():
    a = jnp.diag(jnp.arange(1.0, 6.0)) + jnp.triu(jnp.ones((5, 5)))
    zero = solved(a, jnp.zeros(5), GMRES(1e-6), y0=jnp.linspace(-1.0, 1.0, 5))
    assert zero.result == lineax.RESULTS.successful
    assert not zero.value.any() and zero.stats["num_steps"] == 1
    b = jnp.ones(5)
    for guess in (jnp.full(5, 1e6), jnp.full(5, jnp.nan)):
        far = solved(a, b, GMRES(1e-10), y0=guess)
        assert jnp.allclose(far.value, jnp.linalg.solve(a, b))
    near = solved(a, b, GMRES(1e-6), y0=jnp.linalg.solve(a, b))
    assert near.stats["num_steps"] == 1


# Anderson and Broyden


@pytest.mark.parametrize("method", [Anderson, AndersonTypeI, Broyden])
@pytest.mark.parametrize("lost", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_force_that_is_not_finite_is_left_like_a_large_one(method, lost):
    """Outside a ball the force is 1e6, or not finite: the same restarts, so the same iterates, and neighbours too."""
    turn = jnp.array([[-1.0, -0.5, 0.0], [0.5, -1.0, 0.2], [0.0, -0.2, -0.7]])
    x = jnp.array([1.0, -0.5, 0.8])
    want = jnp.linalg.solve(turn, -x)

    def settled(outside, start):
        visits = []

        def field(t, z, x):
            inside = jnp.sum(z * z) < 1.2 * jnp.sum(want * want)
            jax.debug.callback(lambda inside: visits.append(bool(inside)), inside)
            return jnp.where(inside, turn @ z + x, outside)

        solver = method(1e-10, mixing=4.0)
        out = equilibrium(field, start, x, solver=solver, throw=False)
        jax.effects_barrier()
        return out, visits

    large, visits = settled(1e6, jnp.zeros(3))
    assert not all(visits) and jnp.allclose(large.value, want, atol=1e-8)
    found, visits = settled(lost, jnp.zeros(3))
    assert not all(visits)
    assert found.stats["field_evaluations"] == large.stats["field_evaluations"]
    np.testing.assert_array_equal(found.value, large.value)


# check_holomorphic


def relu(z):
    return jnp.maximum(z, 0)


def chain(z):
    """More operations in a row than Python nests calls."""
    for _ in range(600):
        z = 0.999 * z + 0.001
    return z


@jax.custom_vjp
def lying(z):
    return relu(z)


lying.defvjp(lambda z: (relu(z), None), lambda _, g: (g,))


# What must be named, and the function. All but one are holomorphic in pieces: their Cauchy–Riemann equations hold at
# almost every point.
PIECEWISE = {
    "max in a checkpoint": ("`max`", jax.checkpoint(relu)),
    "max in a call in a call": ("`max` in `relu`", jax.checkpoint(jax.jit(jax.nn.relu))),
    "max behind a derivative of its own": ("`max`", lying),
    "max in a scan": (
        "`max`",
        lambda z: lax.scan(lambda c, r: (relu(c) * r, c), z, jnp.ones(3))[1][-1],
    ),
    "max in a scan backwards": (
        "`max`",
        lambda z: lax.scan(lambda c, r: (c * r, relu(c)), z, jnp.ones(3), reverse=True)[1],
    ),
    "max in a fori_loop": ("`max`", lambda z: lax.fori_loop(0, 3, lambda i, c: relu(c) + 1, z)),
    "max in a while": (
        "`max`",
        lambda z: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, relu(s[1])), (0, z))[1],
    ),
    "max in a branch": (
        "`max`",
        lambda z: lax.cond(jnp.arange(3)[0] == 0, relu, lambda z: z, z),
    ),
    "max in a reduction": (
        "`reduce_max`",
        lambda z: z - lax.complex(jnp.max(z.real), z.imag[jnp.argmax(z.real)]),
    ),
    "abs in a scan": (
        "`abs`",
        lambda z: lax.scan(lambda c, _: (c * jnp.abs(c), None), z, None, length=2)[0],
    ),
    "a branch": (
        "`cond`, decided by `gt`",
        lambda z: lax.cond(z[0].real > 0, lambda z: z, lambda z: 2 * z, z),
    ),
    "branches of constants": (
        "`cond`, decided by `gt`",
        lambda z: z * lax.cond(z[0].real > 0, lambda: 1.0, lambda: 2.0),
    ),
    "the end of a loop": (
        "`while`, decided by `lt`",
        lambda z: lax.while_loop(lambda c: jnp.sum(c.real) < 10, lambda c: 2 * c + 1, z),
    ),
    "a mask": ("decided by `gt`", lambda z: z * (z.real > 0)),
    "a mask that is nowhere true": ("decided by `gt`", lambda z: z * (z.real > 10)),
    "a mask, stopped": ("decided by `gt`", lambda z: z * lax.stop_gradient(z.real > 0)),
    "a mask of a stopped value": ("decided by `gt`", lambda z: z * (lax.stop_gradient(z).real > 0)),
    "masks put together": (
        "`select_n`, decided by `gt`",
        lambda z: jnp.where((z.real > 0) & (jnp.arange(3) < 2), z, 0),
    ),
    "a count": ("decided by `gt`", lambda z: z * jnp.sum(z.real > 0)),
    "the largest": ("`reduce_max`", lambda z: z * (z.real == jnp.max(z.real))),
    "its place": ("decided by `argmax`", lambda z: z * z[jnp.argmax(z.real)]),
    "its place, one of many": (
        "decided by `argmax`",
        lambda z: z * jax.nn.one_hot(jnp.argmax(z.real), 3),
    ),
    "sign": ("`sign`", lambda z: z * jnp.sign(z.real)),
    "floor": ("`floor`", lambda z: z * jnp.floor(z.real)),
    "round": ("`round`", lambda z: z * jnp.round(z.real)),
    "a choice by sign": (
        "`select_n`, decided by `sign`",
        lambda z: jnp.where(jnp.sign(z.real) > 0, z, 2 * z),
    ),
    "a choice by an exact value": (
        "`floor`",
        lambda z: jnp.where(jnp.floor(z.real) == 0, z, 2 * z),
    ),
    "folded": ("`abs`", lambda z: lax.complex(abs(z.real), z.imag * z.real / abs(z.real))),
    "remainder": ("`rem`", lambda z: lax.complex(z.real % 0.5, z.imag)),
    "stopped, and small": (
        "`stop_gradient`",
        lambda z: 1e-9 * z * lax.stop_gradient(jnp.sum(z * z)),
    ),
}


@pytest.mark.parametrize("name", PIECEWISE)
def test_what_is_holomorphic_only_in_pieces_is_refused_by_name(name):
    culprit, function = PIECEWISE[name]
    with pytest.raises(ValueError, match=culprit):
        check_holomorphic(function, jnp.ones(3), name="field")


def own_shift(z):
    """A softmax by its definition, with a maximum that cancels."""
    powers = jnp.exp(z - lax.stop_gradient(jnp.max(z.real)))
    total = jnp.sum(powers)
    return powers / jnp.where(total == 0, 1, total)


def converged(z):
    """The square root of 2 + z² by Newton's method: how many steps it takes the state decides, and they are enough."""
    a = 2 + z * z

    def off(r):
        return jnp.max(jnp.abs(r * r - a)) > 1e-13

    return lax.while_loop(off, lambda r: (r + a / r) / 2, jnp.ones_like(z))


MASK = jnp.array([True, False, True])

HOLOMORPHIC = {
    "softmax": analytic.softmax,
    "masked softmax": lambda z: analytic.softmax(z, MASK),
    "softmax, nothing valid": lambda z: analytic.softmax(z, MASK & False),
    "logsumexp": lambda z: z * analytic.logsumexp(z),
    "softplus": analytic.softplus,
    "gelu": analytic.gelu,
    "layer norm": analytic.layer_norm,
    "rms norm": lambda z: analytic.rms_norm(z, jnp.ones(3), jnp.ones(3)),
    "scale, shift, matmul": lambda z: analytic.matmul(
        analytic.shift(analytic.scale(z, jnp.arange(3.0)), jnp.ones(3)), jnp.ones((3, 2))
    ),
    "cross entropy": lambda z: analytic.cross_entropy(z[None], jnp.array([1])),
    "squared error": lambda z: analytic.squared_error(z, jnp.ones(3)),
    "attention": lambda z: analytic.attention(
        *[z.reshape(1, 3, 1)] * 3, mask=analytic.causal_mask(3)
    ),
    "a shift of its own": own_shift,
    "in a checkpoint": jax.checkpoint(own_shift),
    "in a scan": lambda z: lax.scan(lambda c, r: (own_shift(c) * r, c), z, jnp.ones(3))[1],
    "in a loop": lambda z: lax.fori_loop(0, 3, lambda i, c: own_shift(c) + i, z),
    "a mask of its own": lambda z: jnp.where(MASK, z, 0),
    "a branch of its own": lambda z: lax.cond(MASK[0], jnp.sin, jnp.cos, z),
    "a matrix of the state": lambda z: jnp.linalg.solve(jnp.outer(z, z) + jnp.eye(3), z),
    "a loop that converges": converged,
    "small": lambda z: 1e-30 * analytic.softmax(z),
    "a scan of nothing": lambda z: lax.scan(lambda c, r: (c * r, c), z, jnp.ones(0))[0],
    "a long chain": chain,
}


@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_choices_that_leave_no_trace_pass(name):
    with jax.numpy_rank_promotion("allow"):
        check_holomorphic(HOLOMORPHIC[name], jnp.ones(3), name="field")


def test_masks_and_places_of_the_input_pass():
    def field(z, x, tokens):
        picked = jnp.where(x > 0, z, 0.5 * z)[jnp.argmax(x)]
        return z * picked * jnp.take(x, tokens) * jnp.floor(x)

    check_holomorphic(field, jnp.ones(3), jnp.ones(3), jnp.zeros(3, int), name="field")
    # And while something is traced, where the values of closed-over arrays are not known.
    inside = jax.jit(lambda w: (check_holomorphic(lambda z: w * own_shift(z), w, name="field"), w))
    inside(jnp.ones(3))
    with pytest.raises(ValueError, match="`max`"):
        jax.vmap(lambda w: (check_holomorphic(lambda z: w * relu(z), w, name="field"), w))(
            jnp.ones((2, 3))
        )


# Spiking neurons


def in_chunks(network, v, ends, capacity, schemes):
    state, times, indices, t0 = v, [], [], 0.0
    for i, t1 in enumerate(ends):
        scheme = schemes[i % len(schemes)]
        train = fire(network, state, t0=t0, t1=float(t1), capacity=capacity, scheme=scheme)
        count = int(train.counts.sum())
        times.extend(train.times[:count])
        indices.extend(train.indices[:count])
        state, t0 = train.state, float(t1)
    return np.array(times), np.array(indices), state


@pytest.mark.parametrize("refractory", [0.0, 0.2, 5.0])
@pytest.mark.parametrize(
    ("coupling", "scheme"),
    [
        ("none", FixedStep(0.5)),
        ("delta", FixedStep(0.5)),
        ("exponential", FixedStep(0.5)),
        ("exponential", EventDriven()),
    ],
)
def test_spikes_are_those_of_one_long_run(refractory, coupling, scheme):
    neurons = LeakyIntegrateAndFire(
        current=jnp.array([20.0, 12.0, 15.0]), refractory=refractory * jnp.ones(3)
    )
    weight = None if coupling == "none" else jnp.array([[0, 0.5, -1], [2, 0, 1], [-1, 1.5, 0]])
    synapse = ExponentialSynapse(4.0) if coupling == "exponential" else DeltaSynapse()
    network = SpikingNetwork(neurons, weight, synapse)
    one = fire(network, jnp.zeros(3), t1=60.0, capacity=40, scheme=scheme)
    count = int(one.counts.sum())
    assert count > 10
    times, indices, state = in_chunks(network, jnp.zeros(3), range(5, 61, 5), 12, [scheme])
    np.testing.assert_allclose(times, one.times[:count], rtol=0, atol=1e-8)
    np.testing.assert_array_equal(indices, one.indices[:count])
    np.testing.assert_allclose(state.v, one.state.v, rtol=0, atol=1e-8)
    np.testing.assert_allclose(state.s, one.state.s, rtol=0, atol=1e-8)
    np.testing.assert_allclose(state.ready, one.state.ready, rtol=0, atol=1e-8)


def test_each_scheme_goes_on_from_the_state_of_the_other():
    """The potential at the end is that of the closed form, so the interval across the seam is as long as any."""
    neuron, interval = LeakyIntegrateAndFire(current=20.0, refractory=0.1), 0.1 + 10 * np.log(2)
    for schemes in ((FixedStep(0.1), EventDriven()), (EventDriven(), FixedStep(0.1))):
        times, _, state = in_chunks(neuron, 0.0, range(7, 106, 7), 3, schemes)
        expected = interval * np.arange(1, len(times) + 1) - 0.1
        np.testing.assert_allclose(times, expected, rtol=0, atol=0.1**2 * 15)
        rest = 20 * (1 - np.exp(-(105 - times[-1] - 0.1) / 10))
        np.testing.assert_allclose(state.v, rest, atol=1e-3)


@pytest.mark.parametrize("scheme", [FixedStep(0.1), EventDriven()])
def test_a_refractory_neuron_does_not_spike(scheme):
    """It is held above the threshold until it is ready; meanwhile others spike at their own times."""
    neurons = LeakyIntegrateAndFire(current=jnp.array([15.0, 15.0, 0.0]))

    def run(ready):
        state = SpikingState(jnp.array([11.0, 8.0, 11.0]), jnp.zeros(3), ready)
        return fire(neurons, state, t1=8.0, capacity=4, scheme=scheme)

    train = run(jnp.array([4.0, -jnp.inf, 20.0]))
    own = 10 * np.log((15 - 8) / (15 - 10))
    np.testing.assert_allclose(train.times[:2], (own, 4.0), atol=1e-3)
    np.testing.assert_array_equal(train.indices, (1, 0, -1, -1))
    assert train.state.v[2] == pytest.approx(11.0)
    # All of them, in one sample, and none in the other.
    ready = jnp.array([[4.0, 4.0, 20.0], [-jnp.inf] * 3])
    both = jax.vmap(run)(ready)
    np.testing.assert_allclose(both.times[0, :2], (4.0, 4 + own), atol=1e-3)
    np.testing.assert_allclose(both.times[1, :3], (0.0, 0.0, own), atol=1e-3)
    assert both.complete.all()


def test_gradients_pass_a_refractory_start():
    """A neuron held above its threshold spikes when it is ready; the other's spike does not know of it."""

    def times(ready, current):
        neurons = LeakyIntegrateAndFire(current=current * jnp.ones(2))
        state = SpikingState(jnp.array([11.0, 0.0]), jnp.zeros(2), jnp.array([ready, 0.0]))
        return fire(neurons, state, t1=12.0, capacity=3).times[:2]

    by_ready, by_current = jax.jacobian(times, argnums=(0, 1))(4.0, 15.0)
    np.testing.assert_allclose(by_ready, (1.0, 0.0), atol=1e-9)
    np.testing.assert_allclose(by_current, (0.0, 10 / 15 - 10 / 5), atol=1e-8)
