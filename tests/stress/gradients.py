"""Gradients of random recurrent fields, settled and unsettled, against dense linear algebra.

`python tests/stress/gradients.py [--fields 220] [--x64]`. For every accepted sample the adjoint residual that the estimator
reports bounds the error of its gradient: `|ΔW| ≤ ‖J⁻¹‖ · residual · ‖∂L/∂z‖ · ‖tanh z‖`, with J dense at the state that it
returned. Some samples are NaN, infinite or huge: the others of their batch must not notice.
"""

import argparse
import collections
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqjax as ej
from eqjax import gradients, relaxation

N, IN, OUT, BATCH = 12, 4, 5, 6
SCALES = (0.5, 0.9, 1.2, 1.6, 2.5, 4.0)
ESTIMATORS = {
    "oracle": ej.OracleAdjoint(),
    "oracle, Newton–Krylov": ej.OracleAdjoint(free=ej.NewtonKrylov(1e-5)),
    "oracle, Broyden": ej.OracleAdjoint(free=relaxation.Broyden(1e-5)),
    "oracle, type I": ej.OracleAdjoint(free=relaxation.AndersonTypeI(1e-5)),
    "oracle, adjoint by Anderson": ej.OracleAdjoint(adjoint_solver=ej.Anderson(1e-3)),
    "AsymEP": ej.AsymEP(),
    "AsymEP, shared": ej.AsymEP(nudged=ej.Nudge(contrast=gradients.SharedAdjoint())),
    "AsymEP, raw states": ej.AsymEP(nudged=ej.Nudge(contrast=gradients.RawStates())),
    "HolomorphicEP": ej.HolomorphicEP(),
    "DyadicEP": ej.DyadicEP(),
}


class Field(ej.AbstractForceField):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, t, z, x):
        return self.weight @ jnp.tanh(z) - z + self.bias + x


class Linear(eqx.Module):
    weight: jax.Array

    def __call__(self, u):
        return self.weight @ u


def drawn(index, rng, dtype):
    size = SCALES[index % len(SCALES)] / N**0.5
    array = lambda *shape, by=1.0: jnp.asarray(by * rng.normal(size=shape), dtype)
    field = Field(array(N, N, by=size), array(N, by=0.3))
    model = ej.EquilibriumModel(Linear(array(N, IN)), field, Linear(array(OUT, N)), jnp.zeros_like)
    inputs, targets = rng.normal(size=(BATCH, IN)), rng.normal(size=(BATCH, OUT))
    spoilt = {3: np.nan, 6: np.inf, 9: 1e6}.get(index % 10)
    if spoilt is not None:
        inputs[1] = spoilt
    return model, (jnp.asarray(inputs, dtype), jnp.asarray(targets, dtype))


def faults(model, batch, estimate):
    """What is wrong with an estimate, in words."""
    double = lambda leaf: np.asarray(leaf, np.float64)
    weight, decoder = double(model.field.weight), double(model.decoder.weight)
    bias, encoder = double(model.field.bias), double(model.encoder.weight)
    report, exact, bound = estimate.report, np.zeros_like(weight), 0.0
    accepted = np.flatnonzero(np.asarray(report.accepted))
    grads = double(estimate.grads.field.weight)
    if not np.isfinite(grads).all():
        return "a gradient that is not finite"
    if accepted.size == 0:
        return "a gradient of nothing" if grads.any() else None
    for j in accepted:
        z, u, y = (double(a[j]) for a in (estimate.states, *batch))
        squashed = np.tanh(z)
        force = weight @ squashed - z + bias + encoder @ u
        residual = np.linalg.norm(force) / max(np.linalg.norm(z), 1)
        if not residual <= 3e-2 * 1.01 + 1e-4:
            return f"accepted at a free residual of {residual:.1e}"
        inverse = np.linalg.inv(weight * (1 - squashed**2)[None] - np.eye(N))
        pull = decoder.T @ (decoder @ z - y)
        exact += np.outer(-inverse.T @ pull, squashed) / accepted.size
        told = float(report.adjoint_residual[j]) + 1e2 * float(jnp.finfo(estimate.states.dtype).eps)
        size = np.linalg.norm(pull) * np.linalg.norm(squashed)
        bound += told * np.linalg.norm(inverse, 2) * size / accepted.size
    error = np.linalg.norm(grads - exact)
    if error > 1.1 * bound:
        return f"an error of {error:.2e} where {bound:.2e} was told"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fields", type=int, default=220)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--x64", action="store_true")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", options.x64)
    rng, begun = np.random.default_rng(options.seed), time.monotonic()
    accepted, wrong = collections.Counter(), []
    for index in range(options.fields):
        model, batch = drawn(index, rng, jnp.float64 if options.x64 else jnp.float32)
        for name, estimator in ESTIMATORS.items():
            estimate = estimator(model, ej.squared_error, batch)
            accepted[name] += int(estimate.report.accepted.sum())
            if said := faults(model, batch, estimate):
                wrong.append(f"field {index}, {name}: {said}")
                print(wrong[-1], flush=True)
        if (index + 1) % 20 == 0:
            spent = time.monotonic() - begun
            print(f"{index + 1} fields, {spent:.0f} s, {len(wrong)} faults", flush=True)
    tried = options.fields * BATCH
    for name, count in accepted.items():
        print(f"{name}: {count} of {tried} accepted")
    print(f"{tried * len(ESTIMATORS)} gradients, {len(wrong)} faults")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
