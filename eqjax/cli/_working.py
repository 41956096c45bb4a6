"""What long work says of itself while it lasts, on standard error."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

_PAUSE = 10.0  # seconds between two lines, where there is no terminal to draw on

_compiling = False
_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether results alone are printed, and errors and warnings; for the commands from now on."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether that was asked for."""
    return _quiet


def talk() -> Any:
    """The console for what is said on the way to a result."""
    from rich.console import Console

    return Console(quiet=_quiet)


# JAX tells when a program has been lowered, which is when its compilation begins, and when that has ended.
def _listen(event: str, duration_secs: float, **_: Any) -> None:
    global _compiling
    if event.endswith("jaxpr_to_mlir_module_duration"):
        _compiling = True
    elif event.endswith("backend_compile_duration"):
        _compiling = False


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """A line that says what is done, for how long, and whether it still compiles; what is given says something else from then on.

    On a terminal it turns in its place; redirected, it is written now and then, and not at all if the work is short.
    """
    from rich.console import Console

    console, ended, told = Console(stderr=True), threading.Event(), [what]
    start = time.monotonic()

    def line() -> str:
        compiling = ", compiling…" if _compiling else ""
        return f"{told[0]}{compiling} ({time.monotonic() - start:.0f} s)"

    def tell(show: Callable[[str], None], pause: float) -> None:
        while not ended.wait(pause):
            show(line())

    if _quiet:
        yield lambda text: None
        return
    turning = console.status(what) if console.is_terminal else contextlib.nullcontext()
    with turning as status:
        show = status.update if status else lambda text: print(text, file=sys.stderr, flush=True)
        thread = threading.Thread(target=tell, args=(show, 0.5 if status else _PAUSE), daemon=True)
        thread.start()
        try:
            yield lambda text: told.__setitem__(0, text)
        finally:
            ended.set()
            thread.join()
