"""Controllers: how the weight of a penalty follows a signal. Values in, values out."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

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
    """The same weight whatever the signal. As an array it can be changed without compiling anew."""

    weight: float | Array = 1.0

    def __check_init__(self):
        if isinstance(self.weight, (int, float)) and not self.weight >= 0:
            raise ValueError(f"`weight` must be at least 0, got {self.weight}.")

    def init(self):
        return ()

    def __call__(self, state, signal):
        return jnp.asarray(self.weight, signal.dtype), state


class _Level(eqx.Module):
    """`log_weight`; `signal`, smoothed; `error` of the step before. NaN before the first signal."""

    log_weight: _Scalar
    signal: _Scalar
    error: _Scalar


def _initial(controller: Any) -> _Level:
    nothing = jnp.asarray(jnp.nan, jnp.result_type(float))
    return _Level(jnp.log(jnp.asarray(controller.weight, nothing.dtype)), nothing, nothing)


def _smoothed(controller: Any, level: _Level, signal: _Scalar) -> _Scalar:
    signal = jnp.asarray(signal, level.signal.dtype)
    # Infinite, or no number: as bad as the log-ratio can tell, and forgotten in time.
    signal = jnp.where(jnp.isfinite(signal), signal, 1e3 * controller.target)
    kept = controller.smoothing
    return jnp.where(jnp.isnan(level.signal), signal, kept * level.signal + (1 - kept) * signal)


def _moved(controller: Any, level: _Level, change: Any, signal: _Scalar, error: _Scalar):
    low, high = jnp.log(controller.floor), jnp.log(controller.ceiling)
    # The limits act on the state itself, so nothing winds up behind them.
    log_weight = jnp.clip(level.log_weight + change, low, high).astype(level.log_weight.dtype)
    return jnp.exp(log_weight), _Level(log_weight, signal, error)


def _check(controller: Any) -> None:
    for name in ("target", "floor"):
        if not getattr(controller, name) > 0:
            raise ValueError(f"`{name}` must be above 0, got {getattr(controller, name)}.")
    if not controller.floor <= controller.weight <= controller.ceiling:
        raise ValueError(
            f"`weight` = {controller.weight} must lie between `floor` = {controller.floor} and `ceiling` = "
            f"{controller.ceiling}."
        )
    if not 0 <= controller.smoothing < 1:
        raise ValueError(
            f"`smoothing`, the share of the past, must be at least 0 and below 1, got {controller.smoothing}."
        )


class Multiplicative(AbstractController):
    """The weight times `up` when the smoothed signal is above `target`, times `down` when it is not.

    Simple, and prone to overshoot: it goes on rising, however fast the signal falls, until the target is met.

    **Arguments:** `weight`: at the start; `target` > 0; `floor`, `ceiling`: of the weight; `smoothing`: share of the past
    in the running mean of the signal, 0 for none.
    """

    weight: float = 0.1
    target: float = 3e-3
    up: float = 1.03
    down: float = 0.99
    floor: float = 1e-3
    ceiling: float = 100.0
    smoothing: float = 0.0

    def __check_init__(self):
        _check(self)
        if not self.up > 1 > self.down > 0:
            raise ValueError(f"`up` > 1 > `down` > 0 is needed, got {self.up} and {self.down}.")

    def init(self):
        return _initial(self)

    def __call__(self, state, signal):
        signal = _smoothed(self, state, signal)
        change = jnp.log(jnp.where(signal > self.target, self.up, self.down))
        return _moved(self, state, change, signal, state.error)


class PI(AbstractController):
    """Proportional–integral control of the log-weight, with error `e = log(signal / target)`, both smoothed:

    `log w ← clip(log w + proportional (e - e₋₁) + integral e, log floor, log ceiling)`,

    the velocity form (Åström & Hägglund 1995), in which the limits cannot wind the integral up. The proportional term
    answers a signal as it moves, and so brakes where `Multiplicative` overshoots.

    **Arguments:** as for `Multiplicative`; `proportional`, `integral` ≥ 0; `clip`: largest |e| that counts.
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
        _check(self)
        for name in ("proportional", "integral", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")

    def init(self):
        return _initial(self)

    def __call__(self, state, signal):
        signal = _smoothed(self, state, signal)
        tiny = jnp.finfo(signal.dtype).tiny
        error = jnp.log(jnp.maximum(signal, tiny) / self.target)
        error = jnp.clip(error, -self.clip, self.clip)
        before = jnp.where(jnp.isnan(state.error), error, state.error)
        change = self.proportional * (error - before) + self.integral * error
        return _moved(self, state, change, signal, error)
