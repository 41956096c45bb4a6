"""Associative memories as analog circuits: a crossbar of resistors between two rows of integrating amplifiers."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .._checks import check_number, check_positive
from ._associative import (
    AssociativeMemory,
    ClampedMemory,
    LogCosh,
    Polynomial,
    Quadratic,
    Softmax,
    Spherical,
)
from ._base import AbstractForceField, hyperparameter, scalar


class CircuitRow(eqx.Module):
    """The components of one row of n amplifiers, each an integrator with its own line of the crossbar.

    `leak (n,)`: conductance 1/R₂ beside the capacitor, S. `capacitance (n,)`: C₁, F. `source (n,)`: conductance of the
    resistor to the bias source, S. `cancel (n,)`: conductance of the resistor that makes up for the self-term, S.
    """

    leak: Float[Array, " n"]
    capacitance: Float[Array, " n"]
    source: Float[Array, " n"]
    cancel: Float[Array, " n"]


class Crossbar(AbstractForceField):
    """An `AssociativeMemory` as an RC circuit, component by component; the force is Kirchhoff's current law, in V/s.

    A resistor of conductance G = ξ/R₂ joins every hidden line to every visible line, and serves both directions. Each
    amplifier has its activation f at one input and its line at the other, and closes the loop through R₂ ∥ C₁, whose
    voltage is the state u. Since the amplifier holds its line at f, the crossbar brings in `Σ G (g - f)`: of that, the
    *self-term* `f ΣG` is given back by one resistor ΣG from a source 2f. A source f + b brings in the bias. Then

    `R₂ C₁ u̇ = Σ ξ g + b - u`.

    With a finite gain A the line is at `(A f + u)/(1 + A)` instead. All components are arrays, so
    `perturbed(crossbar, 0.01, key)` is one device whose resistors and capacitors are 1% off. State and input are those
    of the memory, in volts.

    **Arguments:**

    - `memory`: an `AssociativeMemory` or a `ClampedMemory` (whose clamped lines are held by voltage sources); its
      patterns are conductances and must be at least 0.
    - `resistance`: R₂, Ω. `unit`: seconds to a unit of the memory's time: C₁ = τ · unit / R₂.
    - `gain`: A > 0, inf by default.

    **Raises:** `ValueError` for negative patterns or components that are not above 0.

    ```python
    circuit = ej.fields.Crossbar(ej.fields.pattern_memory(patterns), resistance=1e5, unit=1e-3)
    v, h = circuit(0.0, (two, two), 0.0)
    assert v.shape == (2,)
    ```
    """

    conductance: Float[Array, "m n"]
    visible_row: CircuitRow
    hidden_row: CircuitRow
    visible: Any
    hidden: Any
    clamped: tuple[int, ...] = eqx.field(static=True)
    visible_bias: Float[Array, " n"] = hyperparameter()
    hidden_bias: Float[Array, " m"] = hyperparameter()
    gain: Float[Array, ""] = hyperparameter(unbounded=True)

    def __init__(
        self,
        memory: AssociativeMemory | ClampedMemory,
        *,
        resistance: float = 1e5,
        unit: float = 1e-3,
        gain: float = math.inf,
    ):
        check_positive(resistance=resistance, unit=unit)
        check_number("be above 0", lambda v: v > 0, gain=gain)
        self.clamped = ()
        if isinstance(memory, ClampedMemory):
            self.clamped, memory = memory.clamped, memory.memory
        if not isinstance(memory.patterns, Tracer) and np.any(np.asarray(memory.patterns) < 0):
            raise ValueError(
                f"`memory` has patterns down to {np.min(memory.patterns):.3g}, and no resistor has a negative "
                "conductance. Shift the patterns to be non-negative (bits {0, 1} instead of ±1) and adapt the biases."
            )
        self.conductance = memory.patterns / resistance
        self.visible, self.hidden = memory.visible, memory.hidden
        self.visible_bias, self.hidden_bias = memory.visible_bias, memory.hidden_bias
        self.gain = scalar(gain)

        def row(axis, tau):
            cancel = jnp.sum(self.conductance, axis=axis)
            same = jnp.full_like(cancel, 1 / resistance)
            return CircuitRow(same, same * unit * tau, same, cancel)

        self.visible_row = row(0, memory.visible_time)
        self.hidden_row = row(1, memory.hidden_time)

    @property
    def free(self) -> tuple[int, ...]:
        """Indices of the visible neurons that are not clamped."""
        n = self.conductance.shape[1]
        return tuple(i for i in range(n) if i not in self.clamped)

    def complete(self, z: PyTree[Array], x: Any) -> tuple[Array, Array, Array, Array]:
        """`(v, h, g, f)`: all capacitor voltages and all activations."""
        v, h = z
        full = jnp.zeros(self.conductance.shape[1], v.dtype).at[jnp.array(self.free)].set(v)
        if self.clamped:
            full = full.at[jnp.array(self.clamped)].set(x)
        return full, h, jax.grad(self.visible)(full), jax.grad(self.hidden)(h)

    def lines(self, z: PyTree[Array], x: Any) -> tuple[Array, Array]:
        """Voltages of the visible and of the hidden lines."""
        v, h, g, f = self.complete(z, x)
        error = 1 / self.gain
        visible, hidden = (g + error * v) / (1 + error), (f + error * h) / (1 + error)
        if self.clamped:
            held = jnp.array(self.clamped)
            visible = visible.at[held].set(g[held])  # by an ideal source
        return visible, hidden

    def __call__(self, t: Any, z: PyTree[Array], x: Any = 0.0) -> PyTree[Array]:
        return self.charging(z, x, self.lines(z, x))

    def charging(self, z: PyTree[Array], x: Any, lines: tuple[Array, Array]) -> PyTree[Array]:
        """Kirchhoff's current law at given line voltages: how fast the capacitors charge, V/s."""
        v, h, g, f = self.complete(z, x)
        visible, hidden = lines
        drive = 0.0 if self.clamped else x
        into_v = hidden @ self.conductance - visible * jnp.sum(self.conductance, axis=0)
        into_h = self.conductance @ visible - hidden * jnp.sum(self.conductance, axis=1)

        def charge(row, u, activation, line, bias, inflow):
            cancelled = row.cancel * (2 * activation - line)
            biased = row.source * (activation + bias - line)
            return (inflow + cancelled + biased - row.leak * u) / row.capacitance

        rate_v = charge(self.visible_row, v, g, visible, self.visible_bias + drive, into_v)
        rate_h = charge(self.hidden_row, h, f, hidden, self.hidden_bias, into_h)
        return rate_v[jnp.array(self.free)], rate_h

    def power(
        self, z: PyTree[Array], x: Any = 0.0, lines: tuple[Array, Array] | None = None
    ) -> Float[Array, ""]:
        """What all resistors turn into heat, W; `lines`: other line voltages than those of the ideal amplifiers."""
        v, h, g, f = self.complete(z, x)
        visible, hidden = self.lines(z, x) if lines is None else lines
        drive = 0.0 if self.clamped else x
        across = hidden[:, None] - visible[None, :]

        def heat(row, u, activation, line, bias):
            biased, cancelled = activation + bias - line, 2 * activation - line
            return row.leak * u**2 + row.source * biased**2 + row.cancel * cancelled**2

        at_v = heat(self.visible_row, v, g, visible, self.visible_bias + drive)
        at_h = heat(self.hidden_row, h, f, hidden, self.hidden_bias)
        at_v = at_v[jnp.array(self.free)]
        return jnp.sum(self.conductance * across**2) + jnp.sum(at_v) + jnp.sum(at_h)


