"""`eqjax run`: every show finds what is known, and its pictures show what it found. Bad input is told, or flagged."""

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import eqjax as ej
from eqjax import plots
from eqjax.cli import main
from eqjax.fields import (
    BinaryHopfield,
    ContinuousHopfield,
    Crossbar,
    HodgkinHuxley,
    KuramotoNetwork,
    LeakyIntegrateAndFire,
    MorrisLecar,
    SpikingNetwork,
    hebb,
    pattern_memory,
    recall,
)
from eqjax.relaxation import (
    FixedStep,
    SpikeTrain,
    SpikingState,
    fire,
)
from eqjax.showcase import (
    HHShow,
    HopfieldShow,
    KuramotoShow,
    LIFShow,
    ParityShow,
    one_step_law,
    retrieval_overlap,
)
from eqjax.showcase._memories import near_square


def run(capsys, *arguments):
    """What `eqjax run` prints, in one line."""
    main(["run", *map(str, arguments)])
    return " ".join(capsys.readouterr().out.split())


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["run", *map(str, arguments)])
    assert stop.value.code not in (0, None)
    captured = capsys.readouterr()
    return " ".join((captured.err + captured.out).replace("│", " ").split())


def lines(axes):
    return {line.get_label(): np.asarray(line.get_xydata()) for line in axes.get_lines()}


def measured(shown):
    return {what: found for what, found, _ in shown.rows}


# The shows


def test_codes_are_printed_and_drawn(tmp_path, capsys):
    shown = run(capsys, "xor", "--out", tmp_path)
    assert "right 4 of 4 4 of 4" in shown and "0 xor 1 0.99" in shown and "1 xor 1 0.00" in shown
    shown = run(capsys, "hamming", "--out", tmp_path)
    assert "stay 16 of 16 16 of 16" in shown and "corrected 112 of 112 112 of 112" in shown
    assert f"Written to {tmp_path}: hamming.png" in shown
    for name in ("xor.png", "hamming.png"):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.02
    # Below its threshold of β nothing is corrected, and that is what is printed.
    shown = run(capsys, "hamming", "--beta", 2, "--out", tmp_path)
    assert "corrected 0 of 112 112 of 112" in shown


def test_hopfield_networks_err_as_the_law_says():
    shown = HopfieldShow(size=200, seed=1)()
    found = measured(shown)
    error, spread = map(float, found["one-step bit error, 28 patterns in 200 neurons"].split(" ± "))
    assert abs(error - one_step_law(200, 28)) < 3 * spread < 0.3 * error
    assert found["largest rise of the energy in a sweep"] == "0"
    # Mean-field theory (Amit, Gutfreund & Sompolinsky 1987: .967 at α_c), within the scatter of 200 neurons.
    assert retrieval_overlap(0.1379) == pytest.approx(0.967, abs=2e-3) and not retrieval_overlap(
        0.139
    )
    at = "overlap at load .08, from cues 15% wrong"
    assert abs(float(found[at]) - retrieval_overlap(0.08)) < 0.02
    assert float(found["overlap at load .24"]) < 0.8
    assert near_square(200) == (14, 14) and near_square(35) == (5, 7)
    curve = lines(shown.pictures["capacity.png"].axes[0])["200 neurons"]
    assert abs(curve[5, 1] - float(found["overlap at load .12"])) < 1e-3


def test_hodgkin_huxley_fires_between_its_hopf_points():
    shown = HHShow()()
    for what, found, known in shown.rows:
        assert abs(float(found) - float(known)) < (2e-4 if "period" in what else 2e-6)
    curves = lines(shown.pictures["f_i.png"].axes[0])
    spike, rest = curves["started by a spike"], curves["pushed from rest by .2 mV"]
    # Cycle and rest coexist between the fold of cycles at 6.26 and the Hopf point at 9.78; far beyond it they agree.
    assert np.all((spike[:, 1] > 0) == ((spike[:, 0] > 6.26) & (spike[:, 0] < 154.2)))
    assert np.all(rest[rest[:, 0] < 9.7, 1] == 0)
    far = (spike[:, 0] > 12) & (spike[:, 0] < 150)
    np.testing.assert_allclose(spike[far, 1], rest[far, 1], rtol=1e-2)
    volts = lines(shown.pictures["trace.png"].axes[0])
    (v,) = volts.values()
    assert np.ptp(v[v[:, 0] < 20, 1]) < 0.1 and v[:, 1].max() > 30


