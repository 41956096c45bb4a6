"""Pages to explore by hand, in a real browser: what they show is what the library says, or the closed form."""

import json
import os
import re
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explorable import Folded, folded, tiny_block
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service

from eqjax import cli, fields, plots, stability
from eqjax.plots._explorer_branch import in_page
from eqjax.stability import CycleBranch

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
TITLE = 'p < z & "</script>"'
COUPLED = np.array([[1.25, -1.0], [1.0, 1.25]])


def gain_force(gain):
    return lambda z: -z + gain * (COUPLED @ np.tanh(z))


def gain_cycles():
    """The cycles of the gain network by simulation: where they cross `z₂ = 0` upwards, and how long that takes."""
    gains, h = np.array([0.9, 1.0, 1.1, 1.2]), 0.02
    states, periods = [], []
    for gain in gains:
        path = runge_kutta(gain_force(gain), [1.0, 0.0], h, 3000)
        before = np.flatnonzero((path[:-1, 1] < 0) & (path[1:, 1] >= 0))[-2:]
        part = path[before, 1] / (path[before, 1] - path[before + 1, 1])
        states.append(path[before[0]] + part[0] * (path[before[0] + 1] - path[before[0]]))
        periods.append(h * (before[1] + part[1] - before[0] - part[0]))
    some = jnp.zeros(4)
    return CycleBranch(
        *(jnp.asarray(gains), jnp.asarray(states), jnp.asarray(periods), some),
        *(jnp.zeros((4, 1), complex), np.zeros(4, int), some, some, some == 0, ()),
        ended="left the bounds",
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One page of each kind."""
    folder = tmp_path_factory.mktemp("pages of explorer")
    jax.config.update("jax_enable_x64", True)
    with pytest.MonkeyPatch.context() as patch:  # the cycles of the library take long to compile
        patch.setattr(stability, "switch", lambda field, *_, **__: (field, None))
        patch.setattr(stability, "cycle_continuation", lambda *_, **__: gain_cycles())
        cli.main(["explore", "gain-toy", "--out", str(folder / "gain.html")])
    neuron, where = fields.HodgkinHuxley(), lambda f: f.current
    how = {"where": where, "bounds": (0.0, 20.0), "start": neuron.clamped(-65.0)}
    plots.explorer(neuron, folder / "neuron.html", **how, span=30.0, names=list("Vmhn"))
    how = {"field": Folded(jnp.asarray(0.0)), "where": lambda f: f.p, "title": TITLE}
    plots.explorer(folded(), folder / "folded.html", **how, names=["@TITLE@", "</script>"])
    values = folded().spectra.values.at[3, 1].set(jnp.nan).at[12].set(jnp.nan)
    plots.explorer(
        eqx.tree_at(lambda b: b.spectra.values, folded(), values), folder / "unknown.html"
    )
    block, x = tiny_block()
    plots.explorer(block, folder / "left.html", x, step=1e30, steps=30)  # overflows
    plots.explorer(block, folder / "block.html", x, names=list("to be "), steps=30, step=0.2)
    return folder


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        assert not os.environ.get("CI"), "no chromium or chromedriver: see .ci/browser"
        pytest.skip("no chromium or chromedriver to open pages in: see .ci/browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, pages):
    """A function that opens a page and gives what JavaScript returns there; in the end no page may have complained."""

    def go(name):
        browser.set_window_size(1100, 900)
        browser.get((pages / f"{name}.html").as_uri())
        return lambda code, *given: browser.execute_script(f"return {code}", *given)

    yield go
    assert (
        browser.get_log("browser") == [] and browser.execute_script("return explorer.errors") == []
    )


def value(browser, name):
    return float(browser.find_element("id", f"{name}-value").get_attribute("data-value"))


def shown_eigenvalues(browser):
    rows = browser.find_elements("css selector", "#eigenvalues tr[data-re]")
    pairs = [[float(row.get_attribute(f"data-{part}")) for part in ("re", "im")] for row in rows]
    return np.array(pairs) @ np.array([1, 1j])


def runge_kutta(force, z, h, count):
    path = [np.asarray(z, float)]
    for _ in range(count):
        z = path[-1]
        a = force(z)
        b = force(z + h / 2 * a)
        c = force(z + h / 2 * b)
        path.append(z + h / 6 * (a + 2 * b + 2 * c + force(z + h * c)))
    return np.array(path)


def test_sliders_buttons_and_keys_show_what_the_closed_form_says(opened, browser):
    page = opened("gain")
    parameter, step = (browser.find_element("id", name) for name in ("parameter", "step"))
    seen = set()
    for slider, key in (
        (parameter, Keys.ARROW_RIGHT),
        (step, Keys.ARROW_LEFT),
        (parameter, Keys.END),
    ):
        before = slider.get_attribute("value")
        slider.send_keys(key)
        assert slider.get_attribute("value") != before
        gain, epsilon = value(browser, "parameter"), value(browser, "step")
        exact = -1 + gain * np.array([1.25 + 1j, 1.25 - 1j])
        np.testing.assert_allclose(np.sort(shown_eigenvalues(browser)), np.sort(exact), atol=1e-6)
        told = browser.find_element("id", "verdict")
        assert float(told.get_attribute("data-growth")) == pytest.approx(exact[0].real, abs=1e-6)
        largest = abs(1 + epsilon * exact[0])
        assert float(told.get_attribute("data-largest")) == pytest.approx(largest, abs=1e-6)
        seen.add((gain, epsilon))
    assert len(seen) == 3 and gain == pytest.approx(1.2) and epsilon == pytest.approx(0.995)
    for i, (at, said) in enumerate(((0.624695047554424, "Neimark–Sacker"), (0.8, "Hopf"))):
        button = browser.find_element("id", f"special-{i}")
        assert said in button.text
        button.click()
        assert value(browser, "parameter") == pytest.approx(at, abs=1e-6)
        assert button.get_attribute("aria-pressed") == "true"
    assert float(told.get_attribute("data-growth")) == pytest.approx(0, abs=1e-6)
    assert page("explorer.page.data.cycles.length") == 1


def test_the_branch_is_clicked_and_the_start_dragged(opened, browser):
    page = opened("gain")
    diagram, portrait = (browser.find_element("id", name) for name in ("diagram", "portrait"))
    mouse = ActionChains(browser, duration=20)
    before = value(browser, "parameter")
    mouse.move_to_element_with_offset(diagram, diagram.size["width"] // 4, 0).click().perform()
    assert value(browser, "parameter") > before + 0.1
    before = page("explorer.page.start")
    mouse.move_to_element_with_offset(portrait, 40, 10).click_and_hold().move_by_offset(30, -20)
    mouse.release().perform()
    dragged = page("explorer.page.start")
    assert dragged[0] != before[0] and dragged[1] > before[1] + 0.1
    portrait.send_keys(Keys.ARROW_UP)
    start = page("explorer.page.start")
    assert start[0] == dragged[0] and start[1] > dragged[1]
    gain, epsilon, pace = page(
        "[explorer.page.parameter, explorer.page.step, explorer.page.data.pace]"
    )
    shown = page("explorer.page.paths()")
    force = gain_force(gain)
    want = runge_kutta(force, start, pace, len(shown["flow"]) - 1)
    np.testing.assert_allclose(shown["flow"], want, atol=1e-6)
    euler = [np.array(start)]
    for _ in shown["euler"][1:]:
        euler.append(euler[-1] + epsilon * force(euler[-1]))
    np.testing.assert_allclose(shown["euler"], euler, atol=1e-6)
    # The cycle is where the flow ends, also between two that are known.
    at = page("explorer.page.grid.parameter.findIndex((gain) => gain > 1.04)")
    page("explorer.page.set({position: arguments[0]})", at)
    gain = page("explorer.page.parameter")
    (cycle,) = page("explorer.page.cyclesHere")
    ends = runge_kutta(gain_force(gain), [1.0, 0.0], 0.02, 3000)[-400:]
    points = np.array(cycle["points"])
    gaps = np.min(np.linalg.norm(points[:, None] - ends[None], axis=2), axis=1)
    assert 1.04 < gain < 1.06 and not cycle["leaves"] and len(points) == 160 and max(gaps) < 0.03


def test_forces_in_the_page_are_the_librarys(opened):
    page = opened("neuron")
    z = np.random.default_rng(0).normal(size=4)
    square = jnp.asarray(np.add.outer(z, z))
    here = [
        (fields.HodgkinHuxley(current=7.0, temperature=9.0), [-40.0, 0.3, 0.4, 0.5], 1.5),
        (
            fields.ContinuousHopfield(
                square, jnp.asarray(z), lagrangian=fields.LogCosh(1.7), time=2.0
            ),
            z,
            0.2,
        ),
        (fields.Kuramoto(jnp.asarray(z), jnp.asarray(1.3)), 2 * z, None),
        (fields.GainNetwork(jnp.asarray(0.7), square), z, jnp.asarray(z[::-1].copy())),
    ]
    for field, state, x in here:
        known = in_page(field, x, jnp.asarray(state))
        assert known is not None
        numbers = jax.tree.map(lambda a: np.asarray(a).tolist(), known["numbers"])
        code = "FIELDS[arguments[0]](arguments[1])(arguments[2])"
        found = page(code, known["kind"], numbers, np.asarray(state).tolist())
        np.testing.assert_allclose(found, field(0.0, jnp.asarray(state), x), rtol=1e-12, atol=1e-12)
    # A spike of the neuron, and that the current is the slider's.
    page("explorer.page.set({position: 100})")
    current, start, pace = page(
        "[explorer.page.parameter, explorer.page.start, explorer.page.data.pace]"
    )
    force = jax.jit(lambda z: fields.HodgkinHuxley(current=jnp.asarray(10.0))(0.0, z))
    want = runge_kutta(lambda z: np.asarray(force(jnp.asarray(z))), start, pace, 400)
    flow = page("explorer.page.paths().flow.slice(0, 401)")
    assert current == 10 and want[:, 0].max() > 30
    np.testing.assert_allclose(flow, want, atol=1e-6)


def test_a_branch_that_folds_with_a_field_that_the_page_does_not_know(opened, browser):
    page = opened("folded")
    assert browser.title == TITLE
    assert page("explorer.page.data.names") == ["@TITLE@", "</script>"]
    for i, p in enumerate((2 / 3, -2 / 3)):
        browser.find_element("id", f"special-{i}").click()
        assert value(browser, "parameter") == pytest.approx(p, abs=1e-6)
        assert np.max(shown_eigenvalues(browser).real) == pytest.approx(0, abs=1e-6)
    for i in (0, 12):
        page(f"explorer.page.set({{position: {i}}})")
        z = page("explorer.page.grid.states")[i][0]
        cells = [
            float(c.get_attribute("data-value"))
            for c in browser.find_elements("css selector", "#state td")
        ]
        np.testing.assert_allclose(cells, z, atol=1e-6)
        want = np.sort([1 - z * z, -1.0])
        np.testing.assert_allclose(np.sort(shown_eigenvalues(browser).real), want, atol=1e-6)
    sampled = page("explorer.page.data.sampled")
    path, p = np.array(sampled["paths"][8][3]), sampled["parameter"][8]
    force = lambda z: np.array([p + z[0] - z[0] ** 3 / 3, z[0] - z[1]])
    spacing = page("explorer.page.data.span") / (len(path) - 1)
    want = runge_kutta(force, sampled["starts"][3], spacing / 20, 20 * (len(path) - 1))[::20]
    np.testing.assert_allclose(path, want, atol=2e-4)
    assert (
        "Computed beforehand"
        in browser.find_element("id", "portrait").find_element("xpath", "..").text
    )


def test_a_block_settles_attends_and_has_the_eigenvalues_of_its_tokens(opened, browser):
    page = opened("block")
    block, z = tiny_block()
    x = z
    push = jax.jit(lambda z: block(0.0, z, x))
    for _ in range(30):
        z = z + 0.2 * push(z)
    force = push(z)
    left = np.linalg.norm(force, axis=1) / np.maximum(np.linalg.norm(z, axis=1), 1)
    dense = np.asarray(jax.jit(jax.jacfwd(push))(z))
    q, k = (
        block.attention._normed(block.norm1(z) @ w)
        for w in (block.attention.query, block.attention.key)
    )
    token = browser.find_element("id", "token")
    for t in (5, 4):
        growth = np.max(np.linalg.eigvals(dense[t, :, t]).real)
        told = browser.find_element("id", "verdict")
        assert float(told.get_attribute("data-residual")) == pytest.approx(left[t], abs=1e-6)
        assert float(told.get_attribute("data-growth")) == pytest.approx(growth, abs=1e-6)
        for head in (0, 1):
            page("explorer.page.set({head: arguments[0]})", head)
            row = json.loads(browser.find_element("id", "attention").get_attribute("data-row"))
            mine = slice(4 * head, 4 * head + 4)
            scores = np.exp(np.asarray(q[t, mine] @ k[: t + 1, mine].T) / 2)
            np.testing.assert_allclose(row, scores / scores.sum(), atol=1e-6)
        token.send_keys(Keys.ARROW_LEFT)
    assert value(browser, "token") == 3
    browser.find_element("css selector", ".tokens button").click()
    browser.find_element("id", "time-step").send_keys(Keys.HOME)
    assert value(browser, "token") == value(browser, "time-step") == 0
    first = np.asarray(push(x))[0]
    want = np.linalg.norm(first) / max(np.linalg.norm(x[0]), 1)
    assert float(told.get_attribute("data-residual")) == pytest.approx(want, abs=1e-6)


def test_what_is_not_known_is_told_as_such(opened, browser):
    """NaN, which JSON does not have, neither counts as 0 nor is a small residual."""
    page = opened("unknown")
    said = []
    for i in (3, 12, 11):
        page(
            f"explorer.page.set({{position: explorer.page.grid.parameter.findIndex("
            f"(p) => Math.abs(p - {float(folded().parameters[i])}) < 1e-6)}})"
        )
        said.append(browser.find_element("id", "verdict").text)
    assert said[0].startswith("The flow may stay or leave (largest Re μ –)")
    assert (
        said[1].startswith("The flow may stay or leave") and "leaves (largest Re μ 0.99" in said[2]
    )
    assert page("explorer.page.kind(0)") == "stable"
    page = opened("left")
    told = browser.find_element("id", "verdict")
    assert "residual –" in told.text and told.get_attribute("data-growth") == "NaN"
    said = browser.find_element("css selector", "main").text
    assert "No finite residual: 6 of 6 tokens" in said and "no finite weights" in said
    ends = page(
        "[...document.querySelectorAll('#settling polyline')].map("
        "(line) => line.points[line.points.length - 1].y)"
    )
    assert len(ends) == 6 and max(ends) < 100  # lines end at the top, not at the bottom


@pytest.mark.parametrize("name", ["gain", "neuron", "folded", "block"])
def test_a_page_is_small_alone_and_legible_on_a_telephone_in_dark_and_light(
    opened, browser, pages, name
):
    text = (pages / f"{name}.html").read_text("utf-8")
    assert len(text) < 500_000 and not re.findall(r'(?:src|href)="(?!data:)|@import|url\(', text)
    page = opened(name)
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    papers = set()
    for scheme in ("dark", "light"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        papers.add(page("getComputedStyle(document.body).backgroundColor"))
    wide = page("document.documentElement.scrollWidth")
    sizes = page(
        "[...document.querySelectorAll('svg text')].map(text =>"
        " text.ownerSVGElement.getScreenCTM().d * parseFloat(getComputedStyle(text).fontSize))"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert len(papers) == 2 and wide <= 400 and min(sizes) > 10


def gain(path, **settings):
    given = {"where": lambda f: f.gain, "bounds": (0, 1), "start": jnp.zeros(2)} | settings
    return plots.explorer(fields.GainNetwork(), path, **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: plots.explorer(3, path), "`what` must be a `Branch`"),
        (
            lambda path: plots.explorer(folded(), path, field=Folded(jnp.asarray(0.0))),
            "`field` and `where` go together",
        ),
        (lambda path: plots.explorer(folded(), path, span=3.0), "need the `field`"),
        (
            lambda path: plots.explorer(folded(), path, bounds=(0, 1)),
            "`bounds` is no setting of the page of a branch",
        ),
        (lambda path: plots.explorer(folded(), path, names=["z"]), "`names` must be 2"),
        (
            lambda path: plots.explorer(folded(), path, coordinates=[2]),
            "`coordinates` must be at most 1",
        ),
        (lambda path: plots.explorer(folded(), path, step=-1.0), "`step` must be above 0"),
        (
            lambda path: plots.explorer(tiny_block()[0], path),
            "`x` must be the input of a causal field",
        ),
        (
            lambda path: plots.explorer(tiny_block()[0], path, tiny_block()[1], names=["a"]),
            "`names` must be 6",
        ),
        (
            lambda path: plots.explorer(tiny_block()[0], path, tiny_block()[1], span=1.0),
            "`span` is no setting",
        ),
        (
            lambda path: plots.explorer(fields.HodgkinHuxley(), path),
            "`where`, `bounds` and `start` are needed",
        ),
        (
            lambda path: plots.explorer(
                Folded(jnp.asarray(0.0)),
                path,
                where=lambda f: f.p,
                bounds=(0, 1),
                start=jnp.zeros(2),
            ),
            "`what` must be a field that is integrated in the page",
        ),
        (lambda path: gain(path, where=lambda f: f.weight), "`where` must pick one number"),
        (
            lambda path: gain(path, start=jnp.ones(2, complex)),
            "`start` must be a state of finite real",
        ),
        (lambda path: gain(path, start=jnp.full(2, jnp.nan)), "`start` must be a state of finite"),
        (
            lambda path: plots.explorer(tiny_block()[0], path, tiny_block()[1] * jnp.nan),
            "`x` must hold finite numbers",
        ),
        (
            lambda path: plots.explorer(
                eqx.tree_at(lambda b: b.parameters, folded(), folded().parameters + 1),
                path,
                field=Folded(jnp.asarray(0.0)),
                where=lambda f: f.p,
            ),
            "it is another field",
        ),
    ],
)
def test_misuse_is_refused_and_leaves_no_file(call, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
