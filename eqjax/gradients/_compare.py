"""`compare`: gradient estimators side by side on one batch."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._checks import check_callable, check_count, check_kind, given, refuse
from ._estimate import AbstractEstimator, GradientEstimate
from ._oracle import OracleAdjoint


def agreement(grads: PyTree, reference: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cosine and relative error `‖g - r‖ / ‖r‖` of one gradient against another, over all their leaves.

    ```python
    cosine, error = ej.gradients.agreement({"w": x}, {"w": 2 * x})
    assert jnp.isclose(cosine, 1) and error == 0.5
    ```
    """
    ours, theirs = jax.tree.leaves(grads), jax.tree.leaves(reference)
    dot = sum(jnp.sum(a * b) for a, b in zip(ours, theirs, strict=True))
    error = sum(jnp.sum((a - b) ** 2) for a, b in zip(ours, theirs, strict=True))
    size, extent = (sum(jnp.sum(a * a) for a in leaves) for leaves in (ours, theirs))
    return dot / jnp.sqrt(size * extent), jnp.sqrt(error / extent)


def _cosine_distance(grads: PyTree, reference: PyTree) -> float:
    """1 - cosine as half the squared distance of the directions, so that it has its digits where the cosine is all but 1."""
    ours, theirs = jax.tree.leaves(grads), jax.tree.leaves(reference)
    size, extent = (jnp.sqrt(sum(jnp.sum(a * a) for a in leaves)) for leaves in (ours, theirs))
    apart = (jnp.sum((a / size - b / extent) ** 2) for a, b in zip(ours, theirs, strict=True))
    return 0.5 * float(sum(apart))


def on_common_samples(
    model: Any,
    loss: Callable,
    batch: tuple,
    estimator: AbstractEstimator,
    reference: AbstractEstimator,
    *,
    key: PRNGKeyArray | None = None,
) -> tuple[GradientEstimate, Float[Array, ""], Float[Array, ""]]:
    """The estimate on the whole batch, and its `agreement` with the reference over the samples both accept.

    Gradients over different samples differ for that reason alone: one sample near marginality can own a batch.

    ```python
    oracle = ej.OracleAdjoint()
    estimate, cosine, error = ej.gradients.on_common_samples(
        model, ej.squared_error, batch, ej.AsymEP(), oracle
    )
    assert cosine > 0.999 and error < 1e-2
    ```
    """
    estimate, ours, theirs = _common(model, loss, batch, estimator, reference, key)
    return estimate, *agreement(ours, theirs)


def _common(
    model: Any, loss: Callable, batch: tuple, estimator: Any, reference: Any, key: Any
) -> tuple[GradientEstimate, PyTree, PyTree]:
    """The estimate on the whole batch; its gradient and the reference's over the samples both accept."""
    estimate = estimator(model, loss, batch, key=key)
    truth = reference(model, loss, batch, key=key)
    ours, theirs = estimate, truth
    if bool(jnp.any(estimate.report.accepted != truth.report.accepted)):
        common = estimate.report.accepted & truth.report.accepted
        ours = estimator(model, loss, batch, key=key, subset=common)
        theirs = reference(model, loss, batch, key=key, subset=common)
    return estimate, ours.grads, theirs.grads


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """One estimator's line in a `Comparison`. Residuals are the worst over accepted samples; cosine, its distance from 1
    and relative error are over the samples that the reference accepts too; `spread` is the standard error that a random
    estimate states of itself, relative to its norm; `seconds` is the best repeat."""

    estimator: str
    objective: str
    loss: float
    cosine: float
    cosine_distance: float
    relative_error: float
    spread: float
    free_residual: float
    nudged_residual: float
    adjoint_residual: float
    field_evaluations: float
    accepted: float
    seconds: float


