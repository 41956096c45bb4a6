"""`save` and `load`: branches, spectra and the other results of this package, in one file."""

import dataclasses
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._files import whole
from ._bifurcation import SpecialPoint
from ._check import Check
from ._classify import Classification
from ._codim_two import CurvePoint
from ._continuation import Branch
from ._critical_curves import Curve
from ._cycle_continuation import CycleBranch
from ._cycle_curves import CycleCurve
from ._cycle_points import CyclePoint
from ._cycles import PeriodicOrbit
from ._deflation import Equilibria
from ._diagram import Diagram
from ._homoclinic import Homoclinic
from ._homoclinic_curve import HomoclinicCurve
from ._hopf_point import HopfPoint
from ._lyapunov import Lyapunov
from ._map_normal_form import MapNormalForm
from ._normal_form import HopfNormalForm
from ._normal_forms import NormalForm
from ._profile import Closing, Profile
from ._spectrum import Spectrum, SpectrumResults

_FORMAT = 1
NAME = "eqjax.stability"
KINDS = {
    kind.__name__: kind
    for kind in (
        Branch,
        Check,
        Classification,
        Closing,
        Curve,
        CurvePoint,
        CycleBranch,
        CycleCurve,
        CyclePoint,
        Diagram,
        Equilibria,
        Homoclinic,
        HomoclinicCurve,
        HopfNormalForm,
        HopfPoint,
        Lyapunov,
        MapNormalForm,
        NormalForm,
        PeriodicOrbit,
        Profile,
        SpecialPoint,
        Spectrum,
    )
} | {"Outcome": Classification}  # as files of version 0.1 have it


def save(path: str | Path, result: Any) -> None:
    """Write a result of this package to one file, atomically: an older one stays whole until the new one is.

    The file is a zip archive of `structure.json` and NumPy's `.npy` arrays, readable without eqjax; nothing in it is
    code (no pickle).

    **Arguments:**

    - `path`: of the file, with any ending; its folder must exist.
    - `result`: a `Branch`, `Spectrum` (batched or not), `CycleBranch`, `PeriodicOrbit`, `HopfPoint`, … or dictionaries,
      tuples and lists of them, of arrays and of numbers. States may be such structures of arrays.

    **Raises:** `ValueError` if there is anything else in `result`; nothing is written then.

    ```python
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        ej.stability.save(Path(folder) / "branch.zip", branch)  # any results, for `load`
    ```
    """
    arrays: list[np.ndarray] = []
    structure = _encoded(result, arrays, "result")
    head = {"name": NAME, "format": _FORMAT, "arrays": len(arrays), "result": structure}
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"`path` {path}: there is no folder {path.parent}. Make it first.")
    with whole(path) as temporary, temporary.open("wb") as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("structure.json", json.dumps(head))
            for i, array in enumerate(arrays):
                data = io.BytesIO()
                np.lib.format.write_array(data, array, allow_pickle=False)
                archive.writestr(f"{i}.npy", data.getvalue())
        stream.flush()
        os.fsync(stream.fileno())


