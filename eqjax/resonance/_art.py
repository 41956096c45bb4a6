"""Fuzzy ART, simplified fuzzy ARTMAP, and adaptive resonance in continuous time: categories that grow where nothing known
resonates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count, check_not_negative, check_number, check_positive
from ..fields import AbstractForceField, hyperparameter


def complement_code(x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
    """`(x, 1 - x)` for features in [0, 1] (Carpenter, Grossberg & Rosen 1991): every coded input has the norm d.

    Without it categories only ever shrink towards 0, and in the end everything falls into the first.

    ```python
    assert ej.resonance.complement_code(jnp.array([0.25])).tolist() == [0.25, 0.75]
    ```
    """
    return jnp.concatenate([x, 1 - x], axis=-1)


class FuzzyART(eqx.Module):
    """Fuzzy ART (Carpenter, Grossberg & Rosen 1991), with room for K categories of f features; a value.

    `FuzzyART.empty(features, capacity, …)` makes one that has learned nothing. With ∧ the minimum and |·| the sum, an
    input x *resonates* with the category w of largest choice `|x∧w| / (α + |w|)` (the first, on ties) among those whose
    match `|x∧w| / |x|` reaches the vigilance ρ, and `w ← β (x∧w) + (1 - β) w`. If none does, x becomes a new
    category. For complement-coded inputs `|w| ≥ ρ d` always: a category is a box of bounded size.

    *At full capacity* an input that no category matches changes nothing: it gets the label that `predict` gives
    and is counted in `overflow`.

    - `weight (K, f)`: the categories; 1 where uncommitted. `count`: how many are committed. `overflow`: see above.
    - `vigilance`, `choice`, `rate`: ρ, α and β. Arrays, which a study may vary without recompiling.

    Several of them are one `FuzzyART` with leading axes, under `jax.vmap`.

    ```python
    art, labels = ej.resonance.FuzzyART.empty(4, 8, vigilance=0.8).learn(inputs)
    assert labels.tolist() == [0, 1, 0] and art.count == 2
    ```
    """

    weight: Float[Array, "*g k f"]
    count: Int[Array, "*g"]
    overflow: Int[Array, "*g"]
    vigilance: Float[Array, "*g"] = hyperparameter()
    choice: Float[Array, "*g"] = hyperparameter()
    rate: Float[Array, "*g"] = hyperparameter()

    @staticmethod
    def empty(
        features: int,
        capacity: int,
        *,
        vigilance: Any = 0.75,
        choice: Any = 1e-3,
        rate: Any = 1.0,
        dtype: DTypeLike | None = None,
    ) -> "FuzzyART":
        """One without categories.

        **Arguments:**

        - `features`: f, of the coded inputs: 2 d. `capacity`: K, the most categories.
        - `vigilance`: ρ in [0, 1]. `choice`: α ≥ 0. `rate`: β in (0, 1]; 1 is fast learning, less is fast commitment
          with slow recoding.
        - `dtype`: of the categories; by default JAX's default float.

        **Raises:** `ValueError` for what lies outside these ranges.
        """
        check_count(features=features, capacity=capacity)
        check_not_negative(choice=choice)
        check_number("lie in [0, 1]", lambda v: 0 <= v <= 1, vigilance=vigilance)
        check_number("lie in (0, 1]; 1 is fast learning", lambda v: 0 < v <= 1, rate=rate)
        none = jnp.zeros((), jnp.int32)
        return FuzzyART(jnp.ones((capacity, features), dtype), none, none, vigilance, choice, rate)

    def match(self, x: Float[Array, " f"]) -> Float[Array, " k"]:
        """How well x fits every category, `|x∧w| / |x|` in [0, 1]; 0 for uncommitted ones."""
        overlap, size = self._overlap(x), jnp.maximum(jnp.sum(x), jnp.finfo(x.dtype).tiny)
        return jnp.where(self._committed(), overlap / size, 0)

    def novelty(self, x: Float[Array, " f"]) -> Float[Array, ""]:
        """`1 - the best match`: 0 where x lies in the box of a category, 1 where nothing was ever learned."""
        return 1 - jnp.max(self.match(x))

    def predict(self, x: Float[Array, " f"]) -> Int[Array, ""]:
        """The committed category of largest choice, whatever its match; -1 before anything was learned."""
        return jnp.where(self.count > 0, _first_largest(self.choices(x)), -1)

    def learn(self, inputs: Float[Array, "n f"]) -> tuple["FuzzyART", Int[Array, " n"]]:
        """One pass over `inputs (n, f)`, in their order. **Returns:** what it has become, and their labels `(n,)`.

        An error at run time where an input lies outside [0, 1].
        """
        return lax.scan(FuzzyART.step, self, self._checked(inputs))

    def step(
        self, x: Float[Array, " f"], right: Bool[Array, " k"] | None = None
    ) -> tuple["FuzzyART", Int[Array, ""]]:
        """Learn one input: what `learn` scans over, without its check of the range.

        **Arguments:** `x (f,)`. `right (K,)`: the categories that may resonate; all, by default. A wrong one that would
        do so raises ρ to just above its match for the rest of the search (match tracking, ε → 0).
        """
        match, choice = self.match(x), self.choices(x)
        passing = lambda vigilance: self._committed() & (match >= vigilance)
        found = lambda vigilance: _first_largest(jnp.where(passing(vigilance), choice, -jnp.inf))
        vigilance = self.vigilance.astype(x.dtype)
        if right is not None:
            wrong = lambda rho: jnp.any(passing(rho)) & ~right[found(rho)]
            above = lambda rho: jnp.nextafter(match[found(rho)], jnp.full_like(rho, jnp.inf))
            vigilance = lax.while_loop(wrong, above, vigilance)
        resonates = jnp.any(passing(vigilance))
        room = self.count < self.weight.shape[0]
        otherwise = jnp.where(room, self.count, self.predict(x))
        label = jnp.where(resonates, found(vigilance), otherwise)
        old, rate = self.weight[label], self.rate.astype(x.dtype)
        recoded = rate * jnp.minimum(x, old) + (1 - rate) * old
        new = jnp.where(resonates, recoded, jnp.where(room, x, old))
        after = FuzzyART(
            self.weight.at[label].set(new),
            self.count + (~resonates & room).astype(jnp.int32),
            self.overflow + (~resonates & ~room).astype(jnp.int32),
            self.vigilance,
            self.choice,
            self.rate,
        )
        return after, label

    def _committed(self) -> Bool[Array, " k"]:
        return jnp.arange(self.weight.shape[0], dtype=jnp.int32) < self.count

    def _overlap(self, x: Float[Array, " f"]) -> Float[Array, " k"]:
        if x.shape != self.weight.shape[-1:]:
            raise ValueError(
                f"an input has the shape {x.shape} and the categories {self.weight.shape[-1]} features. Is it "
                "complement coded (`complement_code`)? For a batch of inputs use `learn`, or `jax.vmap`."
            )
        return jnp.sum(jnp.minimum(x[None], self.weight), axis=-1)

    def choices(self, x: Float[Array, " f"]) -> Float[Array, " k"]:
        """`|x∧w| / (α + |w|)`, -∞ for uncommitted categories."""
        total = self.choice.astype(x.dtype) + jnp.sum(self.weight, axis=-1)
        safe = jnp.maximum(total, jnp.finfo(x.dtype).tiny)  # α = 0 and a box that fills everything
        return jnp.where(self._committed(), self._overlap(x) / safe, -jnp.inf)

    def _checked(self, inputs: Float[Array, "n f"]) -> Float[Array, "n f"]:
        outside = ~jnp.all((inputs >= 0) & (inputs <= 1))
        return eqx.error_if(
            inputs,
            outside,
            "an input of fuzzy ART lies outside [0, 1], where its match means nothing: scale the features to [0, 1] "
            "(by their range, or by a sigmoid) and use `complement_code`.",
        )


class SimpleARTMAP(eqx.Module):
    """Simplified fuzzy ARTMAP (Kasuba 1993, after Carpenter et al. 1992): fuzzy ART whose categories carry a class.

    An input may resonate only with categories of its own class, and match tracking raises ρ past those of others.

    - `art`: the `FuzzyART`. `label (K,)`: the map field, the class of every category; -1 where uncommitted.

    ```python
    classes = ej.resonance.SimpleARTMAP.empty(art).learn(inputs, jnp.array([0, 1, 1]))
    assert classes.predict(inputs[2]) == 1
    ```
    """

    art: FuzzyART
    label: Int[Array, " k"]

    @staticmethod
    def empty(art: FuzzyART) -> "SimpleARTMAP":
        """One that has learned nothing, on an empty `FuzzyART`."""
        return SimpleARTMAP(art, jnp.full(art.weight.shape[0], -1, jnp.int32))

    def learn(self, inputs: Float[Array, "n f"], labels: Int[Array, " n"]) -> "SimpleARTMAP":
        """One pass over `inputs (n, f)` with their classes `labels (n,)`, integers of at least 0."""

        def one(map_, pair):
            x, label = pair
            art, category = map_.art.step(x, map_.label == label)
            grown = art.count > map_.art.count
            label = jnp.where(grown, label, map_.label[category])
            return SimpleARTMAP(art, map_.label.at[category].set(label)), None

        return lax.scan(one, self, (self.art._checked(inputs), labels.astype(jnp.int32)))[0]

    def predict(self, x: Float[Array, " f"]) -> Int[Array, ""]:
        """The class of the category that `FuzzyART.predict` names; -1 before anything was learned."""
        category = self.art.predict(x)
        return jnp.where(category < 0, -1, self.label[category])


def stacked(art: FuzzyART, groups: int) -> FuzzyART:
    """`groups` copies of `art`, one for each layer or head, to be used under `jax.vmap`.

    ```python
    assert ej.resonance.stacked(art, 3).weight.shape == (3, 8, 4)
    ```
    """
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (groups, *leaf.shape)), art)


def _first_largest(values: Float[Array, " k"]) -> Int[Array, ""]:
    return jnp.argmax(values).astype(jnp.int32)


class AdaptiveResonance(AbstractForceField):
    """A prototype w and a state h that settle on one another: `τ ẇ = (h∧w) - w`, `τ ḣ = λ (w - h)`.

    The state is `(w, h)`, two real arrays of one shape; the input `x` is not used. With λ = 0 the state is clamped,
    and an Euler step of η τ is the learning rule of fuzzy ART with the rate η. Every component goes its own way:
    with u = w - h, `τ u̇ = -(1 + λ) u` where u > 0, `-λ u` where u < 0. So w never rises, h moves towards it, and
    `½ ‖w - h‖²` never rises.

    **Arguments:** `tau`: τ > 0, a time. `pull`: λ ≥ 0.

    ```python
    pair = ej.resonance.AdaptiveResonance(pull=0.5)
    dw, dh = pair(0.0, (x, 0 * x), None)
    assert jnp.all(dw == -1) and jnp.all(dh == 0.5)
    ```
    """

    tau: Float[Array, ""] = hyperparameter(default=1.0)
    pull: Float[Array, ""] = hyperparameter(default=0.0)

    def __check_init__(self):
        check_positive(tau=self.tau)
        check_not_negative(pull=self.pull)

    def __call__(self, t: Any, z: tuple[Array, Array], x: Any = None) -> tuple[Array, Array]:
        w, h = z
        tau, pull = self.tau.astype(w.dtype), self.pull.astype(w.dtype)
        return (jnp.minimum(h, w) - w) / tau, pull * (w - h) / tau