# What a terminal shows; a name that leaves no room for the numbers has a line of its own.
_WIDTH = 100
_MARKS = {"finite horizon": " †", "output": " ‡"}
_HEADS = (
    ("loss", "loss"),
    ("cosine_distance", "1 - cos"),
    ("relative_error", "error"),
    ("spread", "spread"),
    ("free_residual", "free"),
    ("nudged_residual", "nudged"),
    ("adjoint_residual", "adjoint"),
    ("field_evaluations", "calls"),
    ("accepted", "kept"),
    ("seconds", "seconds"),
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The table that `compare` returns; print it, or read `rows`. `reference` names the gradient compared to.

    Printed are the loss, 1 - cosine and the relative error, the worst residuals (free, nudged, adjoint), field evaluations
    (calls), the fraction of samples accepted (kept) and seconds, in 100 columns at most."""

    rows: tuple[ComparisonRow, ...]
    reference: str

    def __str__(self) -> str:
        columns = [
            [head, *(_text(getattr(row, name)) for row in self.rows)] for name, head in _HEADS
        ]
        columns = [c for c in columns if set(c[1:]) != {"–"}]  # what none of them has takes no room
        numbers = [
            "".join(f"  {c[i]:>{max(map(len, c))}}" for c in columns)
            for i in range(len(columns[0]))
        ]
        names = ["estimator", *(row.estimator + _MARKS.get(row.objective, "") for row in self.rows)]
        room = min(_WIDTH - len(numbers[0]), max(map(len, names)))
        lines = [line for pair in zip(names, numbers, strict=True) for line in _line(*pair, room)]
        lines.insert(1, "-" * len(lines[0]))
        foot = f"error and 1 - cosine against {self.reference}"
        met = {row.objective: None for row in self.rows if row.objective in _MARKS}
        marks = [f";{_MARKS[objective]} of the {objective}" for objective in met]
        return "\n".join([*lines, foot + "".join(marks)])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; a quantity that an estimator does not have is None."""
        rows = [
            {k: None if v != v else v for k, v in dataclasses.asdict(row).items()}
            for row in self.rows
        ]
        return {"reference": self.reference, "rows": rows}

    def __getitem__(self, estimator: str) -> ComparisonRow:
        return next(row for row in self.rows if row.estimator == estimator)


def _text(value: float) -> str:
    """As many digits as 7 characters hold."""
    if value != value:
        return "–"
    form = ".0f" if 1e3 <= value < 1e7 else ".4g" if 0.01 <= value < 1e3 else ".2g"
    return f"{value:{form}}"


def _line(name: str, numbers: str, room: int) -> list[str]:
    if len(name) <= room:
        return [f"{name:<{room}}{numbers}"]
    return [name if len(name) <= _WIDTH else f"{name[: _WIDTH - 1]}…", " " * room + numbers]


def compare(
    model: Any,
    loss: Callable,
    batch: tuple,
    estimators: Sequence[AbstractEstimator] | Mapping[str, AbstractEstimator],
    *,
    key: PRNGKeyArray | None = None,
    reference: AbstractEstimator | None = None,
    repeats: int = 1,
    callback: Callable[[str], Any] | None = None,
) -> Comparison:
    """Run every estimator on the same model and batch and compare gradients, residuals and cost.

    **Arguments:**

    - `model`, `loss`, `batch`, `key`: as for an estimator.
    - `estimators`: those to compare; a mapping names them, in a list two of a kind are numbered.
    - `reference`: whose gradient the others are measured against; by default the first `OracleAdjoint` of the
      list, or else the first estimator.
    - `repeats`: timed calls after the one that compiles.
    - `callback(told)`: called before every estimator, with a line that says which it is.

    **Returns:** a `Comparison`, which prints itself as a table.

    ```python
    table = ej.compare(model, ej.squared_error, batch, [ej.AsymEP(), ej.OracleAdjoint()])
    assert table["AsymEP"].cosine_distance < 1e-5
    ```
    """
    if not estimators:
        raise ValueError(
            "`estimators` is empty: name at least one, for example [AsymEP(), OracleAdjoint()]."
        )
    check_kind((Mapping, Sequence), "a list of estimators, or a mapping", estimators=estimators)
    named = {} if isinstance(estimators, str) else _named(estimators)
    if (
        not all(isinstance(estimator, AbstractEstimator) for estimator in named.values())
        or not named
    ):
        refuse("estimators", "hold estimators, such as `AsymEP()`, and nothing else", estimators)
    check_kind(AbstractEstimator, "an estimator", **given(reference=reference))
    check_count(repeats=repeats)
    check_callable("of a line of text", **given(callback=callback))
    if reference is None:
        oracles = (e for e in named.values() if isinstance(e, OracleAdjoint))
        reference = next(oracles, next(iter(named.values())))
    rows = []
    for i, (name, estimator) in enumerate(named.items()):
        if callback is not None:
            callback(f"{name}, {i + 1} of {len(named)}")
        estimate, ours, theirs = _common(model, loss, batch, estimator, reference, key)
        cosine, error = agreement(ours, theirs)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(estimator(model, loss, batch, key=key))
            seconds.append(time.perf_counter() - start)
        told = estimate.report.summary().items()
        left_out = ("displacement", "unsettled")
        summary = {k: float(v) for k, v in told if k not in left_out}
        rows.append(
            ComparisonRow(
                estimator=name,
                objective=estimator.objective,
                cosine=float(cosine),
                cosine_distance=_cosine_distance(ours, theirs),
                relative_error=float(error),
                spread=_spread(estimate),
                seconds=min(seconds),
                **summary,
            )
        )
    known = [name for name, estimator in named.items() if estimator is reference]
    return Comparison(tuple(rows), known[0] if known else type(reference).__name__)


def _named(estimators) -> dict[str, AbstractEstimator]:
    if isinstance(estimators, Mapping):
        return dict(estimators)
    names = [type(e).__name__ for e in estimators]
    return {
        f"{name} #{names[: i + 1].count(name)}" if names.count(name) > 1 else name: estimator
        for i, (name, estimator) in enumerate(zip(names, estimators, strict=True))
    }


def _spread(estimate: GradientEstimate) -> float:
    if estimate.variance is None:
        return float("nan")
    size = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(estimate.grads))
    return (float(estimate.variance) / size) ** 0.5 if size else float("nan")