def load(path: str | Path) -> Any:
    """What `save` wrote, to the last bit.

    **Raises:** `FileNotFoundError` if there is no such file; `ValueError` if it is damaged, no file of `save`, of a newer
    format, or holds float64 where JAX is set to float32 alone.

    ```python
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        ej.stability.save(Path(folder) / "branch.zip", branch)
        assert str(ej.stability.load(Path(folder) / "branch.zip")) == str(branch)
    ```
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Save a result first: `stability.save(path, result)`."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            # Reading a whole member verifies its checksum.
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, or was not written by `stability.save`: {error}"
        ) from error
    try:
        head = json.loads(members["structure.json"])
        name, version = head["name"], head["format"]
    except Exception as error:
        raise ValueError(f"{path} was not written by `stability.save`.") from error
    if name != NAME:
        raise ValueError(f"{path} was not written by `stability.save`: it is of {name!r}.")
    if version != _FORMAT:
        raise ValueError(
            f"{path} has format {version}; this version of eqjax reads {_FORMAT}. Load it with the version that wrote it."
        )
    try:
        arrays = [
            np.lib.format.read_array(io.BytesIO(members[f"{i}.npy"]), allow_pickle=False)
            for i in range(head["arrays"])
        ]
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return _decoded(head["result"], arrays, path)


def _encoded(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    """`value` as JSON: numbers and text as they are, and all else as a dictionary of one entry, which names it."""
    if isinstance(value, (jax.Array, np.ndarray)):
        if isinstance(value, Tracer):
            raise ValueError(f"`{where}` is traced: `save` cannot be called under `jit`.")
        array, kind = value, "array" if isinstance(value, jax.Array) else "numpy"
        if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
            raise ValueError(f"`{where}` is an array of {array.dtype}: only numbers can be saved.")
        array = np.asarray(array)
        dtype = array.dtype.name
        if array.dtype.kind == "V":  # bfloat16 and its like, which NumPy's format does not know
            array = array.view(f"u{array.dtype.itemsize}")
        arrays.append(array)
        return {kind: len(arrays) - 1, "dtype": dtype}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return _encoded(value.item(), arrays, where)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if type(value) in (tuple, list):
        items = [_encoded(item, arrays, f"{where}[{i}]") for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) is dict:
        items = [
            [_encoded(k, arrays, where), _encoded(v, arrays, f"{where}[{k!r}]")]
            for k, v in value.items()
        ]
        return {"dict": items}
    if isinstance(value, type(SpectrumResults.successful)):
        # By name: the numbers of outcomes shift when another one is added.
        (codes,) = jax.tree.leaves(value)
        return {"outcome": _encoded(codes, arrays, where), "codes": _codes()}
    kind = KINDS.get(type(value).__name__)
    if kind is not None and type(value) is kind:
        entries = {
            name: _encoded(getattr(value, name), arrays, f"{where}.{name}") for name in _names(kind)
        }
        return {"kind": kind.__name__, "entries": entries}
    raise ValueError(
        f"`{where}` is a {type(value).__name__}, which `save` does not know. It takes results of `eqjax.stability`, and "
        "dictionaries, tuples and lists of arrays and numbers."
    )


def _decoded(value: Any, arrays: list[np.ndarray], path: Path) -> Any:
    def inner(item):
        return _decoded(item, arrays, path)

    match value:
        case {"array": i, "dtype": dtype}:
            array = jnp.asarray(_typed(arrays[i], dtype))
            if array.dtype.name != dtype:
                raise ValueError(
                    f"{path} holds {dtype}, which JAX would read as {array.dtype}: set "
                    '`jax.config.update("jax_enable_x64", True)` first.'
                )
            return array
        case {"numpy": i, "dtype": dtype}:
            return _typed(arrays[i], dtype)
        case {"complex": [real, imag]}:
            return complex(real, imag)
        case {"tuple": items}:
            return tuple(map(inner, items))
        case {"list": items}:
            return list(map(inner, items))
        case {"dict": items}:
            return {inner(k): inner(v) for k, v in items}
        case {"outcome": codes, "codes": names}:
            old = np.asarray(inner(codes))
            now = sum((old == code) * _codes()[name] for name, code in names.items())
            outcome = jax.tree.structure(SpectrumResults.successful)
            return jax.tree.unflatten(outcome, [jnp.asarray(now, old.dtype)])
        case {"kind": name, "entries": entries}:
            kind = KINDS.get(name)
            # What was added since has a default.
            if kind is None or not _needed(kind) <= set(entries) <= set(_names(kind)):
                raise ValueError(
                    f"{path} holds a {name} that this version of eqjax does not know. Load it with the version that "
                    "wrote it."
                )
            return kind(**{key: inner(item) for key, item in entries.items()})
        case _:
            return value


def _names(kind: Any) -> list[str]:
    """What a result of a kind holds."""
    if hasattr(kind, "_fields"):  # a named tuple
        return list(kind._fields)
    return [entry.name for entry in dataclasses.fields(kind)]


def _needed(kind: Any) -> set[str]:
    """What of it must be given."""
    if hasattr(kind, "_fields"):
        return set(kind._fields) - set(kind._field_defaults)
    missing = dataclasses.MISSING
    return {
        entry.name
        for entry in dataclasses.fields(kind)
        if entry.default is missing and entry.default_factory is missing
    }


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    return array if array.dtype.name == dtype else array.view(jnp.dtype(dtype))


def _codes() -> dict[str, int]:
    """The present number of every outcome that a spectrum may have."""
    names = ("successful", "eigenpairs_not_converged", "jacobian_not_finite")
    return {name: int(jax.tree.leaves(getattr(SpectrumResults, name))[0]) for name in names}
