"""Folds and Hopf points in two parameters meet at a Bogdanov–Takens point, which is solved for by its own equations."""

import equinox as eqx
import jax
import jax.numpy as jnp

import eqjax as ej
from eqjax import stability


class Takens(eqx.Module):
    a: jax.Array
    b: jax.Array

    def __call__(self, t, z, x):
        return jnp.stack([z[1], self.a + self.b * z[0] + z[0] ** 2 - z[0] * z[1]])


field, first, second = Takens(jnp.asarray(-0.5), jnp.asarray(-1.0)), lambda f: f.a, lambda f: f.b
branch = stability.continuation(field, jnp.array([-0.4, 0.0]), where=first, bounds=(-0.5, 0.5))
hopf, fold = branch.special_points
both = {"where": (first, second), "bounds": ((-0.5, 0.5), (-1.5, 1.0))}
folds = stability.fold_curve(field, fold, **both)
curves = {"folds": folds, "Hopf points": stability.hopf_curve(field, hopf, **both)}
figure = ej.plots.critical_curves(curves, labels=("a", "b"))