class FiniteBandwidth(AbstractForceField):
    """A `Crossbar` whose amplifiers have the gain `GBW / (i f)` of one dominant pole: their outputs slew as

    `ȯ = 2π GBW (f(u) - line)`, `line = o + u`,

    and currents flow at the line voltages of the moment. The state is `((v, h), (o_v, o_h))`, capacitor voltages and outputs;
    start it with `initial`, amplifiers at rest. A line is held with the rate `2π GBW` against the charging of its own
    capacitor, of rate `(2 Σ_i ξ + 1)/τ`: the more resistors on a line, the faster its amplifier must be.

    **Arguments:** `crossbar`: without clamped lines; its `gain` is not used. `bandwidth`: gain-bandwidth product, Hz.

    **Raises:** `ValueError` for a crossbar with clamped lines, or a bandwidth that is not above 0.

    ```python
    circuit = ej.fields.Crossbar(ej.fields.pattern_memory(patterns))
    slow = ej.fields.FiniteBandwidth(circuit, bandwidth=1e6)
    assert slow.crossbar is circuit
    ```
    """

    crossbar: Crossbar
    bandwidth: Float[Array, ""] = hyperparameter()

    def __check_init__(self):
        if self.crossbar.clamped:
            raise ValueError(
                f"`crossbar` has clamped lines {self.crossbar.clamped}, whose sources are ideal: give one without."
            )
        if not isinstance(self.bandwidth, Tracer) and not bool(jnp.all(self.bandwidth > 0)):
            raise ValueError(f"`bandwidth` must be above 0, got {self.bandwidth}.")

    def initial(self, z: PyTree[Array], x: Any = 0.0) -> tuple[PyTree[Array], PyTree[Array]]:
        """Capacitor voltages z, and outputs at which every line is at its activation."""
        v, h, g, f = self.crossbar.complete(z, x)
        return (v, h), (g - v, f - h)

    def lines(self, z: PyTree[Array]) -> tuple[Array, Array]:
        """Voltages of the visible and of the hidden lines."""
        (v, h), (o_v, o_h) = z
        return o_v + v, o_h + h

    def __call__(self, t: Any, z: PyTree[Array], x: Any = 0.0) -> PyTree[Array]:
        state, _ = z
        _, _, g, f = self.crossbar.complete(state, x)
        visible, hidden = self.lines(z)
        slew = 2 * math.pi * self.bandwidth
        outputs = slew * (g - visible), slew * (f - hidden)
        return self.crossbar.charging(state, x, (visible, hidden)), outputs


