"""Backpropagation that runs the relaxation backwards instead of remembering it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import Array, PyTree, ScalarLike

from .._checks import check_number, given
from ..analytic import tree_held
from ..relaxation import RESULTS, Relaxation, residual_ratio

_DIGITS = 1e-4  # what rounding may become on the way back
_APART = 0.1  # of the state: how far the pair may be at the end


# Why a pair of states. An Euler step can be undone only by solving for where it came from; of a pair, each
# takes a step by the force at the other, which is at hand going back. λ < 1 ties the two together: with λ = 1
# nothing would; the price is that going back divides by λ (McCallum & Foster 2024).
class Reversible(eqx.Module):
    """An algebraically reversible pair of Euler steps (McCallum & Foster 2024), as the solver of `BPTT`:

    `y ← λ y + (1 - λ) w + ε F(w)`, `w ← w + ε F(y)`, from `y = w = z₀`; y is the answer.

    Each step can be undone, so backpropagation keeps one state whatever the horizon. What contracts going
    forward grows going back: rounding grows like `λ^-T`, and a mode of rate k is stable for `εk < 1 - λ`. So it is for
    short horizons or mild fields: with λ = .9, T = 100 loses five digits. Where the two states are further apart at the end
    than a tenth of their size, the pair has not followed the field: `nonlinear_divergence`, and `BPTT` leaves it out.

    **Arguments:** `coupling`: λ in (0, 1); by default `1 - 2εk`, at most .9, with k the fastest rate of the field at the start
    (10 products with its Jacobian), but never so small that going back leaves less than four digits.

    ```python
    estimator = ej.BPTT(steps=20, solver=ej.gradients.Reversible())
    estimate = estimator(model, ej.squared_error, batch)
    assert estimate.report.accepted.all()
    ```
    """

    coupling: float | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        between = lambda v: 0 < v < 1
        check_number("lie between 0 and 1", between, **given(coupling=self.coupling))

    def relax(self, field: Any, z0: PyTree[Array], x: PyTree, *, step: ScalarLike, steps: int):
        """`steps` steps of size `step`, with a reverse-mode derivative that reconstructs the states.

        **Raises:** `ValueError` if going back so many steps with that coupling leaves less than two digits.
        """
        real = jnp.finfo(jnp.result_type(*jax.tree.leaves(z0))).dtype
        force = eqx.filter_closure_convert(lambda z, x: field(0.0, z, x), z0, x)
        step = jnp.asarray(step, real)
        with jax.default_matmul_precision("highest"):
            least = _least_coupling(self.coupling, steps, real)
            if self.coupling is None:
                rate = _fastest(*tree_held((force, z0, x)))
                coupling = jnp.clip(1 - 2 * step * rate, least, max(least, 0.9))
            else:
                coupling = jnp.asarray(self.coupling, real)
            value, other = _run((z0, force, x), step, steps, tree_held(coupling))
            residual = residual_ratio(force(value, x), value)
            # Both end where the field rests, or the pair does not follow it.
            apart = residual_ratio(*tree_held((jax.tree.map(jnp.subtract, value, other), value)))
        products = 0 if self.coupling is not None else 10
        calls = jnp.asarray(2 * steps + 1 + products)
        stats = {"field_evaluations": calls, "num_steps": jnp.asarray(steps)}
        result = RESULTS.where(apart <= _APART, RESULTS.successful, RESULTS.nonlinear_divergence)  # pyright: ignore
        result = RESULTS.where(jnp.isfinite(residual), result, RESULTS.nonfinite)  # pyright: ignore
        return Relaxation(value, jax.lax.stop_gradient(residual), result, stats)


def _least_coupling(coupling: float | None, steps: int, dtype: Any) -> float:
    """The least that keeps `_DIGITS` through so many steps; one that was given must keep a little."""
    rounding = float(jnp.finfo(dtype).eps)
    least = (rounding / _DIGITS) ** (1 / steps)
    lost = 0.0 if coupling is None else rounding * coupling**-steps
    if lost > 100 * _DIGITS:
        raise ValueError(
            f"`Reversible(coupling={coupling})` over {steps} steps in {jnp.dtype(dtype).name} leaves no digits on the way "
            f"back. Take a coupling of at least {least:.3g}, fewer steps, or another solver of `BPTT`."
        )
    return least


def _fastest(force: Any, z: PyTree[Array], x: PyTree) -> Array:
    """About the largest |μ| of the Jacobian at z, and rather more than less."""
    _, product = jax.linearize(lambda state: force(state, x), z)
    leaves, tree = jax.tree.flatten(z)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]

    def body(_, carry):
        v, _ = carry
        size = optx.two_norm(v)
        v = product(jax.tree.map(lambda a: a / jnp.where(size > 0, size, 1), v))
        return v, optx.two_norm(v)

    rate = jnp.zeros((), jnp.finfo(leaves[0].dtype).dtype)
    return jax.lax.fori_loop(0, 10, body, (jax.tree.unflatten(tree, drawn), rate))[1]


def _forward(vjp_arg, step, steps, coupling):
    z0, force, x = vjp_arg

    def advance(pair, _):
        y, w = pair
        mixed = jax.tree.map(lambda a, b: coupling * a + (1 - coupling) * b, y, w)
        y = optax.tree.add_scale(mixed, step, force(w, x))
        return (y, optax.tree.add_scale(w, step, force(y, x))), None

    return jax.lax.scan(advance, (z0, z0), length=steps)[0]


@eqx.filter_custom_vjp
def _run(vjp_arg, step, steps, coupling):
    return _forward(vjp_arg, step, steps, coupling)


@_run.def_fwd
def _(perturbed, vjp_arg, step, steps, coupling):
    y, w = _forward(vjp_arg, step, steps, coupling)
    # The end is all that is kept, whatever the horizon.
    return (y, w), (y, w)


@_run.def_bwd
def _(residuals, cotangent, perturbed, vjp_arg, step, steps, coupling):
    _, force, x = vjp_arg
    # The closure of the force holds parameters: they are where the gradient is collected.
    arrays, rest = eqx.partition((force, x), eqx.is_inexact_array)

    def forced(z, arrays):
        force, x = eqx.combine(arrays, rest)
        return force(z, x)

    def undo(carry, _):
        y, w, gy, gw, collected = carry
        # In the reverse order: w was made last, by the force at the y at hand. One VJP gives that force, to
        # undo the step, and the way back through it.
        value, back = jax.vjp(forced, y, arrays)
        w = optax.tree.add_scale(w, -step, value)
        along, through = back(gw)
        gy = optax.tree.add_scale(gy, step, along)
        collected = optax.tree.add_scale(collected, step, through)

        value, back = jax.vjp(forced, w, arrays)
        along, through = back(gy)
        gw = jax.tree.map(lambda g, h, a: g + (1 - coupling) * h + step * a, gw, gy, along)
        collected = optax.tree.add_scale(collected, step, through)
        # Solved for the old y; here rounding is divided by λ, step after step.
        y = jax.tree.map(
            lambda a, b, f: (a - (1 - coupling) * b - step * f) / coupling, y, w, value
        )
        return (y, w, jax.tree.map(lambda g: coupling * g, gy), gw, collected), None

    nothing = jax.tree.map(jnp.zeros_like, arrays)
    # None where nothing was read.
    read = lambda g, z: jnp.zeros_like(z) if g is None else g
    cotangent = jax.tree.map(read, cotangent, residuals, is_leaf=lambda leaf: leaf is None)
    start = (*residuals, *cotangent, nothing)
    (_, _, gy, gw, collected), _ = jax.lax.scan(undo, start, length=steps)
    # Both began at z₀.
    return (jax.tree.map(jnp.add, gy, gw), *collected)
