"""What `check_holomorphic` knows of a value and of an operation: does it order, jump, choose, move?"""

import re
from typing import Any, NamedTuple

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np

# They order numbers, or fold by an order: holomorphic in pieces, whatever their local derivative.
_ORDERS = re.compile("max|min|sort|top_k|clamp|select_and|^rem$|^abs$")
_JUMPS = {"sign", "floor", "ceil", "round"}
# Constant but on a thin set; or, like pivots, undone by the factors that come with them.
_THIN = {"eq", "ne", "is_finite", "lu"}
_JAXPRS = (jex.core.Jaxpr, jex.core.ClosedJaxpr)


class _Value(NamedTuple):
    """A value, how it depends on the state, and its tangents along v and along iv; None where it does not move.

    `kind`: None if not at all, "" if it moves with the state; else it only jumps, and this operation made it so.
    """

    value: Any
    kind: str | None = None
    along: Any = None
    across: Any = None
    blame: str | None = None


def _named(atom) -> bool:
    return not isinstance(atom, jex.core.Literal)


def _inexact(a) -> bool:
    return jnp.issubdtype(a.dtype, jnp.inexact)


def _countable(a) -> bool:
    return jnp.issubdtype(a.dtype, jnp.integer) or a.dtype == bool


def _size(a) -> float:
    a = np.asarray(a) if _inexact(a) else np.zeros(0)
    return float(np.max(np.abs(a), initial=0))


def _scale(arrays) -> float:
    """The largest finite magnitude: a masked entry is -inf."""
    return max((_size(np.where(np.isfinite(a), a, 0)) for a in arrays if _inexact(a)), default=0.0)


def _joined(kinds) -> str | None:
    """How something depends on the state that is made of these."""
    return min((kind for kind in kinds if kind is not None), default=None)


def _kind(name: str, kind: str | None, out) -> str | None:
    if kind == "" and not _inexact(out):
        return None if name in _THIN else name
    return name if kind == "" and name in _JUMPS else kind


def _decided(value: _Value, by: str | None) -> _Value:
    """A value for which `by` decided how it was made."""
    jumps = by and (value.kind is None or not _inexact(value.value))
    return value._replace(kind=by) if jumps else value


def _called(equation):
    """The program of an operation that does nothing but run it: of a call, whatever its name."""
    inner = [p for p in equation.params.values() if isinstance(p, _JAXPRS)]
    if len(inner) != 1:
        return None
    program: Any = getattr(inner[0], "jaxpr", inner[0])
    ours, theirs = (
        [(v.aval.shape, v.aval.dtype) for v in (*e.invars, *e.outvars)] for e in (equation, program)
    )
    return inner[0] if ours == theirs else None


def _chooses(equation, inside: bool = False) -> bool:
    """Whether an operation orders or jumps, by itself or in a program that it carries and that is not followed."""
    name = equation.primitive.name
    # A linear solve returns the solution, in whatever order it was found.
    if name in _THIN or name == "custom_linear_solve":
        return False
    compares = any(_inexact(v.aval) for v in equation.invars) and not all(
        _inexact(v.aval) for v in equation.outvars
    )
    if _ORDERS.search(name) or name in _JUMPS or (inside and compares):
        return True
    carried = (p for p in jax.tree.leaves(equation.params) if isinstance(p, _JAXPRS))
    return any(_chooses(e, True) for p in carried for e in getattr(p, "jaxpr", p).eqns)


def _host(a):
    return a if jnp.issubdtype(a.dtype, jax.dtypes.extended) else np.asarray(a)


def _row(v: _Value, i: int) -> _Value:
    along, across = (None if t is None else _host(t)[i] for t in (v.along, v.across))
    return v._replace(value=_host(v.value)[i], along=along, across=across)


def _stacked(rows: tuple[_Value, ...]) -> _Value:
    def pile(arrays):
        arrays = [_host(a) for a in arrays]
        return np.stack(arrays) if isinstance(arrays[0], np.ndarray) else jnp.stack(arrays)

    moves = any(row.along is not None for row in rows)
    zero = np.zeros_like(_host(rows[0].value)) if moves else None
    along, across = (
        pile([zero if t is None else t for t in tangents]) if moves else None
        for tangents in ([row.along for row in rows], [row.across for row in rows])
    )
    blame = next((row.blame for row in rows if row.blame), None)
    return _Value(
        pile([r.value for r in rows]), _joined(r.kind for r in rows), along, across, blame
    )


def _alone(jaxpr, equation):
    """One equation of a program, as a function of all its operands, literals included."""
    names = dict.fromkeys(filter(_named, equation.invars))
    short = jaxpr.replace(
        constvars=[],
        invars=list(names),
        outvars=equation.outvars,
        eqns=[equation],
        effects=equation.effects,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    run = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(short, []))

    def call(*values):
        # An operand that occurs twice is one argument; literals are part of the equation.
        given = {a: v for a, v in zip(equation.invars, values, strict=True) if _named(a)}
        return run(*(given[name] for name in names))

    return call
