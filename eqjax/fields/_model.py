"""Models that answer by settling: encode the input, let the field settle, decode the settled state."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from .._checks import check_callable
from ._base import AbstractForceField


class AbstractEquilibriumModel(eqx.Module):
    """A force field with an encoder and a decoder. Every method describes one sample.

    ```python
    class Reader(ej.AbstractEquilibriumModel):
        field: ej.AbstractForceField

        def encode(self, inputs):
            return inputs

        def initial(self, x):
            return jnp.zeros_like(x)

        def decode(self, z):
            return z[:1]


    assert Reader(field).decode(start).shape == (1,)
    ```
    """

    field: eqx.AbstractVar[AbstractForceField]

    @abc.abstractmethod
    def encode(self, inputs: PyTree) -> PyTree:
        """The clamped input `x` of the field."""

    @abc.abstractmethod
    def initial(self, x: PyTree) -> PyTree[Array]:
        """The state `z0` from which settling starts."""

    @abc.abstractmethod
    def decode(self, z: PyTree[Array]) -> PyTree[Array]:
        """The outputs read from a settled state."""


def clamp(x: PyTree) -> PyTree:
    """Start settling at the clamped input itself."""
    return x


class EquilibriumModel(AbstractEquilibriumModel):
    """The convenience model built from its parts.

    **Arguments:**

    - `encoder`: callable `inputs -> x`.
    - `field`: the force field.
    - `decoder`: callable `z -> outputs`.
    - `start`: callable `x -> z0`; by default `z0 = x`.

    ```python
    reader = ej.EquilibriumModel(encoder=lambda u: u, field=field, decoder=lambda z: z[:1])
    assert reader.decode(start).shape == (1,)
    ```
    """

    encoder: Callable[[Any], Any]
    field: AbstractForceField
    decoder: Callable[[Any], Any]
    start: Callable[[Any], Any] = clamp

    def __check_init__(self):
        check_callable("of one sample's inputs", encoder=self.encoder)
        check_callable("field(t, z, x)", field=self.field)
        check_callable("of a state", decoder=self.decoder)
        check_callable("of the encoded input", start=self.start)

    def encode(self, inputs: PyTree) -> PyTree:
        return self.encoder(inputs)

    def initial(self, x: PyTree) -> PyTree[Array]:
        return self.start(x)

    def decode(self, z: PyTree[Array]) -> PyTree[Array]:
        return self.decoder(z)