def to_spice(
    circuit: Crossbar | AssociativeMemory | ClampedMemory,
    z0: PyTree[Array],
    x: Any = 0.0,
    *,
    t1: float,
    step: float | None = None,
    output: str = "memory.txt",
    title: str = "associative memory",
) -> str:
    """A SPICE netlist of the circuit: `ngspice -b memory.cir` integrates it and writes the capacitor voltages.

    Weights, leaks, self-term and biases are resistors, capacitors and constant sources; behavioural sources are the
    activations only (and their doubles, for the self-term), and amplifiers are voltage-controlled ones. What is written
    is the circuit given, with the mismatch and gain that it has (a gain above 1e6 as 1e6).

    **Arguments:** `circuit`: a `Crossbar`, or a memory, which becomes the nominal one. `z0`, `x`: initial state and
    input, as for `relax`. `t1`: duration, s. `step`: largest time step, s, by default t1/500. `output`: file that
    ngspice writes, a table with the columns time, v of the free visible neurons, h. `title`: first line.

    **Returns:** the netlist, as text. If ngspice gives up, its table ends before `t1`.

    **Raises:** `ValueError` for values still being traced, negative components, and Lagrangians without a SPICE
    expression (those of this package have one).

    ```python
    memory = ej.fields.pattern_memory(patterns)
    netlist = ej.fields.to_spice(memory, (two, two), t1=0.01)
    assert netlist.rstrip().endswith(".end")
    ```
    """
    circuit = circuit if isinstance(circuit, Crossbar) else Crossbar(circuit)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((circuit, z0, x))):
        raise ValueError(
            "`to_spice` writes numbers and cannot be traced: call it outside `jit` and `vmap`."
        )
    if not t1 > 0:
        raise ValueError(f"`t1` must be above 0, got {t1}.")
    _check_components(circuit)
    conductance = np.asarray(circuit.conductance)
    m, n = conductance.shape
    v0, h0, _, _ = (np.asarray(part) for part in circuit.complete(z0, jnp.asarray(x)))
    drive = np.zeros(n) if circuit.clamped else np.broadcast_to(np.asarray(x, float), (n,))
    lines = [f"* {title}"]
    for i, held in enumerate(v0):
        if i in circuit.clamped:
            shape = expression(circuit.visible, [f"{u:.12g}" for u in v0])[i]
            lines += [f"* visible neuron {i}, clamped at {held:.6g}", f"Bv{i} lv{i} 0 V={shape}"]
    rows = (
        ("v", circuit.visible_row, circuit.visible, circuit.visible_bias + drive, v0),
        ("h", circuit.hidden_row, circuit.hidden, circuit.hidden_bias, h0),
    )
    gain = min(float(circuit.gain), 1e6)  # beyond, the equations are too stiff for ngspice
    for kind, row, lagrangian, bias, start in rows:
        clamped = circuit.clamped if kind == "v" else ()
        states = [
            f"{start[k]:.12g}" if k in clamped else f"V(l{kind}{k},o{kind}{k})"
            for k in range(len(start))
        ]
        shapes = expression(lagrangian, states)
        for k in range(len(start)):
            if k not in clamped:
                lines += _neuron(f"{kind}{k}", shapes[k], row, k, float(bias[k]), start[k], gain)
    lines.append("* crossbar")
    for mu in range(m):
        for i in range(n):
            if conductance[mu, i] > 0:
                lines.append(f"Rx{mu}_{i} lh{mu} lv{i} {1 / conductance[mu, i]:.12g}")
    names = [f"v{i}" for i in circuit.free] + [f"h{mu}" for mu in range(m)]
    step = t1 / 500 if step is None else step
    lines += [
        f".options reltol=1e-5 abstol=1e-14 vntol=1e-9\n.tran {step:.6g} {t1:.6g} 0 {step:.6g} uic",
        ".control\nset wr_singlescale\nrun",
        *(f"let {name} = v(l{name}) - v(o{name})" for name in names),
        f"wrdata {output} {' '.join(names)}",
        "quit 0\n.endc\n.end",
    ]
    return "\n".join(lines) + "\n"


