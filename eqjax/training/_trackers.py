"""Where metrics go beside `metrics.jsonl`: TensorBoard, Weights & Biases, Aim, or an object of yours."""

import contextlib
import json
import secrets
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .._checks import refuse
from .._extras import require
from .._files import write_text


@typing.runtime_checkable
class Tracker(Protocol):
    """What `Run.train(log=...)` takes: any object with these three methods.

    An error in `begin` is raised, before anything is computed; one in `log` or `close` is told once, as a warning, and the run
    goes on without this tracker, which is closed: `metrics.jsonl` has everything.

    ```python
    class Said(ej.training.Tracker):
        def begin(self, folder, settings, after): ...

        def log(self, step, values):
            print(step, values["loss"])

        def close(self): ...


    log = Said()  # `run.train(log=[log])`
    ```
    """

    def begin(self, folder: Path, settings: dict[str, Any], after: int) -> None:
        """**Arguments:** `folder` of the run; its `settings`, as in `config.yaml`; `after`: the step from which it goes on, 0 for a
        new run. What was logged after it will be logged again."""
        ...

    def log(self, step: int, values: dict[str, float]) -> None:
        """Keep what was measured at a `step`."""
        ...

    def close(self) -> None:
        """The end of the training, however it ended."""
        ...


class TensorBoard:
    """Event files for TensorBoard, in the run's folder `tensorboard/` (extra `tensorboard`: the package tensorboardX).

    A run that goes on goes on there; what was logged after its checkpoint is shown once.

    ```python
    log = ej.training.TensorBoard()  # `run.train(log=[log])`
    ```
    """

    def begin(self, folder: Path, settings: dict[str, Any], after: int) -> None:
        require("tensorboard")
        import tensorboardX

        there = folder / "tensorboard"
        void = after + 1 if after else None  # what is from there on in earlier files
        self._writer = tensorboardX.SummaryWriter(str(there), purge_step=void)
        if not after:
            lines = "".join(f"    {name}: {value}\n" for name, value in settings.items())
            self._writer.add_text("settings", lines, 0)
        _remember(folder, "tensorboard", "")

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run at Weights & Biases, named as the run's folder (extra `wandb`). Its x axis is `step`.

    A run that goes on is the same run there; steps after its checkpoint come twice. Offline, as by WANDB_MODE=offline, all is
    kept in the run's folder `wandb/`.

    **Arguments:** `project`; `settings`: more arguments of `wandb.init`, such as `entity` or `mode`.

    ```python
    log = ej.training.WandB(project="mine", mode="offline")  # `run.train(log=[log])`
    ```
    """

    def __init__(self, project: str = "eqjax", **settings: Any):
        self.project, self.settings = project, settings

    def begin(self, folder: Path, settings: dict[str, Any], after: int) -> None:
        require("wandb")
        import wandb  # pyright: ignore[reportMissingImports]

        known = _remembered(folder).get("wandb") if after else None
        identity = known or secrets.token_hex(4)
        about = {"project": self.project, "dir": str(folder), "name": folder.absolute().name}
        about |= {"id": identity, "resume": "allow", "config": settings}
        self._run = wandb.init(**about | self.settings)
        self._run.define_metric("*", step_metric="step")
        _remember(folder, "wandb", identity)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step} | values)

    def close(self) -> None:
        self._run.finish()


class Aim:
    """A run in a repository of Aim (extra `aim`). A run that goes on is the same run there. Aim's own functions find it once
    `aim up`, or `aim storage reindex`, has put it into its index.

    **Arguments:** `repo`: the folder of the repository; by default the one that holds the run's folder, which is made a
    repository if it is none.

    ```python
    log = ej.training.Aim("runs")  # `run.train(log=[log])`
    ```
    """

    def __init__(self, repo: str | Path | None = None):
        self.repo = repo

    def begin(self, folder: Path, settings: dict[str, Any], after: int) -> None:
        require("aim")
        import aim  # pyright: ignore[reportMissingImports]

        repo = Path(folder.absolute().parent if self.repo is None else self.repo)
        known = _remembered(folder).get("aim") if after else None
        store = aim.Repo.from_path(str(repo), init=True)
        how = {"system_tracking_interval": None, "capture_terminal_logs": False}
        self._run = aim.Run(known, repo=store, experiment=folder.absolute().name, **how)
        self._run["settings"] = settings
        _remember(folder, "aim", self._run.hash)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._run.track(value, name=name, step=step)

    def close(self) -> None:
        self._run.close()


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "aim": Aim,
}


def _remembered(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / "trackers.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(folder: Path, name: str, identity: str) -> None:
    write_text(folder / "trackers.json", json.dumps(_remembered(folder) | {name: identity}) + "\n")


def trackers_of(folder: Path) -> list[str]:
    """The names of those of `TRACKERS` that a run was logged to: it goes on with them.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        assert ej.training.trackers_of(Path(folder)) == []
    ```
    """
    return [name for name in TRACKERS if name in _remembered(folder)]


def check_trackers(log: Tracker | Sequence[Tracker]) -> tuple[Tracker, ...]:
    """All trackers; `ValueError` for what is none."""
    every: Any = tuple(log) if isinstance(log, (list, tuple)) else (log,)
    for tracker in every:
        if isinstance(tracker, type) or not isinstance(tracker, Tracker):
            cure = "Pass `log=TensorBoard()`, say, or an object with the methods of `Tracker`."
            refuse("log", "be a tracker, or several", tracker, cure)
    return every


@contextlib.contextmanager
def tracked(
    trackers: Sequence[Tracker], folder: Path, settings: dict[str, Any], after: int
) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A function that logs to all of them; they are closed at the end."""
    going: list[Tracker] = []

    def attempt(tracker: Tracker, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
        except Exception as error:  # of another's program, or its network
            going[:] = [other for other in going if other is not tracker]
            if act != tracker.close:
                with contextlib.suppress(Exception):
                    tracker.close()
            warnings.warn(
                f"{type(tracker).__name__} failed ({type(error).__name__}: {error}), and the run goes on without it: "
                "metrics.jsonl has everything.",
                stacklevel=2,
            )

    def log(step: int, values: dict[str, Any]) -> None:
        for tracker in list(going):
            attempt(tracker, tracker.log, step, dict(_numbers(values)))

    try:
        for tracker in trackers:
            tracker.begin(folder, settings, after)
            going.append(tracker)
        yield log
    finally:
        for tracker in list(going):
            attempt(tracker, tracker.close)


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers by name; those of an array as name/0, name/1, …; what is none is left to `metrics.jsonl`."""
    for name, value in values.items():
        parts = np.ravel(value)
        if parts.dtype.kind not in "biuf":
            continue
        for i, part in enumerate(parts):
            yield (name if np.ndim(value) == 0 else f"{name}/{i}"), float(part)
