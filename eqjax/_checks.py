"""Whether arguments are what they should be: one place for it, below every floor, and one style of message.

A `ValueError` names the `argument`, says what is allowed, what was given, and where there is one the cure. Numbers may be
arrays, so that a study does not compile anew, and then they may be traced: of these only the dtype is known.
"""

import inspect
import math
import numbers
import os
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# What a wrong argument makes the code of JAX, or a user's, raise.
FAILURES = (TypeError, ValueError, AttributeError, IndexError, KeyError)


def refuse(name: str, allowed: str, value: Any, cure: str = "") -> NoReturn:
    """The one form of a message."""
    raise ValueError(f"`{name}` must {allowed}, got {shown(value)}.{' ' * bool(cure)}{cure}")


def shown(value: Any) -> str:
    """A value in a few words: arrays by dtype and shape, and nothing longer than a line."""
    text = " ".join(eqx.tree_pformat(value).split())
    return text if len(text) <= 120 else text[:117] + "..."


def is_clear(error: BaseException) -> bool:
    """Whether an error is one of ours, which name an `argument`."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = frame.f_code.co_filename.startswith(os.path.dirname(__file__))
    return ours and isinstance(error, ValueError) and "`" in str(error)


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None: what may be left out is not looked at."""
    return {name: value for name, value in values.items() if value is not None}


def check_count(least: int = 1, most: int | None = None, /, **counts: Any) -> None:
    """Whole numbers of at least `least`, and at most `most`."""
    for name, value in counts.items():
        if _is_array(value, np.integer):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            refuse(name, "be a whole number", value)
        if value < least:
            refuse(name, f"be at least {least}", value)
        if most is not None and value > most:
            refuse(name, f"be at most {most}", value)


def check_seed(**seeds: Any) -> None:
    """Whole numbers from 0, of 32 bits: of larger ones JAX drops the rest, without x64, so that two seeds are one."""
    check_count(0, 2**32 - 2, **seeds)  # and one more is used, too


def check_number(allowed: str, fits: Callable[[Any], bool], /, **values: Any) -> None:
    """Numbers for which `fits`."""
    for name, value in values.items():
        is_array = _is_array(value, np.number)
        is_number = isinstance(value, (int, float, np.integer, np.floating))
        if isinstance(value, bool) or not (is_array or is_number):
            refuse(name, "be a number", value)
        # NumPy, because under `jit` JAX would trace even what it does with constants.
        known = [] if isinstance(value, Tracer) else np.ravel(value).tolist()
        if wrong := [v for v in known if not fits(v)]:
            refuse(name, allowed, wrong[0])


def check_positive(**values: Any) -> None:
    """Numbers above 0, and finite."""
    check_number("be above 0", lambda v: v > 0, **values)
    check_finite_number(**values)


def check_not_negative(**values: Any) -> None:
    """Numbers of at least 0, and finite."""
    check_number("be at least 0", lambda v: v >= 0, **values)
    check_finite_number(**values)


def check_finite_number(**values: Any) -> None:
    """Numbers that are finite."""
    check_number("be finite", math.isfinite, **values)


def check_between(low: Any, high: Any, /, **values: Any) -> None:
    """Numbers from `low` to `high`, ends included."""
    check_number(f"lie between {low} and {high}", lambda v: low <= v <= high, **values)


def check_tolerance(rtol: Any, atol: Any, *, both_zero: bool = False) -> None:
    """Tolerances that a solve can meet."""
    check_not_negative(rtol=rtol, atol=atol)
    if not both_zero and all(not isinstance(tol, Tracer) and tol == 0 for tol in (rtol, atol)):
        raise ValueError(
            "`rtol` and `atol` are both 0, a tolerance that rounding never meets. "
            "Pass, for example, rtol=1e-4."
        )


def check_kind(kinds: Any, allowed: str, /, **values: Any) -> None:
    """Instances of `kinds`, which `allowed` says in words."""
    for name, value in values.items():
        if not isinstance(value, kinds):
            is_class = isinstance(value, type)
            cure = f"That is a class: call it, `{value.__name__}(...)`." if is_class else ""
            refuse(name, f"be {allowed}", value, cure)


def check_flags(**flags: Any) -> None:
    """True or False: any other value would count as one of them."""
    check_kind((bool, np.bool_), "True or False", **flags)


def check_callable(like: str, /, **functions: Any) -> None:
    """What can be called, in the form that `like` says."""
    for name, value in functions.items():
        if not callable(value):
            refuse(name, f"be a function {like}", value)


def check_settings(function: Callable, settings: dict[str, Any]) -> None:
    """Names of keyword arguments that `function` has."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in settings:
        if name not in names:
            raise ValueError(f"`{name}` is no setting here. There are {', '.join(names)}.")


def check_key(**keys: Any) -> None:
    """One random key, of either kind that JAX has."""
    for name, key in keys.items():
        typed = _is_array(key, jax.dtypes.prng_key) and key.shape == ()
        raw = _is_array(key, np.uint32) and key.ndim == 1
        if not (typed or raw):
            refuse(name, "be one random key", key, f"Pass `{name}=jax.random.key(0)`, say.")


def check_precision(**precisions: Any) -> None:
    """Precisions of `jax.default_matmul_precision`, or None."""
    for name, value in precisions.items():
        try:
            with jax.default_matmul_precision(value):
                pass
        except ValueError:
            refuse(name, "be 'default', 'high', 'highest', 'bfloat16' or the like, or None", value)


def check_arrays(**trees: Any) -> None:
    """Numbers and arrays of numbers, at least one."""
    for name, tree in trees.items():
        leaves = jax.tree.leaves(tree)
        if not leaves or not all(_is_array(a, np.number) or _is_scalar(a) for a in leaves):
            refuse(name, "hold arrays of numbers", tree)


def tried(what: str, function: Callable, /, **arguments: Any) -> Any:
    """The shapes of `function(*arguments)`; where that fails, `ValueError` with what was given, and why."""
    try:
        return eqx.filter_eval_shape(function, *arguments.values())
    except FAILURES as error:
        if is_clear(error):
            raise
        told = "; ".join(f"{name}: {shown(value)}" for name, value in arguments.items())
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"`{what}` fails here ({told}): {why}") from error


def check_array(kind: Any, axes: int, what: str, /, **arrays: Any) -> None:
    """Arrays of a dtype of `kind`, with so many axes; `what` says it in words."""
    for name, value in arrays.items():
        if not (_is_array(value, kind) and value.ndim == axes):
            refuse(name, f"be {what}", value)


def check_tokens(**tokens: Any) -> None:
    """Token ids in a row."""
    what = "token ids in a row, an array of whole numbers with one axis"
    check_array(np.integer, 1, what, **tokens)


def check_memory(what: str, size: float) -> None:
    """Refuse what cannot fit into the memory of this machine, before it is made; `size` in bytes."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > there:
        raise ValueError(
            f"{what} would take {size / 2**30:,.0f} GiB, and this machine has {there / 2**30:,.0f} GiB. Make it smaller."
        )


def _is_array(value: Any, kind: Any) -> bool:
    is_array = isinstance(value, (jax.Array, np.ndarray))
    return is_array and jnp.issubdtype(value.dtype, kind)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, numbers.Number) and not isinstance(value, bool)
