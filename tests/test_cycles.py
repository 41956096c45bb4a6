"""Branches of cycles, Hopf points as functions, and files of results, against closed forms and SciPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from eqjax import fields
from eqjax.stability import (
    Natural,
    Spectrum,
    continuation,
    cycle_continuation,
    hopf_normal_form,
    hopf_point,
    load,
    periodic_orbit,
    save,
    spectrum,
)


class Ring(eqx.Module):
    """`ṙ = p r + r³ - r⁵`, `θ̇ = 1 + c r²`: cycles where `p = r⁴ - r²`, of period `2π / (1 + c r²)`, fold at p = -1/4."""

    p: jax.Array
    shear: jax.Array

    def __call__(self, t, z, x):
        square = jnp.sum(z * z)
        growth = self.p + square - square**2
        return growth * z + (1 + self.shear * square) * jnp.stack([-z[1], z[0]])


class Band(eqx.Module):
    """The unit circle, of multiplier `exp(-4π)`, and a plane u across it. Twisted, u turns by half a turn each time
    round: multipliers `-exp(2πp)`, `-exp(-2π)`. Otherwise it is a spiral: `exp(2π(p ± iw))`."""

    p: jax.Array
    w: jax.Array
    twisted: bool = eqx.field(static=True)

    def __call__(self, t, z, x):
        ring, u = z["ring"], z["u"]
        c, s = ring
        square = jnp.sum(ring * ring)
        if self.twisted:
            # R(θ/2) diag(p, -1) R(-θ/2), and half a turn
            mean, half = (self.p - 1) / 2, (self.p + 1) / 2
            du = mean * u + half * jnp.stack([c * u[0] + s * u[1], s * u[0] - c * u[1]])
            du = du + 0.5 * jnp.stack([-u[1], u[0]])
        else:
            du = self.p * u + self.w * jnp.stack([-u[1], u[0]])
        return {"ring": (1 - square) * ring + jnp.stack([-s, c]), "u": du - jnp.sum(u * u) * u}


class Rossler(eqx.Module):
    """Rössler's equations with a = b = 0.2."""

    c: jax.Array

    def __call__(self, t, z, x):
        return jnp.stack([-z[1] - z[2], z[0] + 0.2 * z[1], 0.2 + z[2] * (z[0] - self.c)])


def ring_orbit(p, steps):
    square = (1 + np.sqrt(1 + 4 * p)) / 2
    field = Ring(jnp.asarray(p), jnp.asarray(0.2))
    guess = jnp.array([np.sqrt(square), 0.0])
    period = 2 * np.pi / (1 + 0.2 * square)
    return field, periodic_orbit(field, guess, period=period, steps=steps)


@pytest.fixture(scope="module")
def ring_branch():
    return cycle_continuation(
        *ring_orbit(0.5, 300),
        where=lambda f: f.p,
        bounds=(-0.5, 0.6),
        backwards=True,
        steps=300,
    )


def test_a_fold_of_cycles_is_passed_and_the_branch_ends_in_its_hopf_point(ring_branch):
    fold, hopf = ring_branch.special_points
    assert (fold.type, fold.change, fold.status) == ("fold", 1, "converged")
    assert abs(fold.parameter + 0.25) < 1e-9 and abs(jnp.sum(fold.state**2) - 0.5) < 1e-6
    assert abs(fold.multiplier - 1) < 1e-6 and abs(fold.period - 2 * np.pi / 1.1) < 1e-6
    assert hopf.type == "Hopf" and hopf.status == "converged" and hopf.amplitude == 0
    assert abs(hopf.parameter) < 1e-9 and abs(hopf.frequency - 1) < 1e-9
    assert ring_branch.ended == "the cycle shrank to a fixed point"
    low, high = fold.interval
    assert low <= fold.parameter <= high and high - low < 1e-9


