"""Backpropagation that runs the relaxation backwards instead of remembering it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, ScalarLike

from .._checks import check_number
from ..relaxation import RESULTS, Relaxation, residual_ratio


# Why a pair of states. An Euler step can be undone only by solving for where it came from; of a pair, each
# takes a step by the force at the other, which is at hand going back. λ < 1 ties the two together: with λ = 1
# nothing would; the price is that going back divides by λ (McCallum & Foster 2024).
class Reversible(eqx.Module):
    """An algebraically reversible pair of Euler steps (McCallum & Foster 2024), as the solver of `BPTT`:

    `y ← λ y + (1 - λ) w + ε F(w)`, `w ← w + ε F(y)`, from `y = w = z₀`; y is the answer.

    Each step can be undone, so backpropagation keeps one state whatever the horizon. What contracts going
    forward grows going back: rounding grows like `λ^-T`, and a mode of rate k is stable for `εk < 1 - λ`. So it is for
    short horizons or mild fields: with λ = .9, T = 100 loses five digits.

    **Arguments:** `coupling`: λ in (0, 1).
    """

    coupling: float = eqx.field(default=0.9, static=True)

    def __check_init__(self):
        check_number("lie between 0 and 1", lambda v: 0 < v < 1, coupling=self.coupling)

    def relax(self, field: Any, z0: PyTree[Array], x: PyTree, *, step: ScalarLike, steps: int):
        """`steps` steps of size `step`, with a reverse-mode derivative that reconstructs the states."""
        real = jnp.finfo(jnp.result_type(*jax.tree.leaves(z0))).dtype
        force = eqx.filter_closure_convert(lambda z, x: field(0.0, z, x), z0, x)
        with jax.default_matmul_precision("highest"):
            value = _run((z0, force, x), jnp.asarray(step, real), steps, self.coupling)
            residual = residual_ratio(force(value, x), value)
        stats = {"field_evaluations": jnp.asarray(2 * steps + 1), "num_steps": jnp.asarray(steps)}
        finite = jnp.isfinite(residual)
        result = RESULTS.where(finite, RESULTS.successful, RESULTS.nonfinite)  # pyright: ignore
        return Relaxation(value, jax.lax.stop_gradient(residual), result, stats)


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
    return _forward(vjp_arg, step, steps, coupling)[0]


@_run.def_fwd
def _(perturbed, vjp_arg, step, steps, coupling):
    y, w = _forward(vjp_arg, step, steps, coupling)
    # The end is all that is kept, whatever the horizon.
    return y, (y, w)


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
    # Only y was returned: the cotangent of w begins at 0.
    start = (*residuals, cotangent, jax.tree.map(jnp.zeros_like, cotangent), nothing)
    (_, _, gy, gw, collected), _ = jax.lax.scan(undo, start, length=steps)
    # Both began at z₀.
    return (jax.tree.map(jnp.add, gy, gw), *collected)
