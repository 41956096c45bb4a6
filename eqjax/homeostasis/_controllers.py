"""Controllers: how the weight of a penalty follows a signal. Values in, values out."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._checks import check_finite_number, check_not_negative, check_positive

_Scalar = Float[Array, ""]


class AbstractController(eqx.Module):
    """`controller(state, signal) -> (weight, state)`, from the state that `init()` gives."""

    @abc.abstractmethod
    def init(self) -> PyTree[Array]:
        """The state before the first signal."""

    @abc.abstractmethod
    def __call__(self, state: PyTree[Array], signal: _Scalar) -> tuple[_Scalar, PyTree[Array]]:
        """The weight that answers a signal, and the next state. A signal that is not finite counts as the worst."""


class Constant(AbstractController):
    """The same weight whatever the signal. As an array it can be changed without compiling anew.

    ```python
    controller = ej.homeostasis.Constant(2.0)
    weight, _ = controller(controller.init(), jnp.asarray(5.0))
    assert weight == 2
    ```
    """

    weight: float | Array = 1.0

    def __check_init__(self):
        check_not_negative(weight=self.weight)

    def init(self):
        return ()

    def __call__(self, state, signal):
        return jnp.asarray(self.weight, signal.dtype), state


class Level(eqx.Module):
    """`log_weight`; `signal`, smoothed, NaN before the first."""

    log_weight: _Scalar
    signal: _Scalar


class AbstractLevelController(AbstractController):
    """Controllers that move the logarithm of the weight, within limits, by what a smoothed signal does.

    `weight`: at the start; `target` > 0: of the signal; `floor`, `ceiling`: of the weight; `smoothing`: share of the past in
    the running mean of the signal, 0 for none.
    """

    weight: eqx.AbstractVar[float]
    target: eqx.AbstractVar[float]
    floor: eqx.AbstractVar[float]
    ceiling: eqx.AbstractVar[float]
    smoothing: eqx.AbstractVar[float]

    @abc.abstractmethod
    def change(self, before: _Scalar, signal: _Scalar) -> _Scalar:
        """By how much the log-weight moves, from the smoothed signal and that of the step before."""

    def __check_init__(self):
        check_positive(target=self.target, floor=self.floor)
        check_finite_number(weight=self.weight, ceiling=self.ceiling, smoothing=self.smoothing)
        if not self.floor <= self.weight <= self.ceiling:
            raise ValueError(
                f"`weight` = {self.weight} must lie between `floor` = {self.floor} and `ceiling` = {self.ceiling}."
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(
                f"`smoothing`, the share of the past, must be at least 0 and below 1, got {self.smoothing}."
            )

    def init(self):
        nothing = jnp.asarray(jnp.nan, jnp.result_type(float))
        return Level(jnp.log(jnp.asarray(self.weight, nothing.dtype)), nothing)

    def __call__(self, state, signal):
        signal = jnp.asarray(signal, state.signal.dtype)
        # Infinite, or no number: as bad as the log-ratio can tell, and forgotten in time.
        signal = jnp.where(jnp.isfinite(signal), signal, 1e3 * self.target)
        before = jnp.where(jnp.isnan(state.signal), signal, state.signal)
        signal = self.smoothing * before + (1 - self.smoothing) * signal
        # The limits act on the state itself, so nothing winds up behind them.
        moved = state.log_weight + self.change(before, signal)
        limits = jnp.log(self.floor), jnp.log(self.ceiling)
        log_weight = jnp.clip(moved, *limits).astype(state.log_weight.dtype)
        return jnp.exp(log_weight), Level(log_weight, signal)


class Multiplicative(AbstractLevelController):
    """The weight times `up` when the smoothed signal is above `target`, times `down` when it is not.

    Simple, and prone to overshoot: it goes on rising, however fast the signal falls, until the target is met.

    **Arguments:** `up` > 1 > `down` > 0; the others as for `AbstractLevelController`.

    ```python
    controller = ej.homeostasis.Multiplicative(weight=1.0, target=0.1, up=1.03)
    weight, _ = controller(controller.init(), jnp.asarray(0.5))
    assert jnp.isclose(weight, 1.03)
    ```
    """

    weight: float = 0.1
    target: float = 3e-3
    up: float = 1.03
    down: float = 0.99
    floor: float = 1e-3
    ceiling: float = 100.0
    smoothing: float = 0.0

    def __check_init__(self):
        check_finite_number(up=self.up, down=self.down)
        if not self.up > 1 > self.down > 0:
            raise ValueError(f"`up` > 1 > `down` > 0 is needed, got {self.up} and {self.down}.")

    def change(self, before, signal):
        return jnp.log(jnp.where(signal > self.target, self.up, self.down))


class PI(AbstractLevelController):
    """Proportional–integral control of the log-weight, with error `e = log(signal / target)`, both smoothed:

    `log w ← clip(log w + proportional (e - e₋₁) + integral e, log floor, log ceiling)`,

    the velocity form (Åström & Hägglund 1995), in which the limits cannot wind the integral up. The proportional term
    answers a signal as it moves, and so brakes where `Multiplicative` overshoots.

    **Arguments:** as for `AbstractLevelController`; `proportional`, `integral` ≥ 0; `clip`: largest |e| that counts.

    ```python
    controller = ej.homeostasis.PI(weight=1.0, target=0.01)
    weight, _ = controller(controller.init(), jnp.asarray(0.1))
    assert weight > 1
    ```
    """

    weight: float = 1.0
    target: float = 1e-2
    proportional: float = 0.3
    integral: float = 0.02
    floor: float = 1e-2
    ceiling: float = 100.0
    smoothing: float = 0.8
    clip: float = 3.0

    def __check_init__(self):
        gains = {"proportional": self.proportional, "integral": self.integral}
        check_not_negative(clip=self.clip, **gains)

    def change(self, before, signal):
        error = self._error(signal)
        return self.proportional * (error - self._error(before)) + self.integral * error

    def _error(self, signal: _Scalar) -> _Scalar:
        positive = jnp.maximum(signal, jnp.finfo(signal.dtype).tiny)
        return jnp.clip(jnp.log(positive / self.target), -self.clip, self.clip)
