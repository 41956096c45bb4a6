"""Functions that are new at every call."""

import types
import warnings
import weakref
from typing import Any

import jax

_BEFORE_A_WORD = 3  # different functions in a row, of the same lines of source

_last: dict[types.CodeType, tuple[weakref.ref, int]] = {}
_told: set[types.CodeType] = set()


# Why a warning, and not a cache by what a function does. JAX compiles by identity: a `lambda` that is written in the
# call is another function each time, and everything compiles anew. Two of the same source do not always do the same:
# what they read from outside may have changed in between, and then the old program would be silently wrong.
def warn_of_fresh(**trees: Any) -> None:
    """Warn, once, where a function in one of these is written in the call, and so compiles it anew at every call.

    ```python
    assert ej.relaxation.warn_of_fresh(field=field) is None  # no function in it is written here
    ```
    """
    for name, tree in trees.items():
        for leaf in jax.tree.leaves(tree):
            # One of ours is new where a caller's program is traced, and then only.
            if isinstance(leaf, types.FunctionType) and not (leaf.__module__ or "").startswith(
                "eqjax."
            ):
                _look(name, leaf)


def _look(name: str, function: types.FunctionType) -> None:
    code = function.__code__
    before, row = _last.get(code, (lambda: None, 0))
    row = 1 if before() is function else row + 1
    _last[code] = weakref.ref(function), row
    if row >= _BEFORE_A_WORD and code not in _told:
        _told.add(code)
        warnings.warn(
            f"`{name}` is, or holds, a new function at every call, {function.__qualname__} of {code.co_filename}:"
            f"{code.co_firstlineno}, so that all is compiled anew each time. Define it once, outside of the loop.",
            stacklevel=4,
        )
