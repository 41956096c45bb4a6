"""What can be trained: settings that know how to build what they describe."""

import abc
import contextlib
import dataclasses
import difflib
import functools
import numbers
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from .._checks import (
    check_finite_number,
    check_kind,
    check_not_negative,
    check_positive,
    check_seed,
    given,
    shown,
)
from .._extras import require
from .._files import TextFile, digest, write_text
from ._mesh import as_mesh, check_shares, gathered, hosts, own_rows, placed, shares
from ._step import Step, TrainState

if TYPE_CHECKING:
    from ._run import Run

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `TrainConfig` and its like share. A subclass has one field for each setting, all with defaults.

    ```python
    @dataclasses.dataclass(frozen=True)
    class Mine(ej.training.Settings):
        width: int = 64


    assert Mine.from_dict({"width": 8}).to_dict() == {"width": 8}
    ```
    """

    def __post_init__(self):
        """`ValueError` for a choice that there is not, and what is of another type or not finite. A subclass with checks of
        its own calls this one, too."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            name, hint = field.name, hints[field.name]
            value = _convert(type(self).__name__, name, getattr(self, name), hint)
            if isinstance(value, float):
                check_finite_number(**{name: value})
            object.__setattr__(self, name, value)
        if "seed" in hints:
            check_seed(seed=getattr(self, "seed"))  # noqa: B009

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        items = dataclasses.asdict(self).items()
        return {k: str(v) if isinstance(v, Path) else v for k, v in items}

    @classmethod
    def from_dict(cls: type[T], values: dict[str, Any], where: str = "configuration") -> T:
        """The inverse of `to_dict`; `ValueError` for unknown names and values of the wrong type."""
        if not isinstance(values, dict):
            raise ValueError(f"{where}: must hold names and values, got {shown(values)}.")
        every = typing.get_type_hints(cls)
        hints = {f.name: every[f.name] for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        converted = {}
        for name, value in values.items():
            if name not in hints:
                near = difflib.get_close_matches(str(name), hints, n=1)
                hint = f"; did you mean `{near[0]}`?" if near else f". Known: {', '.join(hints)}."
                raise ValueError(f"{where}: unknown setting `{name}`{hint}")
            converted[name] = _convert(where, name, value, hints[name])
        try:
            return cls(**converted)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the YAML file that `load` reads."""
        require("training")
        import yaml  # here, since it is an extra

        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        write_text(path, text)

    @classmethod
    def load(cls, path: Path) -> Any:
        """Read a YAML file; names that are left out keep their defaults."""
        require("training")
        import yaml

        check_kind((str, Path), "a path", path=path)
        try:
            values = yaml.safe_load(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: not a readable YAML file ({error}).") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: must hold lines `name: value`, such as `width: 64`.")
        return cls.from_dict(values, str(path))

    def check_above_zero(self, names: str) -> None:
        """`ValueError` for one of these settings (names with blanks between them) that is not above 0, or None."""
        check_positive(**given(**{name: getattr(self, name) for name in names.split()}))

    def check_not_negative(self, names: str) -> None:
        """`ValueError` for one of these settings that is below 0."""
        check_not_negative(**{name: getattr(self, name) for name in names.split()})

    def check_unused(self, names: str, why: str) -> None:
        """`ValueError` for one of these settings that is not at its default: it would change nothing, and `why`."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names.split():
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"`{name}` {getattr(self, name)} has no effect: {why}. Leave it out."
                )


@dataclasses.dataclass
class Material:
    """What a run learns from, and begins with.

    `text` (a `TextFile` where it is too long to hold), and `source`, a sentence that says where it came from. `tokenizer`: has `encode`, `decode` and `size`. `about`: JSON
    that, beside the settings, rebuilds tokenizer and model. `model`: to begin with, unless the settings describe it.
    """

    text: str | TextFile
    source: str
    tokenizer: Any
    about: dict[str, Any]
    model: PyTree = None

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return digest(self.text)


