"""Files of results: what was saved is loaded to the last bit, and nothing else is."""

from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cycles import ring_branch

from eqjax import fields
from eqjax.stability import (
    Spectrum,
    continuation,
    hopf_normal_form,
    load,
    save,
    spectrum,
)


def alike(one, other):
    """Bit for bit, in type and value."""
    if type(one) is not type(other):
        return False
    one, other = np.asarray(one), np.asarray(other)
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


same = partial(chex.assert_trees_all_equal_comparator, alike, lambda a, b: f"{a!r} is not {b!r}")


def rotating(t, z, x):
    turn = jnp.asarray(-0.1 + 1j).astype(z["a"].dtype)
    return {"a": turn * z["a"], "b": (-z["b"][0],)}


@pytest.fixture(scope="module")
def results():
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
        "cycles": ring_branch(),
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
