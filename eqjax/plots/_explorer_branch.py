"""What a page about a branch, or about a field with a parameter, has to know."""

from collections.abc import Callable, Sequence
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import linear_sum_assignment

from .._checks import (
    check_arrays,
    check_callable,
    check_count,
    check_finite_number,
    check_kind,
    refuse,
)
from ..fields import ContinuousHopfield, GainNetwork, HodgkinHuxley, Kuramoto, LogCosh
from ..relaxation import check_field, relax, residual_ratio
from ..stability import Branch, CycleBranch, state_dtype

_TURN, _FINER = 160, 2  # points of a cycle, and how many times more are looked at
_CYCLES = 80  # of a branch of them
_AXES = {
    "weight": 2,
    "bias": 1,
    "frequencies": 1,
}  # of the numbers that a page reads; of all others none
# Of trajectories computed beforehand: starts in either direction, values of the parameter, times.
_STARTS, _VALUES, _TIMES = 5, 9, 101


def branch_data(
    branch: Branch,
    field: Callable[..., Any] | None,
    x: Any,
    where: Callable[[Any], Any] | None,
    *,
    start: Any,
    step: float | None,
    span: float | None,
    cycles: Sequence[CycleBranch],
    coordinates: Sequence[int] | None,
    names: Sequence[str] | None,
    parameter: str | None,
) -> dict[str, Any]:
    """The points of a branch, special ones among them, the cycles beside it, and trajectories."""
    if (field is None) != (where is None):
        raise ValueError(
            "`field` and `where` go together: pass both, as `continuation` was given them, or neither."
        )
    if field is None and (cycles or start is not None or span is not None):
        raise ValueError(
            "`cycles`, `start` and `span` need the `field` of the branch, and `where`, too."
        )
    real = jnp.issubdtype(state_dtype(branch.states), jnp.floating)
    if not real:
        raise ValueError("`branch` is complex: continue `eqjax.Realified(field)` instead.")
    at = lambda i: jax.tree.map(lambda a: a[i], branch.states)
    size = ravel_pytree(at(0))[0].size
    shown = _shown(size, coordinates)
    points = _with_special_points(branch, size)
    mu = points["real"] + 1j * points["imag"]
    step = float(branch.step if step is None and branch.step is not None else step or _step(mu))
    rates = np.abs(mu[:, 0])[np.isfinite(mu[:, 0])]
    rates = rates if rates.size else np.ones(1)
    span = float(8 * np.pi / max(np.median(rates), 1e-6)) if span is None else span
    fastest = np.max(np.abs(mu), initial=1e-300, where=np.isfinite(mu))
    turns = [_turns(field, x, where, found, shown) for found in cycles]
    data = {
        "kind": "branch",
        "parameter": parameter or (where and _leaf(field, where)[1]) or "parameter",
        "names": _names(names, shown),
        "grid": points | {"states": points["states"][:, shown]},
        "all": mu.shape[1] >= size,
        "step": step,
        "labelled": None if branch.step is None else float(branch.step),
        "span": span,
        # Fourth order is exact to far below a pixel, and stable, where a mode turns by a twentieth in a step.
        "pace": max(min(span / 1000, 0.05 / fastest), span / 20_000),
        "note": f"{branch.parameters.size} points; {branch.ended}; largest force residual {np.max(branch.residuals):.1e}",
        "cycles": turns,
    }
    if field is None:
        return data
    _check_same(field, x, where, branch.parameters[0], at(0), branch.residuals)
    ends = [turn["loops"].reshape(-1, len(shown)) for turn in turns]
    reach = np.ptp(np.concatenate([points["states"][:, shown], *ends]), axis=0)
    return data | _motion(field, x, where, points, at(0), shown, start, span, reach)


