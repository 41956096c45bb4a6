"""Is a function holomorphic in its first argument, and if not, which operation is to blame?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

# They order complex numbers, or choose by an order: piecewise, whatever their local derivative.
_ORDERED = {"max", "min", "clamp", "sort", "reduce_max", "reduce_min", "cummax", "cummin", "top_k"}
_COMPARED = {"lt", "le", "gt", "ge", "argmax", "argmin", "sign", "floor", "ceil", "round"}
_NESTED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat"}


class _Node(NamedTuple):
    """One result in the traced function: the operation, what it was made from, and whether it can move."""

    operation: str
    parents: list["_Node"]
    measured: int | None = None  # where its tangents' size and defect are found


class _Value(NamedTuple):
    """A value with its tangents along v and along iv; None where it does not move."""

    value: Any
    node: _Node
    along: Any = None
    across: Any = None


# Why operation by operation, and not the Cauchy–Riemann equations of the result alone. Those hold almost
# everywhere for a maximum that compares real parts, which is holomorphic in pieces; and they do not name the
# culprit. Why not a list of forbidden operations alone: a real part may be undone, and a stabilising shift
# cancels. Why at all: a contrast of nudges in the complex plane is a Cauchy average, and of a function that
# is not holomorphic it is a plausible, wrong gradient.
def check_holomorphic(function: Callable, z: PyTree, *args: PyTree, name: str) -> None:
    """Refuse a function of `z` that is not holomorphic, by the Cauchy–Riemann equations at a random point.

    Every operation of the traced function is followed with tangents along v and iv: where the second is not i
    times the first the value is not holomorphic, and the first such operation that the result depends on is
    the offender. A real part that is put together again, or a shift under `stop_gradient` that cancels, does
    no harm.

    **Arguments:** `z`, `args`: arrays or their shapes (`jax.ShapeDtypeStruct`); values are drawn at random. `name`:
    what the function is called in the message.

    **Raises:** `ValueError` that names the operation.
    """
    like = jax.eval_shape(lambda a: a, z)
    point = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, np.result_type(a.dtype, np.complex64)), like
    )
    try:
        with jax.numpy_dtype_promotion("standard"):
            closed = jax.make_jaxpr(function)(point, *args)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"The {name} cannot be evaluated on complex states: {error}. Write it with the functions of "
            "`eqjax.analytic`, or use a real estimator such as AsymEP."
        ) from error
    draw = _Draw()
    moving = len(jax.tree.leaves(point))
    inputs = [draw(aval) for aval in closed.in_avals]
    tangents = [draw(aval) for aval in closed.in_avals[:moving]]
    consts = [draw.realised(const) for const in closed.consts]
    nodes: list[_Node] = []

    def follow(inputs, tangents, consts):
        measures: list = []
        still = lambda v: _Value(v, _Node("argument", []))
        moved = [
            _Value(v, _Node("state", []), t, 1j * t) for v, t in zip(inputs, tangents, strict=False)
        ]
        outputs = _follow(
            closed.jaxpr, [*map(still, consts)], [*moved, *map(still, inputs[moving:])], measures
        )
        nodes.extend(out.node for out in outputs)
        # `stop_gradient` leaves zero tangents, and zero is holomorphic: only the values betray it.
        gap = _gap(closed.jaxpr, consts, inputs, tangents, [out.along for out in outputs])
        return jnp.stack(measures) if measures else jnp.zeros((0, 2)), gap

    with jax.numpy_dtype_promotion("standard"):
        # It runs once: there is nothing to be optimised.
        program = jax.jit(follow).lower(inputs, tangents, consts)
        program: Any = program.compile({"xla_backend_optimization_level": 0})  # pyright: ignore[reportArgumentType]
        measures, gap = map(np.asarray, program(inputs, tangents, consts))
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in tangents)
    verdicts: dict[int, tuple[str | None, bool]] = {}
    found = (_judge(node, measures, 1e3 * eps, verdicts)[0] for node in nodes)
    blame = next((name for name in found if name), None)
    # Central differences with h = eps^⅓ err by eps^⅔; the factor is for third derivatives. NaN fails.
    if blame is None and not gap <= 300 * eps ** (2 / 3):
        blame = "stop_gradient"
    if blame is not None:
        raise ValueError(
            f"The {name} is not holomorphic, because of the operation `{blame}`: a complex nudge would give a wrong "
            "gradient. Write it with the functions of `eqjax.analytic`, or use a real estimator such as AsymEP."
        )


class _Draw:
    """Random numbers in place of arrays that have no value yet."""

    def __init__(self):
        # A fixed seed: the verdict on a model must not change from run to run.
        self.rng = np.random.default_rng(0)

    def __call__(self, aval):
        if not jnp.issubdtype(aval.dtype, jnp.inexact):
            return np.zeros(aval.shape, aval.dtype)
        value = self.rng.normal(size=aval.shape)
        if jnp.issubdtype(aval.dtype, jnp.complexfloating):
            # Off the real axis, lest the point lie on a cut; but near it, where nudged states live.
            value = value + 0.3j * self.rng.normal(size=aval.shape)
        return np.asarray(value, aval.dtype)

    def realised(self, const):
        if not isinstance(const, Tracer):
            return const
        aval = jax.typeof(const)
        if not jnp.issubdtype(aval.dtype, jnp.inexact):
            return self(aval)
        # Between 0 and 1, where ratios, rates and variances are all at home.
        return np.asarray(self.rng.uniform(0.1, 0.9, aval.shape), aval.dtype)


def _follow(jaxpr, consts: list[_Value], inputs: list[_Value], measures: list) -> list[_Value]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom):
        if isinstance(atom, jex.core.Literal):
            return _Value(atom.val, _Node("literal", []))
        return known[atom]

    for equation in jaxpr.eqns:
        outs = _apply(jaxpr, equation, [read(atom) for atom in equation.invars], measures)
        known.update(zip(equation.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(jaxpr, equation, inputs: list[_Value], measures: list) -> list[_Value]:
    operation = equation.primitive.name
    if operation in _CALLS:
        # What is called is followed, so that the operation at fault is named and not the call; a `custom_jvp`
        # by what it computes, not by its rule. Loops and branches are judged as a whole, by their derivative.
        inner = next(equation.params[key] for key in _NESTED if key in equation.params)
        consts = [_Value(c, _Node("literal", [])) for c in getattr(inner, "consts", ())]
        return _follow(getattr(inner, "jaxpr", inner), consts, inputs, measures)
    run = _alone(jaxpr, equation)
    moved = [i for i, v in enumerate(inputs) if v.along is not None]
    parents = [v.node for v in inputs]

    def call(*moving):
        values = [v.value for v in inputs]
        for i, value in zip(moved, moving, strict=True):
            values[i] = value
        return run(*values)

    if not moved:
        return [_Value(out, _Node(operation, parents)) for out in call()]
    here = tuple(inputs[i].value for i in moved)
    # One operation at a time, with the tangents that reach it: where the defect begins is where it is made.
    outs, push = jax.linearize(call, *here)
    along = push(*(inputs[i].along for i in moved))
    across = push(*(inputs[i].across for i in moved))
    results = []
    for out, t, s in zip(outs, along, across, strict=True):
        if not jnp.issubdtype(out.dtype, jnp.inexact):
            results.append(_Value(out, _Node(operation, parents)))
            continue
        # For a holomorphic value the tangent along iv is i times that along v.
        size, defect = (jnp.max(jnp.abs(a), initial=0) for a in (jnp.stack([t, s]), s - 1j * t))
        measures.append(jnp.stack([size, defect]))
        results.append(_Value(out, _Node(operation, parents, len(measures) - 1), t, s))
    return results


def _judge(node: _Node, measures, tolerance: float, verdicts: dict) -> tuple[str | None, bool]:
    """The operation to blame if this value is not holomorphic, and whether it is a choice by an order."""

    def moves(node):
        return node.operation == "state" or (
            node.measured is not None and measures[node.measured][0] > 0
        )

    # By identity: else a value that is used twice would be judged twice, and so all before it.
    if id(node) not in verdicts:
        parents = [_judge(parent, measures, tolerance, verdicts) for parent in node.parents]
        choice = any(chosen for _, chosen in parents)
        blamed = next((name for name, _ in parents if name), None)
        if node.measured is None:  # it does not move: an integer, a boolean, or made of constants
            # A comparison of moving values is harmless by itself: it matters if something is selected by it.
            compared = node.operation in _COMPARED and any(map(moves, node.parents))
            verdicts[id(node)] = None, choice or compared
        else:
            size, defect = measures[node.measured]
            # Holomorphic on either side of the choice, so the defect is 0: these are told by name.
            ordered = node.operation in _ORDERED or (node.operation == "select_n" and choice)
            # What was chosen by an order stays so, whatever is done with it.
            stained = blamed in _ORDERED | {"select_n"}
            if size == 0:
                verdicts[id(node)] = None, choice
            # A defect that later cancels is none: the value at hand decides, ancestors lend the name.
            elif defect > tolerance * size or ordered or stained:
                verdicts[id(node)] = blamed or node.operation, False
            else:
                verdicts[id(node)] = None, False
    return verdicts[id(node)]


def _alone(jaxpr, equation):
    """One equation of a program, as a function of all its operands, literals included."""
    names = dict.fromkeys(a for a in equation.invars if not isinstance(a, jex.core.Literal))
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
        pairs = zip(equation.invars, values, strict=True)
        given = {a: v for a, v in pairs if not isinstance(a, jex.core.Literal)}
        return run(*(given[name] for name in names))

    return call


def _gap(jaxpr, consts, inputs, tangents, along):
    """How far the tangents are from what the values do: far where `stop_gradient` hides a dependence."""
    run = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, consts))
    eps = max(float(jnp.finfo(t.dtype).eps) for t in tangents)
    h = eps ** (1 / 3)

    def at(step):
        moved = [v + step * t for v, t in zip(inputs, tangents, strict=False)]
        return run(*moved, *inputs[len(tangents) :])

    gaps = [jnp.zeros(())]
    for direction in (1, 1j):
        for up, down, tangent in zip(at(h * direction), at(-h * direction), along, strict=True):
            slope = (up - down) / (2 * h * direction)
            tangent = jnp.zeros_like(slope) if tangent is None else tangent
            size = 1 + jnp.max(jnp.abs(tangent), initial=0) + jnp.max(jnp.abs(slope), initial=0)
            gaps.append(jnp.max(jnp.abs(slope - tangent), initial=0) / size)
    return jnp.max(jnp.stack([gap.astype(float) for gap in gaps]))