def test_integrate_and_fire_rates_and_a_raster(tmp_path, capsys):
    shown = LIFShow(size=40, duration=60.0)()
    for _, found, known in shown.rows[:4]:
        assert abs(float(found) - float(known)) < 1e-8
    above, below = shown.pictures["raster.png"].axes
    dots = lines(above)
    rates = measured(shown)
    for name, count in (("excitatory", 32), ("inhibitory", 8)):
        rate = float(rates[f"mean rate in the network, {name} (Hz)"])
        assert rate > 1 and abs(len(dots[name]) - rate * count * 0.06) < 0.1
    assert dots["inhibitory"][:, 1].min() >= 32 > dots["excitatory"][:, 1].max()
    assert len(below.patches) == 2


def test_kuramoto_follows_the_theory():
    shown = KuramotoShow(size=400)()
    found = {what: float(value) for what, value in measured(shown).items()}
    assert abs(found["r at K = 4, Lorentzian"] - 0.5**0.5) < 0.05
    assert abs(found["r at K = 2, Gaussian"] - 0.715173956683183) < 0.05
    assert found["r at K = 1, below both K_c"] < 0.15
    curves = lines(shown.pictures["kuramoto.png"].axes[0])
    theory = curves["Lorentzian, n → ∞"]
    np.testing.assert_allclose(np.interp(4.0, *theory.T), 0.5**0.5, atol=1e-6)


def test_parity_is_learned_at_the_fixed_point():
    shown = ParityShow(bits=4)()
    found = measured(shown)
    assert found["training strings right at the fixed point"] == "13 of 13"
    assert found["strings that settle"] == "16 of 16"
    loss, right = shown.pictures["parity.png"].axes
    assert len(loss.get_lines()[0].get_xdata()) == int(found["updates"]) >= 10
    scores = lines(right)["training strings"]
    assert scores[0, 1] < 0.8 and scores[-1, 1] == 1


def test_flags_are_checked(tmp_path, capsys):
    assert "Expected one of {hopfield, xor, hamming" in fails(capsys)
    assert "unicorn" in fails(capsys, "unicorn")
    for arguments, message in (
        (["hopfield", "--size", 3], "--size must lie between 50 and 5000, got 3"),
        (["hopfield", "--damage", 0.5], "--damage must be at least 0 and below .5"),
        (["kuramoto", "--size", 10**7], "--size must lie between"),
        (["parity", "--bits", 9], "--bits must lie between 3 and 6, got 9"),
        (["parity", "--steps", 0], "--steps must be at least 1"),
        (["lif", "--duration", -1], "--duration must be at least .1 ms"),
        (["xor", "--beta", 0], "--beta must be above 0"),
        (["hh", "--current", "nan"], "--current"),
        (["xor", "--size", 3], "--size"),
    ):
        assert message in fails(capsys, *arguments, "--out", tmp_path), arguments
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert "is a file; name a folder" in fails(capsys, "xor", "--out", occupied)


# Pictures