def parameter_data(
    field: Callable[..., Any],
    x: Any,
    where: Callable[[Any], Any] | None,
    bounds: Any,
    start: Any,
    *,
    step: float | None,
    span: float | None,
    coordinates: Sequence[int] | None,
    names: Sequence[str] | None,
    parameter: str | None,
) -> dict[str, Any]:
    """A field whose trajectories are integrated in the page, without its fixed points."""
    if where is None or bounds is None or start is None:
        raise ValueError(
            "`where`, `bounds` and `start` are needed beside a field: the parameter, between which values, and a state. To "
            "see fixed points, pass the branch that `continuation` returns, and this as `field`."
        )
    _, name = _leaf(field, where)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        refuse("bounds", "be (low, high), finite and in order", bounds)
    check_finite_number(bounds=bounds[0])
    check_finite_number(bounds=bounds[1])
    low, high = map(float, bounds)
    if not low < high:
        refuse("bounds", "be (low, high), finite and in order", bounds)
    first = real_state(start)
    check_field(field, start, x)
    known = in_page(field, x, start)
    if known is None:
        refuse(
            "what",
            "be a field that is integrated in the page (Hodgkin–Huxley, Hopfield, Kuramoto, a gain network)",
            field,
            "Of any other pass the branch, from `continuation`, and the field as `field`.",
        )
    shown = _shown(first.size, coordinates)
    span = 20.0 if span is None else span
    return {
        "kind": "branch",
        "parameter": parameter or name,
        "names": _names(names, shown),
        "grid": {"parameter": np.linspace(low, high, 201), "states": None},
        "step": span / 400 if step is None else step,
        "span": span,
        "pace": span / 2000,
        "note": "integrated in the page",
        "cycles": [],
        "special": [],
        "field": known | {"varied": name},
        "start": first,
        "shown": shown,
    }


def real_state(start: Any) -> np.ndarray:
    """A state's numbers in a row; `ValueError` where they are not real, or not finite."""
    check_arrays(start=start)
    flat = np.asarray(ravel_pytree(jax.tree.map(jnp.asarray, start))[0])
    if np.iscomplexobj(flat) or not np.isfinite(flat).all():
        refuse("start", "be a state of finite real numbers", start)
    return flat.astype(float)


def in_page(field: Any, x: Any, z: Any) -> dict[str, Any] | None:
    """The numbers of a field that the page integrates by itself, by their paths; None for any other."""
    kind = type(field)
    if kind not in (HodgkinHuxley, ContinuousHopfield, Kuramoto, GainNetwork) or np.ndim(z) != 1:
        return None
    if kind is ContinuousHopfield and not isinstance(field.lagrangian, LogCosh):
        return None
    if kind is HodgkinHuxley and field.stimulus is not None:
        return None
    leaves = jax.tree_util.tree_leaves_with_path(field)
    numbers = {
        jax.tree_util.keystr(path).lstrip("."): np.asarray(leaf, float) for path, leaf in leaves
    }
    given = np.asarray(0.0 if x is None or kind is Kuramoto else x, float)
    if any(value.ndim != _AXES.get(name, 0) for name, value in numbers.items()):
        return None  # a population, say
    return {"kind": kind.__name__, "numbers": numbers | {"input": given}}


def _leaf(field: Any, where: Callable[[Any], Any]) -> tuple[int, str]:
    """Which leaf of the field the parameter is, and its path."""
    check_callable("of a field, as in `eqx.tree_at`", where=where)
    marker = object()
    try:
        marked = eqx.tree_at(where, field, marker)
    except Exception as error:
        raise ValueError(f"`where` picks no leaf of `field`: {error}") from error
    for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(marked)):
        if leaf is marker:
            if np.ndim(old := jax.tree.leaves(field)[index]):
                refuse("where", "pick one number of the field", old)
            return index, jax.tree_util.keystr(path).lstrip(".")
    raise ValueError("`where` picks no leaf of `field`.")


def _check_same(field, x, where, parameter, state, residuals) -> None:
    """`ValueError` where the force of a field is not 0 on the branch: it is another one's."""
    put = lambda old: jnp.asarray(parameter, jnp.asarray(old).dtype)
    here = eqx.tree_at(where, field, replace_fn=put)
    check_field(here, state, x)
    left = float(residual_ratio(eqx.filter_jit(here)(0.0, state, x), state))
    if not left <= max(1e-2, 100 * np.max(residuals)):
        raise ValueError(
            f"`field` has the force residual {left:.1e} where `branch` begins: it is another field, or `where` another "
            "parameter, or `x` another input, than `continuation` was given."
        )


def _shown(size: int, coordinates: Sequence[int] | None) -> list[int]:
    """Which numbers of the state, at least two where there are two."""
    if coordinates is None:
        return list(range(min(size, 8)))
    check_kind((list, tuple), "numbers of the state, each once", coordinates=coordinates)
    for index in coordinates:
        check_count(0, size - 1, coordinates=index)
    if not coordinates or len(set(coordinates)) < len(coordinates):
        refuse("coordinates", "be numbers of the state, each once", coordinates)
    return [int(index) for index in coordinates]


