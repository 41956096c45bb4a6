"""What a page about a causal field has to know: how every token settles, whom it attends to, and how stable it is."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_array, refuse
from ..relaxation import check_field, residual_ratio
from ..stability import token_spectrum

_NUMBERS = 60_000  # of attention
_MODES = 24  # eigenvalues of a token, the rightmost
_WIDEST = 1024  # channels, beyond which blocks are not formed


def token_data(
    field: Any, x: Any, start: Any, *, names: Sequence[str] | None, step: float | None, steps: int
) -> dict[str, Any]:
    """Residuals of every token at every Euler step, attention at some of them, and the eigenvalues where they end."""
    check_array(np.floating, 2, "the input of a causal field, (T, C)", x=x)
    x = jnp.asarray(x)
    z = x if start is None else jnp.asarray(start)
    count, width = x.shape
    if not count:
        refuse("x", "have at least one token", x)
    if z.shape != x.shape:
        refuse("start", f"be a state of the shape {x.shape}", start)
    for name, array in (("x", x), ("start", z)):
        if not jnp.isfinite(array).all():
            refuse(name, "hold finite numbers", array)
    if width > _WIDEST:
        refuse("x", f"have at most {_WIDEST} channels, for the block of every token is formed", x)
    if names is None:
        names = [str(index) for index in range(count)]
    if len(names) != count:
        refuse("names", f"be {count}, one for each token", names)
    check_field(field, z, x)
    step = 0.1 if step is None else step
    states, residuals = _settling(field, z, x, jnp.asarray(step, x.dtype), steps)
    found = token_spectrum(field, states[-1], x)
    modes = np.asarray(found.values)[:, :_MODES]
    data = {
        "kind": "tokens",
        "names": list(names),
        "step": step,
        "residuals": np.asarray(residuals),
        "real": np.real(modes),
        "imag": np.imag(modes),
        "all": width <= _MODES,
        "frames": [],
        "attention": [],
    }
    if not hasattr(field, "attends"):
        return data
    # As many frames as a page can hold, more of them at the beginning, where more happens; always the last.
    heads = len(eqx.filter_eval_shape(field.attends, x))
    fit = int(np.clip(_NUMBERS / (heads * count * (count + 1) / 2), 1, 20))
    frames = np.unique(np.round(steps * np.linspace(0, 1, fit) ** 2).astype(int))
    frames = frames if fit > 1 else np.array([steps])
    weights = np.asarray(_attention(field, states[frames]))
    lower = [[[row[: t + 1] for t, row in enumerate(head)] for head in frame] for frame in weights]
    return data | {"frames": frames, "attention": lower}


@eqx.filter_jit
def _settling(field, z, x, step, steps):
    """States `(steps + 1, T, C)` of Euler's method, and what is left of the force at every token of each."""

    def go(z, _):
        force = field(0.0, z, x)
        return z + step * force, (z, jax.vmap(residual_ratio)(force, z))

    return jax.lax.scan(go, z, None, length=steps + 1)[1]


@eqx.filter_jit
def _attention(field, states):
    return jax.vmap(field.attends)(states)
