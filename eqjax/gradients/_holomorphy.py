"""Is a function holomorphic in its first argument, and if not, which operation is to blame?"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from ._holomorphy_rules import (
    _alone,
    _called,
    _chooses,
    _countable,
    _decided,
    _inexact,
    _joined,
    _kind,
    _named,
    _row,
    _scale,
    _size,
    _stacked,
    _Value,
)


# Why operation by operation, and not the Cauchy–Riemann equations of the result alone: those do not name the
# culprit. Why not a list of forbidden operations alone: a real part may be undone, and a stabilising shift
# cancels. Why choices apart: a maximum, a mask, a branch is holomorphic in pieces, and the equations hold
# almost everywhere. So each is made otherwise, and it matters if the result then changes. Why at all: a
# contrast of nudges in the complex plane is a Cauchy average, and of a function that is not holomorphic it
# is a plausible, wrong gradient.
def check_holomorphic(function: Callable, z: PyTree, *args: PyTree, name: str) -> None:
    """Refuse a function of `z` that is not holomorphic, by the Cauchy–Riemann equations at a random point.

    Every operation of the traced function is followed with tangents along v and iv, through calls, loops and
    branches: where the second is not i times the first the value is not holomorphic, and the first such operation
    that the result depends on is the offender. A real part that is put together again, or a shift under
    `stop_gradient` that cancels, does no harm. A choice that the state decides (a maximum, a comparison, rounding,
    a branch) does if the result changes when it is made otherwise.

    **Arguments:** `z`, `args`: arrays or their shapes (`jax.ShapeDtypeStruct`); values are drawn at random. `name`:
    what the function is called in the message.

    **Raises:** `ValueError` that names the operation.
    """
    like = jax.eval_shape(lambda a: a, z)
    point = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, np.result_type(a.dtype, np.complex64)), like
    )
    # Of the others, too, only what they look like counts, and not over which devices they vary.
    lookalike = (Tracer, jax.ShapeDtypeStruct)
    plain = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype) if isinstance(a, lookalike) else a
    args = jax.tree.map(plain, args)
    try:
        with jax.numpy_dtype_promotion("standard"):
            closed = jax.make_jaxpr(function)(point, *args)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"The {name} cannot be evaluated on complex states: {error}. Write it with the functions of "
            "`eqjax.analytic`, or use a real estimator such as AsymEP."
        ) from error
    draw = _Draw()
    inputs = [draw(aval) for aval in closed.in_avals]
    tangents = [draw(aval) for aval in closed.in_avals[: len(jax.tree.leaves(point))]]
    consts = [draw.realised(const) for const in closed.consts]
    # It may be called while something is traced; its own numbers are known.
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        blame = _blame(closed.jaxpr, consts, inputs, tangents)
    if blame is not None:
        raise ValueError(
            f"The {name} is not holomorphic, because of the operation {blame}: a complex nudge would give a wrong "
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


def _blame(jaxpr, consts, inputs, tangents) -> str | None:
    """The operation because of which the results are not holomorphic, if they are not."""
    eps = max(float(jnp.finfo(t.dtype).eps) for t in tangents)

    def follow(moved, tangents=itertools.repeat(None), seeds=None, trial=0):
        run = _Run(1e3 * eps, seeds or {}, trial)
        state = [
            _Value(v, "", t, None if t is None else 1j * t)
            for v, t in zip(moved, tangents, strict=False)
        ]
        still = [_Value(v) for v in inputs[len(moved) :]]
        return run.follow(jaxpr, [_Value(c) for c in consts], [*state, *still]), run

    moved = inputs[: len(tangents)]
    outs, run = follow(moved, tangents)
    for out in outs:
        if out.blame:
            return out.blame
    values = [np.asarray(out.value) for out in outs]

    def hides():
        # A zero tangent is holomorphic: that it hides a dependence only the values betray. Central differences
        # with h = eps^⅓ err by eps^⅔; the factor is for third derivatives.
        h = eps ** (1 / 3)
        for direction in (1, 1j):
            ends = [
                follow([v + s * h * direction * t for v, t in zip(moved, tangents, strict=True)])[0]
                for s in (1, -1)
            ]
            for out, up, down in zip(outs, *ends, strict=True):
                slope = (np.asarray(up.value) - np.asarray(down.value)) / (2 * h * direction)
                tangent = np.zeros_like(slope) if out.along is None else np.asarray(out.along)
                size = sum(_size(a) for a in (out.value, slope, tangent))
                # Negated, so that NaN fails.
                if not _size(slope - tangent) <= 300 * eps ** (2 / 3) * size:
                    return True
        return False

    if run.hidden and hides():
        return run.hidden[0]

    places = {place: seed for seed, place in enumerate(run.choices)}
    largest = _scale(values)

    def matters(chosen, trials):
        for trial in range(trials):
            others, _ = follow(moved, seeds={p: places[p] for p in chosen}, trial=trial)
            gaps = [_size(np.asarray(o.value) - v) for o, v in zip(others, values, strict=True)]
            if not all(gap <= 1e3 * eps * largest for gap in gaps):
                return True
        return False

    # Random numbers do not cancel: together, at the price of one. What is true or false may, and goes alone.
    numbers = [place for place in places if not place[-1]]
    if numbers and matters(numbers, 1):
        alone = (run.choices[place] for place in numbers if matters([place], 1))
        return next(alone, run.choices[numbers[0]])
    decided = (place for place in places if place[-1] and matters([place], 4))
    return next((run.choices[place] for place in decided), None)


# Why not one compiled program: its compilation takes longer than all there is to compute, and on long chains
# it grows faster than they. And with numbers at hand a loop is a loop, and a branch is taken.
class _Run:
    """An evaluation of a traced function, in which the choices at the places in `seeds` are made otherwise.

    Found on the way: `choices`, by their place, and `hidden`, operations whose derivative is zero though their value
    depends on the state.
    """

    def __init__(self, tolerance: float, seeds: dict[tuple, int], trial: int):
        self.tolerance, self.seeds, self.trial = tolerance, seeds, trial
        self.choices: dict[tuple, str] = {}
        self.hidden: list[str] = []
        self.place, self.within = (), ""

    def follow(self, jaxpr, consts: list[_Value], inputs: list[_Value]) -> list[_Value]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
        last = {atom: i for i, e in enumerate(jaxpr.eqns) for atom in e.invars if _named(atom)}
        last |= dict.fromkeys(filter(_named, jaxpr.outvars))

        def read(atom):
            return known[atom] if _named(atom) else _Value(np.asarray(atom.val, atom.aval.dtype))

        for i, equation in enumerate(jaxpr.eqns):
            outs = self.apply(jaxpr, equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, outs, strict=True))
            # A large model must not be kept with all that was computed on the way.
            for atom in filter(_named, equation.invars):
                if last[atom] == i:
                    known.pop(atom, None)
        return [read(atom) for atom in jaxpr.outvars]

    def enter(self, program, inputs: list[_Value]) -> list[_Value]:
        consts = [_Value(c) for c in getattr(program, "consts", ())]
        return self.follow(getattr(program, "jaxpr", program), consts, inputs)

    def apply(self, jaxpr, equation, inputs: list[_Value]) -> list[_Value]:
        outside = self.place, self.within
        self.place = (*self.place, id(equation))
        inner = _called(equation)
        match equation.primitive.name:
            case "scan":
                outs = self.scan(equation, inputs)
            case "while":
                outs = self.loop(equation, inputs)
            case "cond":
                outs = self.branch(equation, inputs)
            case _ if inner is not None:
                # Followed, so that the operation at fault is named and not the call; what has a derivative of its
                # own by what it computes, not by its rule.
                title = str(equation.params.get("name", ""))
                if title.isidentifier() and not title.startswith("_"):
                    self.within = title
                outs = self.enter(inner, inputs)
            case _:
                outs = self.operate(jaxpr, equation, inputs)
        self.place, self.within = outside
        return outs

    def operate(self, jaxpr, equation, inputs: list[_Value]) -> list[_Value]:
        name = equation.primitive.name
        kind = _joined(v.kind for v in inputs)
        numbers = any(_inexact(out.aval) for out in equation.outvars)
        values = [v.value for v in inputs]
        # Where something is made of it, not where it is decided: a comparison does no harm by itself.
        decided = [
            i for i, v in enumerate(inputs) if v.kind and _countable(equation.invars[i].aval)
        ]
        if decided and numbers and (rng := self.turned(name, inputs[decided[0]].kind)):
            for i in decided:
                values[i] = self.otherwise(values[i], rng)
        run = _alone(jaxpr, equation)
        moved = [i for i, v in enumerate(inputs) if v.along is not None]
        along = across = itertools.repeat(None)
        if moved:

            def call(*moving):
                return run(
                    *(dict(enumerate(values)) | dict(zip(moved, moving, strict=True))).values()
                )

            # One operation at a time, with the tangents that reach it: where the defect begins it is made.
            here = tuple(values[i] for i in moved)
            try:
                outs, along = jax.jvp(call, here, tuple(inputs[i].along for i in moved))
                _, across = jax.jvp(call, here, tuple(inputs[i].across for i in moved))
            except (TypeError, NotImplementedError):
                # Without a derivative for complex numbers, as a maximum is in some versions of JAX: at fault.
                outs = run(*values)
                along = across = [np.full(np.shape(out), np.nan) for out in outs]
        else:
            outs = run(*values)
        if kind is not None and numbers and _chooses(equation) and (rng := self.turned(name)):
            scale = 0.1 * (_scale((*values, *outs)) or 1.0)
            outs = [self.otherwise(a, rng, scale) if _inexact(a) else a for a in outs]
        blame = next((v.blame for v in inputs if v.blame), None)
        return [
            self.measured(_Value(out, _kind(name, kind, out), t, s, blame), name)
            for out, t, s in zip(outs, along, across, strict=False)
        ]

    def measured(self, value: _Value, name: str) -> _Value:
        """The value, blamed only if it is not holomorphic: a defect that later cancels is none."""
        if value.along is None or not _inexact(value.value):
            return value._replace(along=None, across=None, blame=None)
        along, across = np.asarray(value.along), np.asarray(value.across)
        size = np.maximum(_size(along), _size(across))
        if size == 0:
            if value.kind == "":
                self.hidden.append(self.label(name))
            return value._replace(along=None, across=None, blame=None)
        # For a holomorphic value the tangent along iv is i times that along v. Negated, so that NaN is blamed.
        sound = _size(across - 1j * along) <= self.tolerance * size
        # Ancestors lend the name.
        return value._replace(blame=None if sound else value.blame or self.label(name))

    def label(self, name: str, by: str | None = None) -> str:
        inside = f" in `{self.within}`" if self.within not in ("", name) else ""
        return f"`{name}`" + (f", decided by `{by}`" if by else "") + inside

    def turned(self, name: str, by: str | None = None) -> np.random.Generator | None:
        """Note a choice; random numbers if it is to be made otherwise here."""
        place = (*self.place, by is not None)
        self.choices[place] = self.label(name, by)
        return (
            np.random.default_rng((self.trial, self.seeds[place])) if place in self.seeds else None
        )

    def otherwise(self, value, rng, scale: float | None = None):
        value = np.asarray(value)
        if scale is not None:
            return value + (scale * rng.normal(size=value.shape)).astype(value.dtype)
        # All one way, all the other, then at random: a count may stay as it was.
        one = (1, -1)[self.trial] if self.trial < 2 else rng.choice((1, -1), size=value.shape)
        one = np.broadcast_to(one, value.shape)
        return value ^ (one > 0) if value.dtype == bool else value + one.astype(value.dtype)

    def scan(self, equation, inputs: list[_Value]) -> list[_Value]:
        body = equation.params["jaxpr"]
        # What is sliced, and what is stacked, has an axis more than in the body. Told by that, since the parameters
        # that say so are not the same in all versions of JAX.
        split = [a.aval.ndim > b.ndim for a, b in zip(equation.invars, body.in_avals, strict=True)]
        piled = [
            a.aval.ndim > b.ndim for a, b in zip(equation.outvars, body.out_avals, strict=True)
        ]
        carried, first = piled.count(False), split.count(False)
        fixed, carry = inputs[: first - carried], inputs[first - carried : first]
        rows = []
        turns = range(equation.params["length"])
        for i in reversed(turns) if equation.params["reverse"] else turns:
            outs = self.enter(body, [*fixed, *carry, *(_row(v, i) for v in inputs[first:])])
            carry = outs[:carried]
            rows.append(outs[carried:])
        if equation.params["reverse"]:
            rows.reverse()
        if not rows:
            empty = [np.zeros(out.aval.shape, out.aval.dtype) for out in equation.outvars[carried:]]
            return [*carry, *map(_Value, empty)]
        return [
            *carry,
            *(self.measured(_stacked(column), "scan") for column in zip(*rows, strict=True)),
        ]

    def loop(self, equation, inputs: list[_Value]) -> list[_Value]:
        test, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
        first = equation.params["cond_nconsts"]
        second = first + equation.params["body_nconsts"]
        carry = inputs[second:]
        trips = 0
        while True:
            [go] = self.enter(test, [*inputs[:first], *carry])
            # Where the state decides the end it might never come in a state made otherwise.
            if not go.value or (go.kind and trips >= 1000):
                break
            carry = self.enter(body, [*inputs[first:second], *carry])
            trips += 1
        # One more, which of a loop that has converged changes nothing.
        if go.kind and self.turned("while", go.kind):
            carry = self.enter(body, [*inputs[first:second], *carry])
        return [_decided(v, go.kind) for v in carry]

    def branch(self, equation, inputs: list[_Value]) -> list[_Value]:
        index, *operands = inputs
        branches = equation.params["branches"]
        taken = min(max(int(index.value), 0), len(branches) - 1)
        if index.kind and self.turned("cond", index.kind):
            taken = (taken + 1 + self.trial) % len(branches)
        return [_decided(v, index.kind) for v in self.enter(branches[taken], operands)]