def _names(names: Sequence[str] | None, shown: Sequence[int]) -> list[str]:
    if names is None:
        return [f"z[{index}]" for index in shown]
    if len(names) != len(shown):
        refuse("names", f"be {len(shown)}, one for each coordinate that is shown", names)
    return list(names)


def _with_special_points(branch: Branch, size: int) -> dict[str, Any]:
    """All points of a branch in order, with eigenvalues in columns that move without a jump, and where the special ones are."""
    count = branch.parameters.size
    parameters = np.asarray(branch.parameters, float)
    flat = lambda tree, lead: np.concatenate(
        [np.reshape(np.asarray(a, float), (*lead, -1)) for a in jax.tree.leaves(tree)], axis=-1
    )
    states = flat(branch.states, (count,))
    values = np.array(branch.spectra.values, complex)
    for i in range(1, count):
        values[i] = values[i][_matching(values[i - 1], values[i])]
    rows: list[Any] = [(i, parameters[i], states[i], values[i], None) for i in range(count)]
    for point in branch.special_points:
        i, state = point.index, flat(point.state, ())
        j = min(i + 1, count - 1)
        ahead = np.append(states[j] - states[i], parameters[j] - parameters[i])
        reached = np.append(state - states[i], point.parameter - parameters[i])
        part = float(np.clip(ahead @ reached / max(ahead @ ahead, 1e-300), 0, 1))
        between = (1 - part) * values[i] + part * values[j]
        # What crosses is known there, and so is its conjugate.
        for critical in {complex(point.value), complex(point.value).conjugate()}:
            between[np.argmin(abs(between - critical))] = critical
        rows.append((i + part, point.parameter, state, between, point))
    rows.sort(key=lambda row: row[0])
    told = lambda p: {
        "parameter": p.parameter,
        "error": abs(p.interval[1] - p.interval[0]) / 2,
        "flow": p.flow,
        "euler": p.euler,
        "status": p.status,
        "frequency": p.frequency,
    }
    _, along, reached, spectra, points = zip(*rows, strict=True)
    values = np.stack(spectra)
    return {
        "parameter": np.array(along),
        "states": np.stack(reached),
        "real": np.real(values),
        "imag": np.imag(values),
        "special": [told(p) | {"at": i} for i, p in enumerate(points) if p is not None],
    }


