"""Models with complex states, seen as real ones."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree

from ..analytic import is_complex
from ..fields import AbstractEquilibriumModel, Realified


# Why a view. The adjoint of a state is that of its real and imaginary parts: a loss that is real is holomorphic in no state,
# and so has two derivatives. With the parts as the state every real estimator is right, the field holomorphic or not.
class RealView(AbstractEquilibriumModel):
    """`model`, whose state is complex, with `(Re z, Im z)` for a state."""

    model: Any

    @property
    def field(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Realified(self.model.field)

    def encode(self, inputs: PyTree) -> PyTree:
        return self.model.encode(inputs)

    def initial(self, x: PyTree) -> PyTree[Array]:
        return Realified.split(self.model.initial(x))

    def decode(self, z: PyTree[Array]) -> PyTree[Array]:
        return self.model.decode(Realified.join(z))


def has_complex_state(model: Any, inputs: PyTree) -> bool:
    """Whether the states of a model are complex; `inputs` are a batch of them."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    return is_complex(jax.eval_shape(lambda u: model.initial(model.encode(u)), one))


def real_view(model: Any, inputs: PyTree) -> tuple[Callable, Callable]:
    """How models like this are seen with a real state, and how such a state is seen as one of theirs."""
    if has_complex_state(model, inputs):
        return RealView, Realified.join
    return lambda model: model, lambda z: z


def in_real_numbers(tree: PyTree[Array]) -> tuple[PyTree[Array], Callable]:
    """A tree with the parts of its complex arrays in their place, and the way back."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [(a.real, a.imag) if is_complex(a) else a for a in leaves]

    def back(parts):
        whole = [jax.lax.complex(*a) if isinstance(a, tuple) else a for a in parts]
        return jax.tree.unflatten(structure, whole)

    return parts, back


def refuse_complex_state(model: Any, inputs: PyTree, estimator: str) -> None:
    """**Raises:** `ValueError` if the states of a model are complex."""
    if has_complex_state(model, inputs):
        raise ValueError(
            f"`model` has a complex state, which `{estimator}` does not treat: use `AsymEP` or `OracleAdjoint`, or write "
            "the field for real and imaginary parts (`eqjax.Realified`)."
        )