def test_pictures_show_what_they_are_given(tmp_path):
    times = np.linspace(0, 1, 5)
    figure = plots.trace(times, {"a": times**2, "b": -times}, stimulus=times > 0.5, title="two")
    above, below = figure.axes
    np.testing.assert_allclose(lines(above)["a"][:, 1], times**2)
    assert below.get_xlabel() == "time (ms)" and above.get_title() == "two"
    assert len(plots.trace(times, {"a": times}).axes) == 1

    train = SpikeTrain(
        jnp.array([1.0, 2.0, 7.0, jnp.inf]),
        jnp.array([0, 2, 2, -1]),
        jnp.array([1, 0, 2]),
        SpikingState(jnp.zeros(3), jnp.zeros(3), jnp.zeros(3)),
        jnp.asarray(True),
    )
    above, below = plots.raster(train, duration=10.0, width=5.0).axes
    np.testing.assert_array_equal(lines(above)["all"], [[1, 0], [2, 2], [7, 2]])
    (stairs,) = below.patches
    # Two spikes of three neurons in the first 5 ms, one in the second.
    np.testing.assert_allclose(stairs.get_data().values, [2000 / 15, 1000 / 15])
    with pytest.raises(ValueError, match="`groups` must make up all 3 neurons"):
        plots.raster(train, duration=10.0, groups={"few": 2})

    figure = plots.f_i_curve({"a": ([1.0, 2.0], [0.0, 9.0])}, marks={"Hopf": 1.5}, unit="nA")
    drawn = lines(figure.axes[0])
    assert np.all(drawn["Hopf"][:, 0] == 1.5) and drawn["a"][1, 1] == 9
    assert figure.axes[0].get_xlabel() == "current (nA)"
    figure = plots.order_parameter(
        {"ours": ([1.0], [0.3])}, theory={"law": ([0, 1], [0, 0.25])}, onset=0.5
    )
    drawn = lines(figure.axes[0])
    assert drawn["ours"][0, 1] == 0.3 and drawn["law"][1, 1] == 0.25
    assert np.all(drawn["critical: 0.5"][:, 0] == 0.5)

    images = np.arange(12.0).reshape(2, 2, 3)
    figure = plots.recall({"cue": images, "found": -images}, [[3, 1], [2, 1]], title="both")
    shown = [image.get_array() for image in figure.axes[0].images]
    np.testing.assert_array_equal(shown, [*images, *-images])
    assert len(plots.recall({"cue": images}).axes) == 1
    plots.save(figure, tmp_path / "recall.png")
    assert (tmp_path / "recall.png").stat().st_size > 5000
    for rows in ({}, {"a": images, "b": images[:1]}, {"a": images[0]}):
        with pytest.raises(ValueError, match="`patterns` must hold as many images"):
            plots.recall(rows)


# Bad input


SQUARE = jnp.eye(3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: hebb(jnp.array([[0.0, 1.0]])), r"only -1 and \+1.*2 \* bits - 1"),
        (lambda: hebb(jnp.array([[jnp.nan, 1.0]])), r"only -1 and \+1"),
        (lambda: recall(BinaryHopfield(SQUARE), 2 * jnp.ones(3), key=jax.random.key(0)), "`cue`"),
        (lambda: BinaryHopfield(jnp.ones((2, 3))), r"`weight` must be square, \(n, n\)"),
        (lambda: ContinuousHopfield(jnp.triu(jnp.ones((3, 3)))), "`weight` must be symmetric"),
        (lambda: KuramotoNetwork(jnp.zeros(3), jnp.ones((3, 2))), r"must have the shape \(3, 3\)"),
        (lambda: SpikingNetwork(LeakyIntegrateAndFire(), jnp.ones((3, 2))), "Pad with zeros"),
        (lambda: HodgkinHuxley(g_L=-0.1), "`g_L` is a conductance.*at least 0, got -0.1"),
        (lambda: HodgkinHuxley(g_K=jnp.array([36.0, -1.0])), "`g_K` is a conductance"),
        (lambda: MorrisLecar(g_Ca=-1.0), "`g_Ca` is a conductance"),
        (lambda: HodgkinHuxley(C=0.0), "`C` is a capacitance"),
        (lambda: LeakyIntegrateAndFire(tau=-1.0), "`tau` is a time constant"),
        (lambda: Crossbar(pattern_memory(-SQUARE)), "no resistor has a negative"),
        (lambda: fire(LeakyIntegrateAndFire(), 0.0, t1=1.0, capacity=0), "`capacity`"),
        (lambda: FixedStep(0.0), "`step` must be above 0"),
        (
            lambda: ej.relax(HodgkinHuxley(), jnp.zeros(4), step=0.0, steps=1),
            "`step` must be above",
        ),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_step_too_large_for_hodgkin_huxley_is_flagged_for_its_sample_alone():
    field = HodgkinHuxley(current=10.0)
    z0 = field.clamped(-65.0)

    @jax.jit
    @jax.vmap
    def go(step):
        return ej.relax(field, z0, step=step, steps=1000, throw=False)

    found = go(jnp.array([0.02, 0.5]))
    assert list(found.result == ej.RESULTS.successful) == [True, False]
    assert list(found.result == ej.RESULTS.nonfinite) == [False, True]
    assert jnp.all(jnp.isfinite(found.value[0])) and -100 < found.value[0, 0] < 60
    with pytest.raises(Exception, match="(?i)finite"):
        jax.block_until_ready(ej.relax(field, z0, step=0.5, steps=200).value)
