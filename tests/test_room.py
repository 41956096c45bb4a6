"""What a run says before its first step, and of a step that fails."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.language import CharTokenizer
from eqjax.recipes import GPT2Settings
from eqjax.training import Checkpoints, Run, StepMemory
from eqjax.training._folder import blamed_on


@pytest.mark.parametrize(
    ("there", "told"),
    [(1300, None), (None, None), (700, "`batch` 6, or `accumulate` 2"), (150, "Not one sample")],
)
def test_a_step_that_does_not_fit_is_refused_with_what_would(there, told):
    memory = StepMemory(kept=100, passing=1200, there=there)
    if told is None:
        memory.check(12, 1, 2)
        return
    with pytest.raises(ValueError, match=told):
        memory.check(12, 1, 2)


def test_a_step_that_fails_is_told_with_its_batch(tmp_path):
    letters = CharTokenizer("ab")
    with (
        pytest.raises(ZeroDivisionError) as caught,
        blamed_on(tmp_path, 7, {"windows": 3}, np.array([[0, 1], [1, 1]]), letters),
    ):
        _ = 1 / 0
    told = json.loads((tmp_path / "crash.json").read_text("utf-8"))
    assert told["step"] == 7 and told["data"] == {"windows": 3} and told["batch"] == ["ab", "bb"]
    assert "step 7" in caught.value.__notes__[0] and "division" in told["error"]


def test_a_run_says_what_memory_it_needs_and_does_not_begin_where_there_is_none(
    tmp_path, monkeypatch
):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 9)
    sizes = {"layers": 1, "heads": 1, "width": 8, "length": 8, "batch": 4, "steps": 1}
    run = Run.start(GPT2Settings(text=text, out=tmp_path / "run", **sizes))
    monkeypatch.setattr("eqjax.training._room._there", lambda device: 10_000)
    said = []
    with pytest.raises(ValueError, match=r"`batch` 4 needs .* on each device"):
        run.train(on_memory=said.append)
    assert said[0].kept > 0 and said[0].there == 10_000 and run.state.step == 0


def test_a_checkpoint_in_the_background_is_of_the_state_that_was_given(tmp_path):
    taken = jax.jit(lambda a: a + 1, donate_argnums=0)
    with Checkpoints(tmp_path, wait=False) as kept:
        a = jnp.arange(1000.0)
        kept.save(0, a, {})
        for _ in range(3):
            a = taken(a)
        assert jnp.array_equal(kept.restore(a), jnp.arange(1000.0))
