"""Pictures of branches, spectra, cycles and flows show what the results say."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import fields, plots
from eqjax.stability import (
    continuation,
    cycle_continuation,
    periodic_orbit,
    spectrum,
)


class Folded(eqx.Module):
    """`ż = p + z - z³/3`: folds at p = ±2/3, where z = ∓1; Euler with ε = 1 flips where z² = 3."""

    p: jax.Array

    def __call__(self, t, z, x):
        return self.p + z - z**3 / 3


@pytest.fixture(scope="module")
def folded():
    return continuation(
        Folded(jnp.asarray(-1.0)),
        jnp.array([-2.1]),
        where=lambda f: f.p,
        bounds=(-1.0, 1.0),
        step=1.0,
    )


def lines(axes):
    """Drawn lines by label."""
    return {line.get_label(): line for line in axes.get_lines()}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_branch_is_drawn_solid_where_stable_and_dashed_where_not(folded, tmp_path):
    figure = plots.branch(folded, value=lambda z: z[0], labels=("p", "z"))
    above, below = figure.axes
    assert above.get_ylabel() == "z" and below.get_xlabel() == "p"
    drawn = lines(above)
    dashed = drawn["unstable"]
    assert dashed.get_linestyle() == "--"
    # Between the folds, all of that piece and nothing else; and it lies on the branch.
    z = np.asarray(dashed.get_ydata(), float)
    assert abs(z[0] + 1) < 1e-6 and abs(z[-1] - 1) < 1e-6
    np.testing.assert_allclose(dashed.get_xdata(), z**3 / 3 - z, atol=1e-9)
    assert drawn["stable"].get_linestyle() == drawn["Euler leaves"].get_linestyle() == "-"
    assert drawn["stable"].get_color() != drawn["Euler leaves"].get_color()
    euler = np.asarray(drawn["Euler leaves"].get_ydata(), float)
    assert (euler <= -np.sqrt(3) + 1e-6).all()
    told = legend(figure)
    for point in folded.special_points:
        label = f"flow: {point.flow}, Euler: {point.euler}, at {point.parameter:.6g}"
        assert label in told
        (p,), (height,) = (np.asarray(a, float) for a in drawn[label].get_data())
        assert p == point.parameter and height == float(point.state[0])
    growth = lines(below)["max Re μ"].get_ydata()
    want = np.max(1 - np.asarray(folded.states) ** 2, axis=1)
    np.testing.assert_allclose(np.asarray(growth, float), want, atol=1e-9)
    size = lines(below)["max |λ| - 1"].get_ydata()
    np.testing.assert_allclose(np.asarray(size, float), abs(1 + want) - 1, atol=1e-9)
    plots.save(figure, tmp_path / "branch.png")
    assert (tmp_path / "branch.png").stat().st_size > 10_000


def test_a_branch_without_a_step_shows_the_norm_and_the_flow_alone():
    field = Folded(jnp.asarray(-1.0))
    branch = continuation(
        field, {"a": jnp.array([-2.1])}["a"], where=lambda f: f.p, bounds=(-1.0, 0.0)
    )
    figure = plots.branch(branch)
    above, below = figure.axes
    assert above.get_ylabel() == "‖z‖" and set(lines(above)) == {"stable"}
    shown = np.asarray(lines(above)["stable"].get_ydata(), float)
    np.testing.assert_allclose(shown, np.abs(np.asarray(branch.states)[:, 0]))
    assert "max |λ| - 1" not in lines(below)


def test_a_spectrum_is_sorted_by_who_loses_it():
    values = jnp.array([-0.5, -1.5, -2.5, 0.3])
    found = spectrum(lambda t, z, x: values * z, jnp.zeros(4), k=4, step=1.0, key=jax.random.key(0))
    figure = plots.spectrum(found)
    (axes,) = figure.axes
    drawn = lines(axes)
    kinds = {"decays (2)": [-0.5, -1.5], "Euler alone leaves (1)": [-2.5], "grows (1)": [0.3]}
    for name, want in kinds.items():
        np.testing.assert_allclose(np.sort(drawn[name].get_xdata()), np.sort(want), atol=1e-9)
    circle = drawn["|1 + εμ| = 1, ε = 1"]
    mu = np.asarray(circle.get_xdata()) + 1j * np.asarray(circle.get_ydata())
    np.testing.assert_allclose(abs(1 + mu), 1)
    left, right = axes.get_xlim()
    assert left < -2.5 and right > 0.3
    assert axes.get_xlabel() == "Re μ" and axes.get_ylabel() == "Im μ"
    # With a shorter step nothing is lost by Euler alone.
    shorter = lines(plots.spectrum(found, step=0.5).axes[0])
    assert "decays (3)" in shorter and "|1 + εμ| = 1, ε = 0.5" in shorter


def test_a_batch_of_spectra_without_a_step_has_no_circle():
    found = jax.vmap(
        lambda z: spectrum(
            lambda t, z, x: jnp.stack([-z[0] - z[1], z[0] - z[1]]) * z[0],
            z,
            k=2,
            key=jax.random.key(0),
        )
    )(jnp.array([[1.0, 0.5], [2.0, 0.5]]))
    figure = plots.spectrum(found)
    count = sum(
        len(line.get_xdata()) for name, line in lines(figure.axes[0]).items() if "(" in name
    )
    assert count == 4 and not any("ε" in text for text in legend(figure))


def test_cycles_and_phase_portraits(tmp_path):
    field = fields.StuartLandau(growth=jnp.asarray(0.5), shear=jnp.asarray(0.3))
    orbit = periodic_orbit(field, jnp.array([0.7, 0.0]), period=2 * np.pi / (1 - 0.15), steps=64)
    branch = cycle_continuation(
        field, orbit, where=lambda f: f.growth, bounds=(-0.1, 0.6), backwards=True, steps=64
    )
    figure = plots.cycles(branch, label="μ")
    amplitude, period, multipliers = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["amplitude", "period T", "|multipliers|"]
    assert all(axes.get_xlabel() == "μ" for axes in figure.axes)
    curve = lines(amplitude)["stable"]
    p, height = (np.asarray(a, float) for a in curve.get_data())
    np.testing.assert_allclose(height**2, p, atol=5e-3)
    assert height[-1] == 0 and abs(p[-1]) < 1e-9
    p, T = (np.asarray(a, float) for a in lines(period)["stable"].get_data())
    np.testing.assert_allclose(T, 2 * np.pi / (1 - 0.3 * p), rtol=1e-6)
    assert any(text.startswith("Hopf, at") for text in legend(figure))
    p, size = (np.asarray(a, float) for a in multipliers.get_lines()[0].get_data())
    np.testing.assert_allclose(size, np.exp(-4 * np.pi * p / (1 - 0.3 * p)), rtol=1e-4)
    plots.save(figure, tmp_path / "cycles.png")

    path = dfx.diffeqsolve(
        dfx.ODETerm(field),
        dfx.Tsit5(),
        0.0,
        orbit.period,
        0.1,
        orbit.state,
        saveat=dfx.SaveAt(ts=jnp.linspace(0.0, orbit.period, 50)),
    ).ys
    figure = plots.phase_portrait(
        field, ((-1, 1), (-1.2, 1.2)), curves={"cycle": path, "rest": jnp.zeros(2)}
    )
    (axes,) = figure.axes
    assert axes.get_xlim() == (-1, 1) and axes.get_ylim() == (-1.2, 1.2)
    assert legend(figure)[2:] == ["cycle", "rest"]
    assert np.shape(lines(axes)["cycle"].get_xdata()) == (50,)
    plots.save(figure, tmp_path / "portrait.png")
    assert (tmp_path / "portrait.png").stat().st_size > 10_000
