"""What a force field is, and which of a model's arrays are trained."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PyTree

from .._checks import check_finite_number
from ..analytic import is_complex


class AbstractForceField(eqx.Module):
    """A force field: `field(t, z, x) -> dz/dt`, the signature of a Diffrax vector field.

    `z` is the state of ONE sample (any pytree of inexact arrays), `x` its clamped input (any pytree) and the
    result has the structure of `z`. Batch with `jax.vmap` outside. `diffrax.ODETerm(field)` and
    `optimistix.root_find(lambda z, x: field(0.0, z, x), …)` work as they are.

    ```python
    class Leak(ej.AbstractForceField):
        def __call__(self, t, z, x):
            return x - z


    assert ej.force_residual(Leak(), x, x) == 0
    ```
    """

    def __check_init__(self):
        for field in dataclasses.fields(self):
            if field.metadata.get("hyperparameter") and not field.metadata.get("unbounded"):
                for leaf in jax.tree.leaves(getattr(self, field.name)):
                    if not eqx.is_array(leaf) or leaf.ndim == 0:
                        check_finite_number(**{field.name: leaf})

    @abc.abstractmethod
    def __call__(self, t: Any, z: PyTree[Array], x: PyTree) -> PyTree[Array]:
        """The force on state `z` at time `t` under input `x`."""


class AbstractSplitField(AbstractForceField):
    """A field whose force is the sum of a reciprocal part (symmetric Jacobian) and a non-reciprocal one.

    ```python
    class Turned(ej.AbstractSplitField):
        def reciprocal(self, t, z, x):
            return x - z

        def nonreciprocal(self, t, z, x):
            return 0.5 * (jnp.roll(z, 1) - jnp.roll(z, -1))


    assert jnp.all(Turned()(0.0, start, x) == x)
    ```
    """

    @abc.abstractmethod
    def reciprocal(self, t: Any, z: PyTree[Array], x: PyTree) -> PyTree[Array]:
        """The part with a symmetric Jacobian."""

    @abc.abstractmethod
    def nonreciprocal(self, t: Any, z: PyTree[Array], x: PyTree) -> PyTree[Array]:
        """The rest: the learned, asymmetric part."""

    def __call__(self, t: Any, z: PyTree[Array], x: PyTree) -> PyTree[Array]:
        return jax.tree.map(jnp.add, self.reciprocal(t, z, x), self.nonreciprocal(t, z, x))


class AbstractEnergyField(AbstractForceField):
    """A conservative field, `F = -∂E/∂z`; only the energy is written, the force is its derivative.

    ```python
    class Bowl(ej.AbstractEnergyField):
        def energy(self, z, x):
            return 0.5 * jnp.sum((z - x) ** 2)


    assert jnp.all(Bowl()(0.0, start, x) == x)
    ```
    """

    @abc.abstractmethod
    def energy(self, z: PyTree[Array], x: PyTree) -> Inexact[Array, ""]:
        """The energy of state `z` under input `x`."""

    def __call__(self, t: Any, z: PyTree[Array], x: PyTree) -> PyTree[Array]:
        return negative_gradient(lambda state: self.energy(state, x), z)


def negative_gradient(energy, z: PyTree[Array]) -> PyTree[Array]:
    """`-∂energy/∂z`; on complex states the holomorphic derivative."""
    return jax.tree.map(jnp.negative, jax.grad(energy, holomorphic=is_complex(z))(z))


def hyperparameter(*, unbounded: bool = False, **kwargs) -> Any:
    """A module field that holds a scalar array which a study may vary but training leaves alone. Of a force field it must be
    finite, unless it is `unbounded`.

    ```python
    class Leak(ej.AbstractForceField):
        rate: jax.Array = ej.fields.hyperparameter(default=1.0)

        def __call__(self, t, z, x):
            return x - self.rate * z


    assert Leak(2.0).rate == 2 and not ej.trainable(Leak()).rate
    ```
    """
    metadata = {"hyperparameter": True, "unbounded": unbounded}
    return eqx.field(converter=scalar, metadata=metadata, **kwargs)


def scalar(value: Any) -> Any:
    """A scalar array of the default float dtype from a number; arrays pass unchanged.

    ```python
    assert ej.fields.scalar(2).dtype == jnp.result_type(float)
    ```
    """
    # Strongly typed: a weak scalar would change type, and so recompile, when it is restored from disk.
    return jnp.asarray(value, jnp.result_type(float)) if isinstance(value, (int, float)) else value


def trainable(model: PyTree) -> PyTree[bool]:
    """Which leaves of `model` training changes: every inexact array that is no `hyperparameter`.

    **Returns:** a pytree of bools in the structure of `model`, to be used as an Equinox filter
    (`eqx.partition(model, trainable(model))`). To train a hyperparameter too, flip its entry with
    `eqx.tree_at` and hand the result (or a function from models to such masks) to the estimator.

    ```python
    mask = ej.trainable(model)
    assert mask.field.weight and not mask.field.strength
    ```
    """

    def is_trained(path, leaf):
        node = model
        for key in path:
            if isinstance(key, jax.tree_util.GetAttrKey):
                fields = dataclasses.fields(node) if dataclasses.is_dataclass(node) else ()
                if any(f.name == key.name and f.metadata.get("hyperparameter") for f in fields):
                    return False
                node = getattr(node, key.name)
            elif isinstance(key, jax.tree_util.SequenceKey):
                node = node[key.idx]
            elif isinstance(key, jax.tree_util.DictKey):
                node = node[key.key]
            else:
                break  # an unfamiliar container: what lies inside counts as weights
        return eqx.is_inexact_array(leaf)

    return jax.tree_util.tree_map_with_path(is_trained, model)


class Realified(eqx.Module):
    """A complex field as a real one: the state is `(Re z, Im z)`, so that every real solver settles it.

    `split` and `join` go between the two forms of a state.

    ```python
    real = ej.Realified(field)
    force = real(0.0, (start, start), x)  # real and imaginary part
    assert jnp.allclose(force[0], field(0.0, start, x)) and jnp.all(force[1] == 0)
    ```
    """

    field: Callable[..., Any]

    def __call__(self, t: Any, z: PyTree[Array], x: PyTree) -> PyTree[Array]:
        return self.split(self.field(t, self.join(z), x))

    @staticmethod
    def split(z: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        return jax.tree.map(jnp.real, z), jax.tree.map(jnp.imag, z)

    @staticmethod
    def join(z: tuple[PyTree[Array], PyTree[Array]]) -> PyTree[Array]:
        return jax.tree.map(jax.lax.complex, *z)


def on_complex_vectors(product: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A real-linear product that takes complex vectors too.

    ```python
    product = ej.fields.on_complex_vectors(lambda v: 2 * v)
    assert jnp.all(product(jax.lax.complex(start, x)).imag == 2)
    ```
    """

    def apply(v):
        if not is_complex(v):
            return product(v)
        # Not one complex product: the field may not take a complex state, nor be holomorphic.
        return Realified.join(tuple(map(product, Realified.split(v))))

    return apply
