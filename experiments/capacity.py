"""How many random patterns does a dense associative memory hold, and do the predictions say so?

    python experiments/capacity.py                    # a minute on two cores

Patterns of N bits ±1 are stored in `AssociativeMemory`s whose hidden neurons have polynomial Lagrangians of degree n, or
the softmax (exponential) one, and follow at once. A bit of a stored pattern is wrong if turning it lowers the energy.

Polynomial: the signal is F(N) - F(N-2), F = relu^n/n, against the noise of K - 1 other patterns, whose variance is a sum
over a binomial law. The number held at a given error grows as N^(n-1) (Krotov & Hopfield 2016). Exponential: K = exp(α N)
patterns are stable, with a probability that tends to 1 with N, for α < ½ log 2 = .347 (Demircigil et al. 2017).
"""

import argparse
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from eqjax.fields import (
    AssociativeMemory,
    LogCosh,
    Polynomial,
    Softmax,
)

SATURATED = 20.0  # a visible state whose activation tanh is ±1


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def error(key, lagrangian, neurons, stored, probes):
    """Fraction of the bits of `probes` stored patterns that it costs nothing to turn."""
    shape = stored, neurons
    patterns = jax.random.rademacher(key, shape, jnp.result_type(float))
    memory = AssociativeMemory(patterns, visible=LogCosh(), hidden=lagrangian()).adiabatic()

    def wrong(pattern):
        energy = lambda signs: memory.energy(SATURATED * signs, 0.0)
        turned = jax.vmap(energy)(pattern[None] * (1 - 2 * jnp.eye(neurons)))
        return jnp.mean((turned < energy(pattern)).astype(patterns.dtype))

    return jnp.mean(jax.lax.map(wrong, patterns[:probes]))


def prediction(degree, neurons, stored):
    """Gaussian error of one bit; the noise of a pattern is F(r + 1) - F(r - 1), with r the sum of N - 1 signs."""
    k = np.arange(neurons)
    r = 2.0 * k - (neurons - 1)
    difference = lambda r: (
        (np.maximum(r + 1, 0) ** degree - np.maximum(r - 1, 0) ** degree) / degree
    )
    weight = np.array([math.comb(neurons - 1, int(i)) / 2 ** (neurons - 1) for i in k])
    noise = ((stored - 1) * np.sum(weight * difference(r) ** 2)) ** 0.5
    return 0.5 * math.erfc(difference(neurons - 1.0) / noise / 2**0.5)


def measured(lagrangian, neurons, stored, *, draws, probes=30, seed=0):
    """Mean error over `draws` sets of patterns, and its standard error."""
    keys = jax.random.split(jax.random.key(seed), draws)
    found = np.array([error(k, lagrangian, neurons, stored, min(probes, stored)) for k in keys])
    return found.mean(), found.std(ddof=1) / draws**0.5


def held(degree, neurons, rate):
    """The most patterns that are predicted to keep the error below `rate`."""
    low, high = 2, 2
    while prediction(degree, neurons, high) < rate:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if prediction(degree, neurons, middle) < rate else (low, middle)
    return low


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.01)
    options = parser.parse_args()
    print(
        f"| degree | N | patterns for an error of {options.rate:g} | measured error |\n"
        + "|---" * 4
        + "|"
    )
    for degree, sizes in ((2, (64, 128, 256)), (3, (32, 64, 128)), (4, (16, 32, 64))):
        counts = [held(degree, n, options.rate) for n in sizes]
        for n, count in zip(sizes, counts, strict=True):
            mean, spread = measured(partial(Polynomial, degree), n, count, draws=options.draws)
            print(f"| {degree} | {n} | {count} | {mean:.4f} ± {spread:.4f} |", flush=True)
        slope = np.polyfit(np.log(sizes), np.log(counts), 1)[0]
        print(f"| {degree} | grows as | N^{slope:.2f} | predicted: N^{degree - 1} |")
    print(
        "\n| α | N | exp(α N) patterns | wrong bits, exponential | wrong bits, degree 2 |\n"
        + "|---" * 5
        + "|"
    )
    for rate in (0.2, 0.3):
        for n in (12, 16, 24, 32):
            count = round(float(np.exp(rate * n)))
            ours, plain = (
                measured(lagrangian, n, count, draws=options.draws)[0]
                for lagrangian in (Softmax, partial(Polynomial, 2))
            )
            print(f"| {rate} | {n} | {count} | {ours:.5f} | {plain:.3f} |", flush=True)


if __name__ == "__main__":
    main()
