"""Harsh defaults: float64, no silent promotion or broadcasting, every annotation checked, warnings are errors."""

import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: this takes a third off. It holds for programs and notebooks that they start, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# One kernel for each fusion by the older emitters, all in one module of LLVM: compiling costs a quarter. A flag that XLA does
# not know ends the process, and later ones have no older emitters.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")]).rstrip()
# Small programs are met again and again: by other files of tests, by notebooks, by commands.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", ".jax_cache")
)

from jaxtyping import install_import_hook

install_import_hook("eqjax", "beartype.beartype")

import equinox as eqx
import hypothesis
import jax.numpy as jnp
import pytest

hypothesis.settings.register_profile("eqjax", deadline=None, max_examples=15, derandomize=True)
hypothesis.settings.load_profile("eqjax")


def pytest_collection_finish():
    """What was imported stays, and tracing makes few cycles: looking for garbage took a tenth of it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True)
def x64():
    """Every test starts in float64, whatever a command-line test before it chose."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True, scope="module")
def forget():
    """Compiled programs are kept for as long as a file of tests runs: thousands of them exhaust a process."""
    yield
    eqx.clear_caches()
    jax.clear_caches()


@pytest.fixture
def language_batch():
    """A small language model and a batch, in float64."""
    from eqjax.language import equilibrium_lm

    model = equilibrium_lm(11, 8, 12, 3, qknorm=True, key=jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(2), (4, 9), 0, 11)
    return model, (tokens[:, :-1], tokens[:, 1:])


@pytest.fixture
def network(key):
    """A recurrent field that settles, its input, and a start."""
    from eqjax.fields import RecurrentField

    field = RecurrentField(12, strength=2.0, asymmetry=0.7, key=key)
    return field, jnp.cos(jnp.arange(12.0)), jnp.sin(jnp.arange(12.0))


@pytest.fixture(scope="module")
def settled_block():
    """A block of attention and MLP, its fixed point, and its input."""
    from spectra import settle

    from eqjax.fields import ThickBlock

    block = ThickBlock(8, 2, key=jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (5, 8))
    return block, settle(block, x, x), x


@pytest.fixture(scope="module")
def brian2():
    """Voltages and spikes that Brian2 computed, as experiments/brian2_traces.py stored them."""
    here = Path(__file__).parent
    stored = json.loads((here / "data" / "brian2.json").read_text("utf-8"))
    text = json.dumps(stored["data"], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == stored["about"]["sha256"]
    assert (here.parent / stored["about"]["script"]).exists() and stored["about"]["brian2"]
    return stored["data"]


@pytest.fixture(scope="session")
def experiment():
    """Loads a script of experiments/ by its name."""

    def loaded(name):
        path = Path(__file__).parents[1] / "experiments" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return loaded


@pytest.fixture
def assert_close():
    def check(ours, theirs, *, rtol=1e-9, atol=1e-12):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert jnp.allclose(a, b, rtol=rtol, atol=atol), (
                f"largest difference {jnp.max(jnp.abs(a - b))}"
            )

    return check