def _matching(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """In which order eigenvalues move least."""
    moved = np.abs(before[:, None] - after[None])
    return linear_sum_assignment(np.nan_to_num(moved, nan=1e300, posinf=1e300))[1]


def _step(mu: np.ndarray) -> float:
    """Half the largest ε that holds all decaying modes of the first point at which all decay; 1 where there is none."""
    for values in mu:
        if (values.real < 0).all():
            return float(np.min(-values.real / np.abs(values) ** 2))
    return 1.0


def _turns(
    field: Any, x: Any, where: Any, branch: CycleBranch, shown: Sequence[int]
) -> dict[str, Any]:
    """Cycles of a branch, evenly chosen, each at equal parts of its period."""
    count = branch.parameters.size
    chosen = np.unique(np.linspace(0, count - 1, min(count, _CYCLES)).round().astype(int))
    pick = lambda tree: jax.tree.map(lambda a: a[chosen], tree)
    states, periods = pick(branch.states), jnp.asarray(branch.periods)[chosen]
    count = _TURN * _FINER + 1
    along, (index, _) = jnp.asarray(branch.parameters)[chosen], _leaf(field, where)
    loops = np.asarray(_paths(field, index, x, along, states, periods, count, 7, tuple(shown)))
    hopf = [(p.parameter, p.period, p.state) for p in branch.special_points if p.type == "Hopf"]
    parameters = np.asarray(along)
    low, high = np.min(loops, axis=1), np.max(loops, axis=1)
    loops = _aligned(loops)
    periods, unstable = np.asarray(periods), branch.unstable[chosen]
    for parameter, period, state in hopf:  # where it shrinks to a point
        first = abs(parameters[0] - parameter) < abs(parameters[-1] - parameter)
        put = lambda a, v, first=first: np.concatenate([v[None], a] if first else [a, v[None]])
        point = np.asarray(ravel_pytree(state)[0], float)[list(shown)]
        parameters, periods = put(parameters, np.array(parameter)), put(periods, np.array(period))
        unstable = put(unstable, unstable[0 if first else -1])
        loops = put(loops, np.broadcast_to(point, loops.shape[1:]))
        low, high = put(low, point), put(high, point)
    # For a line on a screen.
    shapes = np.array([f"{v:.5g}" for v in loops.ravel()], float).reshape(loops.shape)
    return {
        "parameter": parameters,
        "period": periods,
        "unstable": unstable,
        "loops": shapes,
        "low": low,
        "high": high,
    }


def _aligned(loops: np.ndarray) -> np.ndarray:
    """Each cycle begun where it is nearest to the one before, so that between the two lies one like them; and fewer points."""
    loops = loops[:, :-1].copy()
    unit = np.maximum(np.ptp(loops, axis=(0, 1)), 1e-300)
    for i in range(1, len(loops)):
        # ‖a - b‖² over all turns of b at once, but for what no turn changes.
        spectra = np.fft.rfft(loops[i] / unit, axis=0).conj() * np.fft.rfft(
            loops[i - 1] / unit, axis=0
        )
        turn = int(np.argmax(np.fft.irfft(spectra.sum(axis=1), n=loops.shape[1])))
        loops[i] = np.roll(loops[i], turn, axis=0)
    return loops[:, ::_FINER]


@eqx.filter_jit
def _paths(field, index, x, parameters, states, spans, count, finer, shown):
    """Trajectories `(m, count, coordinates)` of m fields from m states, for as long as each is to last."""
    times = jnp.linspace(0.0, 1.0, count).astype(spans.dtype)
    leaves, structure = jax.tree.flatten(field)

    def one(parameter, state, span):
        old = leaves[index]
        new = parameter.astype(old.dtype) if eqx.is_array(old) else parameter
        here = jax.tree.unflatten(structure, [*leaves[:index], new, *leaves[index + 1 :]])
        scaled = lambda t, z, x: jax.tree.map(lambda f: span.astype(f.dtype) * f, here(t, z, x))
        seen = lambda t, z, x: ravel_pytree(z)[0][np.array(shown)]
        how: dict[str, Any] = {"step": 1 / ((count - 1) * finer), "steps": (count - 1) * finer}
        how |= {"saveat": dfx.SaveAt(subs=dfx.SubSaveAt(ts=times, fn=seen)), "throw": False}
        return relax(scaled, state, x, solver=dfx.Tsit5(), **how).trajectory

    return jax.vmap(one)(parameters, states, spans)


def _motion(field, x, where, points, state, shown, start, span, reach) -> dict[str, Any]:
    """How trajectories come about: in the page, or computed here from a grid of starts, in the plane of the first two
    coordinates, around the fixed points; `reach`: how far what is shown extends."""
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, state))
    middle = points["states"][len(points["states"]) // 2]
    wide = np.maximum(reach, 0.2 * (1 + np.abs(middle[shown])))
    if start is None:
        first = middle.copy()
        first[shown[0]] += 0.3 * wide[0]
    else:
        first = real_state(start)
        if first.size != middle.size:
            refuse("start", f"be like the states of the branch, of {middle.size} numbers", start)
    known = in_page(field, x, state)
    common = {"start": first, "shown": list(shown)}
    if known is not None:
        return common | {"field": known | {"varied": _leaf(field, where)[1]}}
    index, name = _leaf(field, where)
    values = np.linspace(points["parameter"].min(), points["parameter"].max(), _VALUES)
    offsets = np.linspace(-1, 1, _STARTS)
    moved = np.stack(np.meshgrid(*[offsets] * min(2, len(shown)), indexing="ij"), axis=-1)
    moved = moved.reshape(-1, moved.shape[-1])
    starts = np.repeat(first[None], len(moved), axis=0)
    plane = list(shown[: moved.shape[1]])
    starts[:, plane] = middle[plane] + wide[: moved.shape[1]] * moved
    each = lambda a: jnp.asarray(np.tile(a, (_VALUES, 1)), flat.dtype)
    paths = _paths(
        field,
        index,
        x,
        jnp.asarray(np.repeat(values, len(moved)), flat.dtype),
        jax.vmap(unravel)(each(starts)),
        jnp.full(_VALUES * len(moved), span, flat.dtype),
        _TIMES,
        10,
        tuple(shown),
    )
    paths = np.asarray(paths).reshape(_VALUES, len(moved), _TIMES, len(shown))
    far = np.abs(paths) > 1e3 * np.max(np.abs(starts)) + 1e3
    paths = np.where(far, np.nan, paths)
    short = np.array([float(f"{v:.5g}") for v in paths.ravel()]).reshape(paths.shape)
    return common | {
        "sampled": {
            "name": name,
            "parameter": values,
            "starts": starts[:, list(shown)],
            "paths": short,
        }
    }
