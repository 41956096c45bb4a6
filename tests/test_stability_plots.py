"""Pictures of branches, spectra, cycles and flows show what the results say; and what all pictures have in common."""

from types import SimpleNamespace

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from eqjax import fields, plots
from eqjax.relaxation import SpikeTrain, SpikingState
from eqjax.stability import (
    Curve,
    CurvePoint,
    Diagram,
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
    assert drawn["stable"].get_linestyle() == "-" != drawn["Euler leaves"].get_linestyle()
    euler = np.asarray(drawn["Euler leaves"].get_ydata(), float)
    assert (euler <= -np.sqrt(3) + 1e-6).all()
    told = legend(figure)
    # Each kind once, with all its places; a flip of the Euler map alone is hollow.
    kinds = {
        "flow: –, Euler: flip, at 0, 0": "none",
        "flow: fold, Euler: fold, at 0.666667, -0.666667": "full",
    }
    assert set(told) == {"stable", "Euler leaves", "unstable", *kinds}
    for label, fill in kinds.items():
        mine = [s for s in folded.special_points if s.euler in label]
        p, height = (np.asarray(a, float) for a in drawn[label].get_data())
        np.testing.assert_array_equal(p, [s.parameter for s in mine])
        np.testing.assert_array_equal(height, [float(s.state[0]) for s in mine])
        assert drawn[label].get_fillstyle() == fill
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


@pytest.fixture(scope="module")
def cycling():
    """A field, one of its cycles and the branch of them."""
    field = fields.StuartLandau(growth=jnp.asarray(0.5), shear=jnp.asarray(0.3))
    orbit = periodic_orbit(field, jnp.array([0.7, 0.0]), period=2 * np.pi / (1 - 0.15), steps=64)
    branch = cycle_continuation(
        field, orbit, where=lambda f: f.growth, bounds=(-0.1, 0.6), backwards=True, steps=64
    )
    return field, orbit, branch


def test_cycles_and_phase_portraits(cycling, tmp_path):
    field, orbit, branch = cycling
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


# What all pictures have in common


ROW = dict.fromkeys(("relative_error", "adjoint_residual", "field_evaluations"), 0.5)
LINES = [
    {"step": i, "loss": 1.0 - i / 9, "free_residual": 0.1, "adjoint_residual": 0.2}
    for i in range(5)
]
LINES[3] |= {"validation": 0.8, "probe_cosine": 0.9999}
CURVE = np.arange(1.0, 31.0), np.linspace(0.9, 0.1, 30)


@pytest.fixture(scope="module")
def calls(folded, cycling):
    """Every picture, of five curves where there may be several: its call, and how many panels it has."""
    field, orbit, cycles = cycling
    curves = dict.fromkeys("abcde", CURVE)
    rows = [ROW | {"estimator": o, "objective": o} for o in ("equilibrium", "output")]
    table = SimpleNamespace(rows=[SimpleNamespace(**row) for row in rows], reference="equilibrium")
    found = Diagram((folded,), ("",), (cycles,), ("",), ())
    modes = folded.spectra
    one = eqx.tree_at(lambda s: s.values, modes, jnp.array([[-0.5], [-2.5], [0.3]]))
    spikes = jnp.array([1.0, 2.0]), jnp.array([0, 1]), jnp.array([1, 1])
    train = SpikeTrain(*spikes, SpikingState(*[jnp.zeros(2)] * 3), jnp.asarray(True))
    paths = {n: np.stack([np.asarray(orbit.state)] * k) for n, k in (("a", 30), ("b", 1))}
    point = CurvePoint("cusp", (1.5, 0.5), jnp.zeros(1), (), 0.0, "converged", 0)
    line = jnp.stack(CURVE, axis=1)
    critical = Curve(line, jnp.zeros((30, 1)), line[:, 0], line, (point,), "end")
    energies = np.exp(-np.arange(3)[:, None] * np.arange(5) / 2)
    return {
        "curves": (lambda ax: plots.curves(curves, labels=("x", "y"), log="x", ax=ax), 1),
        "residuals": (lambda ax: plots.residuals(curves, ax=ax), 1),
        "training": (lambda ax: plots.training({"a": LINES, "b": LINES}, ax=ax), 3),
        "comparison": (lambda ax: plots.comparison(table, ax=ax), 3),
        "trace": (
            lambda ax: plots.trace(
                CURVE[0], dict.fromkeys("abcde", CURVE[1]), stimulus=CURVE[1], ax=ax
            ),
            2,
        ),
        "raster": (
            lambda ax: plots.raster(train, duration=10.0, groups={"a": 1, "b": 1}, ax=ax),
            2,
        ),
        "f_i_curve": (
            lambda ax: plots.f_i_curve(curves, marks={"Hopf": 3.0, "fold": 5.0}, ax=ax),
            1,
        ),
        "order_parameter": (
            lambda ax: plots.order_parameter(
                curves, theory={"law": CURVE, "bound": CURVE}, onset=2.0, ax=ax
            ),
            1,
        ),
        "recall": (lambda ax: plots.recall({"cue": np.ones((3, 2, 2))}, energies, ax=ax), 2),
        "branch": (lambda ax: plots.branch(folded, ax=ax), 2),
        "diagram": (lambda ax: plots.diagram(found, value=lambda z: z[0], ax=ax), 1),
        "spectrum": (lambda ax: plots.spectrum(one, step=1.0, ax=ax), 1),
        "cycles": (lambda ax: plots.cycles(cycles, ax=ax), 3),
        "critical_curves": (
            lambda ax: plots.critical_curves(dict.fromkeys("abcde", critical), ax=ax),
            1,
        ),
        "phase_portrait": (
            lambda ax: plots.phase_portrait(
                field, ((-1, 1), (-1, 1)), curves=paths, points=9, ax=ax
            ),
            1,
        ),
    }


PICTURES = [
    n
    for n, f in vars(plots).items()
    if getattr(f, "__annotations__", {}).get("return") is matplotlib.figure.Figure
]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_on_axes_of_the_callers_and_told_apart_in_grey(name, calls, monkeypatch):
    call, panels = calls[name]
    canvas = matplotlib.figure.Figure()
    given = list(canvas.subplots(panels, 1, squeeze=False).flat)
    one = canvas.add_axes((0, 0, 1, 1))
    before = len(canvas.axes)
    with monkeypatch.context() as patch:  # no other figure is made
        patch.setattr(matplotlib.figure.Figure, "__init__", None)
        assert call(given) is canvas
        assert call(one) is canvas  # the first panel alone, if there are several
    assert len(canvas.axes) == before and not canvas.legends
    for axes in (*given, one):
        assert (
            axes.has_data() and axes.get_xlabel() + (axes is not one) * "?" and axes.get_ylabel()
        ), axes
        # Lines, markers and filling: no colour.
        looks = [
            (line.get_linestyle(), line._dash_pattern, line.get_marker(), line.get_fillstyle())
            for line in axes.get_lines()
            if not line.get_label().startswith("_")
        ]
        assert len(looks) == len(set(map(str, looks))), looks
    ours = call(None)
    assert len(ours.axes) == panels and all(axes.get_ylabel() for axes in ours.axes[:1])
    for wrong in ("axes", [], [*given, one], [one, None][: panels + 1]):
        with pytest.raises(ValueError, match="`ax` must be Matplotlib axes"):
            call(wrong)


def test_curves_of_ones_own_are_on_the_axes_that_are_asked_for():
    (axes,) = plots.curves({"": CURVE}, labels=("n", "cost"), title="one", log="xy").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log") and axes.get_legend() is None
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("n", "cost", "one")
    with pytest.raises(ValueError, match="`log` must be"):
        plots.curves({}, log="z")


def test_five_curves_that_coincide_are_all_seen():
    (axes,) = plots.residuals(dict.fromkeys("abcde", CURVE)).axes
    places = {tuple(line.get_markevery()) for line in axes.get_lines()[:4]}
    assert len(places) == 4


def test_energies_that_coincide_are_one_curve_with_all_its_names():
    images = np.ones((7, 1, 4))
    figure = plots.recall({"sent": images}, np.tile(np.exp(-np.arange(9.0)), (7, 1)))
    assert list(lines(figure.axes[1])) == ["1 to 7, alike"]


def test_a_narrow_spectrum_leaves_no_empty_canvas(folded):
    values = jnp.array([-3.0 + 0.2j, -3.0 - 0.2j, -0.5 + 0.2j, -0.5 - 0.2j])
    found = plots.spectrum(eqx.tree_at(lambda s: s.values, folded.spectra, values), step=1.0)
    axes = found.axes[0]
    box, (left, right), (low, high) = axes.get_window_extent(), axes.get_xlim(), axes.get_ylim()
    assert axes.get_aspect() == 1
    np.testing.assert_allclose((right - left) / (high - low), box.width / box.height)


def test_ticks_of_errors_within_a_decade_are_decades():
    rows = [
        ROW | {"estimator": n, "objective": "equilibrium", "relative_error": e}
        for n, e in (("a", 2.0e3), ("b", 3.0e3))
    ]
    axes = plots.comparison(
        SimpleNamespace(rows=[SimpleNamespace(**row) for row in rows], reference="a")
    ).axes[0]
    low, high = axes.get_xlim()
    assert low < 1e3 and high > 1e4 and len(axes.get_xticks()) <= 7
    assert not any(label.get_text() for label in axes.get_xticklabels(minor=True))
