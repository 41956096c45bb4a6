"""Distinct fixed points and whole diagrams, against polynomial roots and roots found on a grid."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from eqjax import plots
from eqjax.stability import PseudoArclength, diagram, equilibria, load


class Himmelblau(eqx.Module):
    """The descent of `(u² + v - a)² + (u + v² - 7)²`."""

    a: jax.Array

    def __call__(self, t, z, x):
        first, second = z[0] ** 2 + z[1] - self.a, z[0] + z[1] ** 2 - 7
        return -2 * jnp.stack([2 * z[0] * first + second, first + 2 * z[1] * second])


class Cubic(eqx.Module):
    p: jax.Array

    def __call__(self, t, z, x):
        return self.p + z - z**3


class Ring(eqx.Module):
    """Two cells that excite one another, with an imperfection."""

    gain: jax.Array
    bias: jax.Array

    def __call__(self, t, z, x):
        return (
            -z
            + self.gain * jnp.tanh(z)
            + 0.3 * jnp.tanh(z[::-1])
            + self.bias * jnp.array([1.0, 2.0])
        )


def test_one_start_leads_to_all_nine_stationary_points():
    field = Himmelblau(jnp.asarray(11.0))
    found = equilibria(field, jnp.zeros((1, 2)))
    assert found.found.sum() == 9 and found.exhausted
    assert np.max(np.asarray(found.residuals)[:9]) < 1e-12 and "9 fixed points" in str(found)
    states = np.asarray(found.states)[:9]
    # v = a - u² + s with both factors: a resultant of degree nine, by elimination of v on its real roots.
    minima = [(3, 2), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)]
    for minimum in minima:
        assert np.min(np.linalg.norm(states - minimum, axis=1)) < 2e-6
    gaps = np.linalg.norm(states[:, None] - states[None], axis=-1) + 9 * np.eye(9)
    assert gaps.min() > 0.1
    few = equilibria(field, jnp.zeros((1, 2)), count=3)
    assert few.found.all() and not few.exhausted


def test_as_many_roots_as_the_cubic_has_and_no_more():
    """Under `vmap` each by itself; at a fold the double root counts once; and a start on a root is no obstacle."""
    fold = 2 / np.sqrt(27)
    p = np.array([0.0, 0.1, fold, 0.5])
    starts = jnp.array([[0.0], [1.5]])
    found = eqx.filter_vmap(lambda field: equilibria(field, starts, count=5))(Cubic(jnp.asarray(p)))
    assert found.found.sum(axis=1).tolist() == [3, 3, 2, 1]
    assert found.exhausted.all()
    for value, states, mask in zip(p, found.states, found.found, strict=True):
        roots = np.roots([-1, 0, 1, value])
        real = np.unique(np.round(roots.real[abs(roots.imag) < 1e-6], 6))
        np.testing.assert_allclose(np.sort(states[mask, 0]), real, atol=2e-6)
    assert jnp.isnan(found.states[3, 1:]).all()


def test_no_root_is_none_found():
    found = equilibria(lambda t, z, x: 1 + z * z, jnp.zeros((2, 1)))
    assert not found.found.any() and found.exhausted and str(found).startswith("0 fixed points")
    with pytest.raises(ValueError, match="one leading axis"):
        equilibria(lambda t, z, x: -z, jnp.asarray(0.0))


def roots_on_a_grid(field, size=3.5):
    """All zeros of a field on the plane, by SciPy from a grid."""
    force = lambda z: np.asarray(
        -z
        + float(field.gain) * np.tanh(z)
        + 0.3 * np.tanh(z[::-1])
        + float(field.bias) * np.arange(1, 3)
    )
    roots = []
    for start in np.stack(np.meshgrid(*[np.linspace(-size, size, 15)] * 2), -1).reshape(-1, 2):
        root, _, code, _ = scipy.optimize.fsolve(force, start, full_output=True)
        if code == 1 and all(np.linalg.norm(root - other) > 1e-5 for other in roots):
            roots.append(root)
    return np.array(roots)


def crossings(found, parameter):
    """How often the branches pass a parameter."""
    above = [np.asarray(b.parameters) > parameter for b in found.branches]
    return sum(int(np.sum(a[1:] != a[:-1])) for a in above)


@pytest.mark.parametrize("bias", [0.0, 0.02])
def test_all_branches_of_a_ring_of_two_cells(bias, tmp_path):
    """Branch points at 1 - 0.3 and 1 + 0.3, where J loses the sum and the difference; with an imperfection these are gone, and
    what they held together is found by deflation."""
    field = Ring(jnp.asarray(0.2), jnp.asarray(bias))
    told = []
    call = {
        "where": lambda f: f.gain,
        "bounds": (0.2, 2.0),
        "path": PseudoArclength(most=0.2, turn=0.5),
        "starts": 2 * jax.random.normal(jax.random.key(0), (10, 2)),
        "at": [1.9],
        "folder": tmp_path / "ring",
        "progress": told.append,
    }
    found = diagram(field, jnp.zeros(2), **call)
    assert not found.missed and len(told) == len(found.branches)
    for gain in (0.5, 1.0, 1.4, 1.9):
        count = len(roots_on_a_grid(Ring(jnp.asarray(gain), field.bias)))
        assert crossings(found, gain) == count, gain
    if bias:
        return
    first = [p.parameter for p in found.branches[0].special_points]
    np.testing.assert_allclose(first, [0.7, 1.3], atol=1e-12)
    # Kept as it went, and whole; a second call computes no branch, and another field is refused.
    assert str(load(tmp_path / "ring" / "diagram")) == str(found)
    assert str(diagram(field, jnp.zeros(2), **call)) == str(found)
    with pytest.raises(ValueError, match="holds another diagram"):
        diagram(Ring(jnp.asarray(0.2), jnp.asarray(0.1)), jnp.zeros(2), **call)
    figure = plots.diagram(found, value=lambda z: z[0])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == ["branch point", "stable", "unstable"]