def _neuron(name, shape, row, k, bias, start, gain):
    """One integrator. Nodes: a, its activation; l, its line; o, the amplifier's output; d and b, the sources."""
    leak, capacitance, source, cancel = (
        float(part[k]) for part in (row.leak, row.capacitance, row.source, row.cancel)
    )
    yield f"* neuron {name}"
    yield f"B{name} a{name} 0 V={shape}"
    yield f"Eo{name} o{name} 0 a{name} l{name} {gain:.12g}"
    yield f"C{name} l{name} o{name} {capacitance:.12g} IC={float(start):.12g}"
    yield f"Rl{name} l{name} o{name} {1 / leak:.12g}"
    yield f"Vb{name} b{name} a{name} {bias:.12g}"
    yield f"Rb{name} b{name} l{name} {1 / source:.12g}"
    if cancel > 0:
        yield f"Ed{name} d{name} 0 a{name} 0 2"
        yield f"Rd{name} d{name} l{name} {1 / cancel:.12g}"


def _check_components(circuit: Crossbar) -> None:
    rows = {"visible_row": circuit.visible_row, "hidden_row": circuit.hidden_row}
    for name, row in rows.items():
        for part in ("leak", "capacitance", "source"):
            if not bool(jnp.all(getattr(row, part) > 0)):
                raise ValueError(f"`circuit.{name}.{part}` must be above 0 throughout.")
    cancelling = jnp.concatenate([row.cancel for row in rows.values()])
    if not bool(jnp.all(circuit.conductance >= 0) & jnp.all(cancelling >= 0)):
        raise ValueError(
            "`circuit` has negative conductances, which no resistor has. Were they trained? Keep them at 0 or above."
        )


@functools.singledispatch
def expression(lagrangian: Any, u: list[str]) -> list[str]:
    """The activations `∂L/∂u` as SPICE expressions of the expressions u. Register a Lagrangian of your own with
    `@expression.register`."""
    raise ValueError(
        f"No SPICE expression is known for the activation of {type(lagrangian).__name__}. Register one with "
        "`eqjax.fields.expression.register`."
    )


@expression.register
def _(lagrangian: Quadratic, u: list[str]) -> list[str]:
    return list(u)


@expression.register
def _(lagrangian: Polynomial, u: list[str]) -> list[str]:
    return ["*".join([f"max({k},0)"] * (lagrangian.power - 1)) for k in u]


@expression.register
def _(lagrangian: LogCosh, u: list[str]) -> list[str]:
    return [f"tanh({float(lagrangian.beta):.12g}*({k}))" for k in u]


@expression.register
def _(lagrangian: Softmax, u: list[str]) -> list[str]:
    beta = f"{float(lagrangian.beta):.12g}"
    return [f"1/({'+'.join(f'exp({beta}*({j}-({k})))' for j in u)})" for k in u]


@expression.register
def _(lagrangian: Spherical, u: list[str]) -> list[str]:
    n = len(u)
    mean = f"({'+'.join(u)})/{n}"
    variance = f"({'+'.join(f'({k}-{mean})^2' for k in u)})/{n}"
    return [f"({k}-{mean})/sqrt({variance}+{lagrangian.eps:.12g})" for k in u]
