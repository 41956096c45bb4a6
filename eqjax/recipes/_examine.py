"""Any run, from its folder; and a trained model under the eye of `eqjax.stability`: its fixed points, their spectra, and a branch
through a parameter."""

import operator
import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from .._checks import check_count
from ..analytic import tree_cast
from ..fields import AbstractEquilibriumModel
from ..language import tiles
from ..relaxation import Anderson, Equilibrium, Fallback, NewtonKrylov, equilibrium
from ..stability import Branch, Check, check, continuation
from ..training import AbstractRecipe, Run
from ._aeon import AeonSettings
from ._arll import ARLLSettings
from ._equilibrium import TrainConfig
from ._gpt2 import GPT2Settings

RECIPES: tuple[type[AbstractRecipe], ...] = (TrainConfig, GPT2Settings, AeonSettings, ARLLSettings)


def open_run(
    folder: str | os.PathLike, *recipes: type[AbstractRecipe], step: int | None = None
) -> Run:
    """Rebuild a run from its folder; see `eqjax.training.Run.open`.

    **Arguments:** `folder`; `recipes`: the kinds of run that will do, by default all; `step`: the checkpoint, by default the
    newest.

    ```python
    model = lambda folder: ej.recipes.open_run(folder, step=200).model
    ```
    """
    return Run.open(folder, recipes or RECIPES, step=step)


def windows(run: Run, count: int) -> Int[Array, "n t"]:
    """`count` windows spread evenly over the validation text.

    ```python
    assert ej.recipes.windows(run, 2).shape == (2, 4)
    ```
    """
    check_count(count=count)
    return jnp.asarray(tiles(run.validation_ids, length=run.recipe.length, count=count)[0])


def in_double(run: Run) -> AbstractEquilibriumModel:
    """The model in float64, which is switched on. Rounding then no longer hides how a fixed point is lost.

    ```python
    model = ej.recipes.in_double(run)
    assert model.field.leak.dtype == jnp.float64
    ```
    """
    jax.config.update("jax_enable_x64", True)
    return tree_cast(run.model, jnp.float64)


@eqx.filter_jit
def settle(model: AbstractEquilibriumModel, inputs: Int[Array, " t"]) -> tuple[PyTree, Equilibrium]:
    """The encoded input and the fixed point of one window, stable or not, as sharp as rounding allows: by Anderson's
    method, and by Newton's where that fails."""
    x = model.encode(inputs)
    z0 = model.initial(x)
    rtol = 30 * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(z0))).eps)
    solver = Fallback(Anderson(rtol=rtol), NewtonKrylov(rtol=rtol))  # pyright: ignore[reportCallIssue]
    return x, equilibrium(model.field, z0, x, solver=solver, throw=False)


def check_windows(
    model: AbstractEquilibriumModel,
    inputs: Int[Array, "n t"],
    *,
    step: float,
    k: int = 6,
    tol: float = 1e-4,
) -> Check:
    """`stability.check` at the fixed point of every window, with a leading batch axis."""
    return _check_windows(model, inputs, jnp.asarray(step), k, jnp.asarray(tol))


@eqx.filter_jit
def _check_windows(model, inputs, step, k, tol):
    def one(inputs):
        x, settled = settle(model, inputs)
        return check(model.field, settled, x, step=step, k=k, tol=tol)

    return eqx.filter_vmap(one)(inputs)


def scalar_parameter(field: Any, parameter: str) -> float:
    """The value of the parameter of a field that a dotted path names.

    ```python
    assert ej.recipes.scalar_parameter(field, "strength") == 0.5
    ```
    """
    try:
        value = operator.attrgetter(parameter)(field)
    except AttributeError:
        value = None
    if not (isinstance(value, jax.Array) and value.shape == () and eqx.is_inexact_array(value)):
        scalars = [
            jax.tree_util.keystr(where).lstrip(".")
            for where, leaf in jax.tree_util.tree_leaves_with_path(field)
            if eqx.is_inexact_array(leaf) and leaf.shape == ()
        ]
        told = "nothing" if value is None else repr(value)
        raise ValueError(
            f"`parameter` {parameter}: {told} there, where a single number is needed. The scalar parameters of this field are: "
            f"{', '.join(scalars)}."
        )
    return float(value)


def follow(
    model: AbstractEquilibriumModel,
    inputs: Int[Array, " t"],
    *,
    parameter: str,
    bounds: tuple[float, float],
    start: float | None = None,
    step: float,
    k: int = 6,
    **settings: Any,
) -> Branch:
    """The branch of one window's fixed point through the parameter that a dotted path names.

    **Arguments:** `bounds`: of the parameter; `start`: its value where the branch begins; if None, the lowest of five spread from
    the lower bound to the trained value (or the upper bound) where flow and Euler are stable. `step`: ε of the Euler
    relaxation; `k`, `settings`: as for `stability.continuation`.

    **Raises:** `ValueError` where there is no such parameter, or nothing settles at the start.

    ```python
    bounds = 0.0, 2.0
    follow = lambda model, window: ej.recipes.follow(
        model, window, parameter="attention_gain", bounds=bounds, step=0.1
    )
    ```
    """
    trained = scalar_parameter(model.field, parameter)
    where = operator.attrgetter(parameter)
    low, high = bounds
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"`bounds` must be two numbers, the lower one first, got {low} {high}.")
    if start is not None and not low <= start <= high:
        raise ValueError(f"`start` {start} lies outside of `bounds` {low} {high}.")

    def at(value):
        value = jnp.asarray(value, where(model.field).dtype)
        return eqx.tree_at(lambda m: where(m.field), model, value)

    if start is None:
        top = min(trained, high) if trained > low else high
        start = low
        for candidate in np.linspace(low, top, 5):
            found = check_windows(at(candidate), inputs[None], step=step, k=k)
            if found.holds[0] and found.holds_euler[0]:  # pyright: ignore[reportOptionalSubscript]
                start = float(candidate)
                break
    x, settled = settle(at(start), inputs)
    if not settled.residual <= 1e-3:
        raise ValueError(
            f"at {parameter} = {start:g} no fixed point was found (force residual {float(settled.residual):.1e}): begin the branch "
            "with `start` where the model settles, or take another `window`."
        )
    return continuation(
        at(start).field, settled.value, x, where=where, bounds=bounds, step=step, k=k, **settings
    )