def test_every_cycle_of_a_branch_has_its_period_amplitude_and_multiplier(ring_branch):
    p = np.asarray(ring_branch.parameters)
    square = np.sum(np.asarray(ring_branch.states) ** 2, axis=1)
    period = 2 * np.pi / (1 + 0.2 * square)
    multiplier = np.exp(period * (p + 3 * square - 5 * square**2))
    np.testing.assert_allclose(p, square**2 - square, atol=1e-9)
    np.testing.assert_allclose(ring_branch.periods, period, atol=1e-9)
    np.testing.assert_allclose(ring_branch.multipliers[:, 0], multiplier, atol=1e-8)
    np.testing.assert_allclose(ring_branch.amplitudes, np.sqrt(square), rtol=1e-3)
    assert (ring_branch.unstable == (multiplier > 1)).all() and ring_branch.reliable.all()
    assert ring_branch.unstable[0] == 0 and ring_branch.unstable[-1] == 1
    assert jnp.max(ring_branch.drift) < 1e-9 and jnp.max(ring_branch.residuals) < 1e-11


def test_a_branch_of_cycles_prints_itself(ring_branch):
    text = str(ring_branch)
    assert "cycles from 0.5 to" in text and "fold  -0.25" in text.replace("-0.249999999", "-0.25")
    assert "NOT CONVERGED" not in text


@pytest.mark.parametrize("twisted", [True, False])
def test_period_doubling_and_torus_where_a_closed_form_puts_them(twisted):
    field = Band(jnp.asarray(-0.2), jnp.asarray(0.3), twisted)
    start = {"ring": jnp.array([1.0, 0.0]), "u": jnp.zeros(2)}
    orbit = periodic_orbit(field, start, period=6.3, steps=100)
    branch = cycle_continuation(
        field, orbit, where=lambda f: f.p, bounds=(-0.2, 0.15), steps=100, k=3
    )
    (point,) = branch.special_points
    assert abs(point.parameter) < 1e-7 and point.status == "converged"
    assert abs(abs(point.multiplier) - 1) < 1e-9
    if twisted:
        assert (point.type, point.change) == ("period doubling", 1)
        assert abs(point.multiplier + 1) < 1e-7 and abs(point.frequency - 0.5) < 1e-7
    else:
        assert (point.type, point.change) == ("torus", 2)
        assert abs(point.frequency - 0.3) < 1e-7
    growth = np.exp(2 * np.pi * np.asarray(branch.parameters))
    others = np.exp([-2 * np.pi, -4 * np.pi]) if twisted else [np.exp(-4 * np.pi)]
    sizes = [growth if twisted else np.stack([growth, growth]).T.ravel(), others]
    for i, multipliers in enumerate(np.abs(np.asarray(branch.multipliers))):
        leading = [growth[i]] if twisted else [growth[i]] * 2
        np.testing.assert_allclose(multipliers, [*leading, *sizes[1]], atol=1e-6)
    assert branch.states["u"].shape == (branch.parameters.size, 2)


def test_roessler_doubles_its_period_where_scipy_says_so():
    def cycle(c):
        """The cycle and its multipliers by SciPy: shooting at y = 0 with the variational equations."""

        def rhs(t, y):
            z, columns = y[:3], y[3:].reshape(3, 3)
            jacobian = [[0, -1, -1], [1, 0.2, 0], [z[2], 0, z[0] - c]]
            force = [-z[1] - z[2], z[0] + 0.2 * z[1], 0.2 + z[2] * (z[0] - c)]
            return np.r_[force, (np.array(jacobian) @ columns).ravel()]

        def turn(y):
            start = np.r_[y[0], 0.0, y[1], np.eye(3).ravel()]
            done = scipy.integrate.solve_ivp(
                rhs, (0, y[2]), start, method="DOP853", rtol=1e-12, atol=1e-13
            )
            return done.y[:, -1]

        def gap(y):
            end = turn(y)
            matrix = end[3:].reshape(3, 3)
            force = rhs(0, end)[:3]
            derivative = np.stack([matrix[:, 0], matrix[:, 2], force], axis=1)
            derivative[:, :2] -= np.eye(3)[:, [0, 2]]
            return end[:3] - [y[0], 0, y[1]], derivative

        y = np.array([-3.946, 0.0311, 5.762])
        for _ in range(8):
            value, derivative = gap(y)
            y = y - np.linalg.solve(derivative, value)
        return y, np.linalg.eigvals(turn(y)[3:].reshape(3, 3))

    y, _ = cycle(2.7)
    field = Rossler(jnp.asarray(2.7))
    guess = jnp.array([y[0], 0.0, y[1]])
    orbit = periodic_orbit(field, guess, period=y[2], steps=500, k=3)
    assert abs(orbit.period - y[2]) < 1e-8
    branch = cycle_continuation(
        field, orbit, where=lambda f: f.c, bounds=(2.6, 3.0), steps=500, max_points=20
    )
    (point,) = branch.special_points
    assert point.type == "period doubling" and point.change == 1
    y, multipliers = cycle(point.parameter)
    assert abs(min(multipliers.real) + 1) < 1e-7
    assert abs(point.period - y[2]) < 1e-8