class Parts(NamedTuple):
    """What a recipe makes of its material: the `step`, its first `state`, an endless iterator of batches with
    `get_state` and `set_state` (and, if hosts are to read their own rows only, `read(part, parts)`), and the token ids of the two parts of the text."""

    step: Step
    state: TrainState
    data: Any
    train_ids: np.ndarray
    validation_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`cross_entropy` in nats per token over `tokens` tokens; `residual`: median force residual of the settled
    windows, or of their tokens in token order; `unsettled`: the fraction of them whose residual exceeds the acceptance threshold. The last two are NaN
    where nothing settles, `unsettled` also for BPTT, which answers after a finite horizon, settled or not."""

    cross_entropy: float
    tokens: int
    residual: float = float("nan")
    unsettled: float = float("nan")

    def metrics(self) -> dict[str, float]:
        """As lines of the metrics."""
        told = {"validation": self.cross_entropy}
        if self.residual == self.residual:
            told |= {"validation_residual": self.residual, "validation_unsettled": self.unsettled}
        return told


@dataclasses.dataclass(frozen=True)
class AbstractRecipe(Settings, abc.ABC):
    """Settings of something that can be trained, and what they mean.

    A final recipe has one field for each setting, all with defaults, among them `steps`, `batch`, `log_every`, `evaluate_every`,
    `save_every` and `keep`, which the run reads.
    """

    command: ClassVar[str]
    """What one types after `eqjax` to train it; a run's folder says so."""
    out: Path = Path("runs/train")
    """Folder of the run: configuration, metrics and checkpoints."""
    devices: int | None = None
    """Devices of this host that share a batch out. If not given one, and of a run that goes on those that it had."""
    shard_parameters: bool = False
    """Each device keeps its part only of parameters and optimiser, for models that fill a device's memory."""
    save_async: bool = False
    """Go on while a checkpoint is being written."""
    accumulate: int = 1
    """Parts of a batch that are taken one after the other, for less memory; an update is that of the whole batch."""

    def check_start(self) -> None:
        """`ValueError`, before a run starts, for settings without effect, devices that are not there, or sizes that no memory
        holds. Not for a run that goes on, whatever an earlier version took."""
        self.check_above_zero("accumulate")
        if self.shard_parameters and self.mesh() is None:
            raise ValueError("`shard_parameters` needs several `devices` to keep the parts.")
        self.mesh()
        for name in ("context_devices", "tensor_devices") if jax.process_count() > 1 else ():
            if getattr(self, name, None) not in (None, 1):
                raise ValueError(f"`{name}` are of one host. Leave them out, or train on one.")

    def over_devices(self, step: Step, mesh: Mesh | None) -> Step:
        """The step as these settings have it, on the devices of a mesh."""
        split = self.shard_parameters and mesh is not None
        how = {"shard_parameters": split, "accumulate": self.accumulate}
        return dataclasses.replace(step, mesh=mesh, **how)

    def mesh(self: Any) -> Mesh | None:
        """The devices, which are there and get equal shares of a `batch`, or `ValueError`."""
        found = as_mesh("devices", self.devices)
        check_shares(found, self.batch, "batch", "devices", self.accumulate)
        return found

    @abc.abstractmethod
    def gather(self, *, fallback: bool) -> Material:
        """Read text and pretrained model; `fallback` as for `eqjax.language.load_corpus`."""

    @abc.abstractmethod
    def recall(self, text: str | TextFile, source: str, about: dict[str, Any]) -> Material:
        """The material again, from what a run's folder says of it."""

    @abc.abstractmethod
    def build(self, material: Material) -> Parts:
        """Everything that trains."""

    @abc.abstractmethod
    def evaluate(self, run: "Run", model: PyTree, ids: np.ndarray) -> Evaluation:
        """How well a model answers on token ids, settled as in training."""

    def diagnose(self: Any, run: "Run", step: int) -> dict[str, float]:
        """More metrics, asked for at every logged step, and at 0 if there are any: by default those of validation."""
        if step and (step % self.evaluate_every == 0 or step == self.steps):
            return run.evaluate(run.validation_ids).metrics()
        return {}

    def cadences(self: Any) -> tuple[int, ...]:
        """Steps are logged at multiples of these too; 0 means never."""
        return self.log_every, self.evaluate_every

    def finish(self, run: "Run") -> None:
        """What is written once a run has reached its end, besides its checkpoints."""


def in_chunks(
    compute: Callable[..., Any],
    model: PyTree,
    windows: tuple[np.ndarray, ...],
    chunk: int,
    mesh: Mesh | None = None,
) -> Any:
    """`compute(model, *windows)`, `chunk` windows at a time, as NumPy arrays whose leading axis runs over all windows.

    The last chunk is filled up, so that one compiled shape serves all. The devices of a `mesh` share each chunk out,
    of all hosts: then all must ask.

    ```python
    mean = lambda model, u: jnp.mean(u, axis=1)
    assert ej.training.in_chunks(mean, model, (np.ones((5, 4)),), chunk=2).shape == (5,)
    ```
    """
    found, devices, several = [], shares(mesh), hosts(mesh) > 1
    model = placed(mesh, model) if several else model
    chunk = -(-chunk // devices) * devices
    for first in range(0, len(windows[0]), chunk):
        parts = [part[first : first + chunk] for part in windows]
        size = len(parts[0])
        parts = [np.concatenate([part, np.repeat(part[:1], chunk - size, 0)]) for part in parts]
        parts = own_rows(parts) if several else parts
        values = compute(model, *placed(mesh, tuple(map(jnp.asarray, parts)), rows=True))
        values = gathered(values)
        found.append(jax.tree.map(lambda leaf, size=size: np.asarray(leaf)[:size], values))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


def _convert(where: str, name: str, value: Any, hint: Any) -> Any:
    literal, options = typing.get_origin(hint) is Literal, typing.get_args(hint)
    for option in (hint,) if literal or not options else options:
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if option is Path and isinstance(value, str):
            return Path(value)
        if option is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
        if option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            # YAML reads `3e-3` as a string.
            with contextlib.suppress(ValueError):
                return float(value)
        if isinstance(option, type) and isinstance(value, option):
            if option is int and isinstance(value, bool):
                continue
            return value
    wanted = " or ".join(map(repr, options)) if literal else getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where}: `{name}` must be {wanted}, got {value!r}.")