def test_a_natural_path_ends_at_the_fold_and_a_callback_ends_it_sooner():
    field, orbit = ring_orbit(0.0, 60)
    settings = {"where": lambda f: f.p, "bounds": (-0.5, 0.6), "backwards": True, "steps": 60}
    branch = cycle_continuation(field, orbit, path=Natural(least=1e-3), **settings)
    assert "no shorter step" in branch.ended and -0.25 < branch.parameters[-1] < -0.2
    seen = []

    def callback(parameter, cycle):
        seen.append((parameter, float(cycle.period)))
        return len(seen) == 3

    branch = cycle_continuation(field, orbit, callback=callback, **settings)
    assert branch.ended == "stopped by the callback" and branch.special_points == ()
    assert seen == list(zip(branch.parameters.tolist(), branch.periods.tolist(), strict=True))
    assert "no special points" in str(branch)


def test_the_cycles_of_the_brusselator_shrink_to_its_hopf_point():
    """Where cycles are no circles around the fixed point, and it lies on no plane of phase."""
    field = fields.Brusselator(b=jnp.asarray(2.3))
    orbit = periodic_orbit(field, jnp.array([1.6, 1.6]), period=6.4, steps=100)
    branch = cycle_continuation(
        field, orbit, where=lambda f: f.b, bounds=(1.5, 3.0), backwards=True, steps=100
    )
    (hopf,) = branch.special_points
    assert hopf.type == "Hopf" and abs(hopf.parameter - 2) < 1e-11 and hopf.amplitude == 0
    assert abs(hopf.frequency - 1) < 1e-11 and jnp.allclose(hopf.state, jnp.array([1.0, 2.0]))
    assert branch.ended == "the cycle shrank to a fixed point" and (branch.unstable == 0).all()
    # Born as the normal form says: the parameter goes with the square of the amplitude.
    ratio = (branch.parameters[-3:] - 2) / branch.amplitudes[-3:] ** 2
    assert jnp.ptp(ratio) < 0.1 * ratio[0]


def test_misuse_of_branches_of_cycles_is_refused():
    field, orbit = ring_orbit(0.5, 60)
    good = {"where": lambda f: f.p, "bounds": (-0.5, 0.6), "steps": 60}
    for change, message in (
        ({"bounds": (0.6, -0.5)}, "low < high"),
        ({"bounds": (-0.5, 0.0)}, "do not hold"),
        ({"where": lambda f: f.nothing}, "picks no leaf"),
        ({"steps": 0}, "`steps` must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            cycle_continuation(field, orbit, **good | change)
    fixed = eqx.tree_at(lambda o: o.state, orbit, jnp.array([1e-9, 0.0]))
    with pytest.raises(ValueError, match="No cycle found"):
        cycle_continuation(field, fixed, **good)
    line = eqx.tree_at(lambda o: o.state, orbit, jnp.ones(1))
    with pytest.raises(ValueError, match="one number"):
        cycle_continuation(field, line, **good)
    spiral = eqx.tree_at(lambda o: o.state, orbit, jnp.ones(2, complex))
    with pytest.raises(ValueError, match="Realified"):
        cycle_continuation(field, spiral, **good)


def brusselator(a, b=2.5):
    field = eqx.tree_at(lambda f: (f.a, f.b), fields.Brusselator(), (a, jnp.asarray(b)))
    return hopf_point(field, jnp.array([1.3, 1.6]), where=lambda f: f.b)


def test_the_hopf_point_of_the_brusselator_and_its_derivatives():
    a = jnp.asarray(1.3)
    point = brusselator(a)
    assert abs(point.parameter - (1 + a**2)) < 1e-11 and abs(point.frequency - a) < 1e-11
    assert jnp.allclose(point.state, jnp.stack([a, (1 + a**2) / a]), atol=1e-11)
    assert point.converged and "Hopf point at parameter 2.69, ω = 1.3" in str(point)

    def outcome(a):
        found = brusselator(a)
        return jnp.stack([found.parameter, found.frequency, *found.state])

    want = jnp.stack([2 * a, jnp.ones(()), jnp.ones(()), 1 - 1 / a**2])
    assert jnp.allclose(jax.jacfwd(outcome)(a), want, atol=1e-10)
    assert jnp.allclose(jax.jacrev(outcome)(a), want, atol=1e-10)


def test_hopf_points_map_over_a_batch_and_one_that_fails_spoils_no_other():
    a = jnp.array([0.9, 1.2, jnp.nan])

    def both(a):
        field = eqx.tree_at(lambda f: (f.a, f.b), fields.Brusselator(), (a, jnp.asarray(2.0)))
        found = hopf_point(field, jnp.array([1.0, 2.0]), where=lambda f: f.b, throw=False)
        return found.parameter, found.converged

    (value, converged), slope = jax.vmap(both)(a), jax.vmap(jax.grad(lambda a: both(a)[0]))(a)
    assert converged.tolist() == [True, True, False]
    assert jnp.allclose(value[:2], 1 + a[:2] ** 2, atol=1e-10)
    assert jnp.allclose(slope[:2], 2 * a[:2], atol=1e-9)


@pytest.mark.parametrize("current", [0.3, 1.4])
def test_fitzhugh_nagumo_moves_its_hopf_points_as_algebra_says(current):
    def algebra(a, b, rate):
        """The trace `1 - v² - φb` vanishes; w and I follow."""
        v = np.sqrt(1 - rate * b) * (-1 if current < 1 else 1)
        return (v + a) / b - v + v**3 / 3

    def search(field):
        v = -1.0 if current < 1 else 1.0
        start = jnp.stack([jnp.asarray(v), (v + 0.7) / 0.8])
        return hopf_point(field, start, where=lambda f: f.current)

    field = fields.FitzHughNagumo(current=jnp.asarray(current))
    point = search(field)
    known = (0.7, 0.8, 0.08)
    assert abs(point.parameter - algebra(*known)) < 1e-11
    assert abs(point.frequency - 0.275506805723561) < 1e-11
    slopes = eqx.filter_grad(lambda f: search(f).parameter)(field)
    want = scipy.optimize.approx_fprime(known, lambda p: algebra(*p), 1e-7)
    got = [slopes.a, slopes.b, slopes.rate]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert slopes.current == 0
    # and to more digits, against the search itself
    h = 1e-5
    for name, slope in zip(("a", "b", "rate"), got, strict=True):

        def where(f, name=name):
            return getattr(f, name)

        value = where(field)
        up, down = (search(eqx.tree_at(where, field, value + s)).parameter for s in (h, -h))
        assert abs((up - down) / (2 * h) - slope) < 1e-8


def test_a_hopf_point_that_is_not_there_is_told():
    class Decay(eqx.Module):
        rate: jax.Array

        def __call__(self, t, z, x):
            return -self.rate * z

    field = Decay(jnp.asarray(1.0))
    found = hopf_point(field, jnp.ones(2), where=lambda f: f.rate, throw=False)
    assert not found.converged and "no Hopf point" in str(found)
    with pytest.raises(Exception, match="No Hopf point found"):
        hopf_point(field, jnp.ones(2), where=lambda f: f.rate)
    with pytest.raises(ValueError, match="Realified"):
        hopf_point(field, jnp.ones(2, complex), where=lambda f: f.rate)
    with pytest.raises(ValueError, match="picks no leaf"):
        hopf_point(field, jnp.ones(2), where=lambda f: f.nothing)


def same(a, b):
    """Bit for bit, in structure, type and value."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(one) is type(other)
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def rotating(t, z, x):
    turn = jnp.asarray(-0.1 + 1j).astype(z["a"].dtype)
    return {"a": turn * z["a"], "b": (-z["b"][0],)}


@pytest.fixture(scope="module")
def results(ring_branch):
    """One of each kind that can hold something awkward."""
    field = fields.Brusselator()
    branch = continuation(
        field, jnp.array([1.0, 1.5]), where=lambda f: f.b, bounds=(1.0, 2.5), step=0.1, k=2
    )
    state = {"a": jnp.ones(2, complex), "b": (jnp.ones(3, complex),)}
    nested = spectrum(rotating, state, k=2, step=0.1, key=jax.random.key(0))
    batch = jax.vmap(
        lambda z: spectrum(
            lambda t, z, x: -z * jnp.arange(1.0, 5.0),
            z,
            k=2,
            left=True,
            key=jax.random.key(0),
            throw=False,
        )
    )(jnp.array([[1.0] * 4, [jnp.nan] * 4]))
    unconverged = spectrum(
        lambda t, z, x: jnp.roll(z, 1) * z, jnp.arange(30.0), ncv=8, k=2, max_restarts=1,
        key=jax.random.key(0), throw=False,
    )  # fmt: skip
    hopf = branch.special_points[-1]
    form = hopf_normal_form(
        eqx.tree_at(lambda f: f.b, field, jnp.asarray(hopf.parameter)), hopf.state
    )
    return {
        "branch": branch,
        "cycles": ring_branch,
        "nested": nested,
        "batch": batch,
        "unconverged": unconverged,
        "form": form,
        "point": hopf,
    }


@pytest.mark.parametrize(
    "name", ["branch", "cycles", "nested", "batch", "unconverged", "form", "point"]
)
def test_what_was_saved_is_loaded_to_the_last_bit(results, name, tmp_path):
    save(tmp_path / "result.eqx", results[name])
    loaded = load(tmp_path / "result.eqx")
    same(loaded, results[name])
    assert str(loaded) == str(results[name])
    if isinstance(loaded, Spectrum):
        assert (loaded.result == results[name].result).all()
    assert [p.name for p in tmp_path.iterdir()] == ["result.eqx"]


def test_several_results_share_a_file(results, tmp_path):
    whole = {
        "all": [results["nested"], (results["point"], None)],
        "mixed": (1 + 2j, True, "–", float("inf"), np.arange(3, dtype=np.int16)),
        "half": jnp.ones(3, jnp.bfloat16),
        "empty": jnp.zeros((0, 2)),
    }
    save(tmp_path / "whole", whole)
    loaded = load(tmp_path / "whole")
    same(loaded, whole)
    assert loaded["mixed"][:4] == whole["mixed"][:4]
    save(tmp_path / "whole", {3: "three", (1, 2): None})
    assert load(tmp_path / "whole") == {3: "three", (1, 2): None}


def test_a_file_is_written_whole_or_not_at_all(results, tmp_path, monkeypatch):
    path = tmp_path / "result"
    save(path, results["nested"])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"result\['f'\].* does not know"):
        save(path, {"f": object()})
    with pytest.raises(ValueError, match="only numbers"):
        save(path, jax.random.key(0))
    with pytest.raises(ValueError, match="under `jit`"):
        jax.jit(lambda a: save(path, a))(jnp.ones(2))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(path, results["branch"])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_files_that_are_missing_foreign_or_damaged_are_refused(results, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load(tmp_path / "nothing")
    path = tmp_path / "file"
    path.write_text("hello")
    with pytest.raises(ValueError, match="damaged, or was not written"):
        load(path)
    with path.open("wb") as stream:
        np.savez(stream, a=np.ones(2))
    with pytest.raises(ValueError, match="was not written by"):
        load(path)
    save(path, results["nested"])
    data = path.read_bytes()
    good = str(load(path))
    for place in range(0, len(data), 41):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            loaded = load(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # a byte that says nothing, such as the date of a member
            assert str(loaded) == good
            same(loaded, results["nested"])
        path.write_bytes(data[:place])
        with pytest.raises(ValueError, match="damaged"):
            load(path)
    path.write_bytes(data.replace(b'"format": 1', b'"format": 9'))
    with pytest.raises(ValueError):
        load(path)


def test_double_precision_is_not_dropped_without_a_word(tmp_path):
    save(tmp_path / "a", jnp.ones(2))
    save(tmp_path / "b", jnp.ones(2, jnp.float32))
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        load(tmp_path / "a")
    assert load(tmp_path / "b").dtype == jnp.float32
