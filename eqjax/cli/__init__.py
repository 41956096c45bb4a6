"""The command line: `eqjax demo | train | evaluate | sample | compare | spectrum | continue | explore | run | runs | push | gpt2`."""

from .._extras import require as _require

_require("cli")

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import operator
import os
import sys
import warnings
from typing import Annotated, Any

import jax
import tyro

from ..language import cache_folder
from . import _equilibrium, _gpt2
from ._common import as_flags, check_alone
from ._hosts import ends_with_all, join_hosts
from ._push import PushCommand, pushed
from ._runs import RunsCommand, runs
from ._working import be_quiet, is_quiet

_PLAIN = _equilibrium.COMMANDS | {RunsCommand: runs, PushCommand: pushed}
_RUN = _PLAIN | _gpt2.GPT2_COMMANDS
_NAMES = {kind.__name__.removesuffix("Command").lower(): kind for kind in _PLAIN}
_COMMANDS: list[Any] = [
    Annotated[kind, tyro.conf.subcommand(name)]
    for name, kind in (_NAMES | {"gpt2": _gpt2.GPT2Command}).items()
]
# Commands whose settings may come from a YAML file.
_CONFIGURED = {
    ("train",): _equilibrium.TrainCommand,
    ("gpt2", "train"): _gpt2.GPT2TrainCommand,
    ("gpt2", "aeon"): _gpt2.AeonCommand,
    ("gpt2", "arll"): _gpt2.ARLLCommand,
}


def _parse(argv: list[str]):
    """Parse flags; `--config FILE` supplies the defaults that the flags then override."""
    for words, kind in _CONFIGURED.items():
        if tuple(argv[: len(words)]) == words:
            prog, config = " ".join(["eqjax", *words]), [tyro.conf.OmitArgPrefixes]
            parse: Any = functools.partial(
                tyro.cli, kind, args=argv[len(words) :], prog=prog, config=config
            )
            command = parse()
            if command.resume is not None:
                check_alone(argv[len(words) :])
            if command.config is None:
                return command
            try:
                settings = command.settings.load(command.config)
            except ValueError as error:
                raise ValueError(f"--config {error}") from None
            return parse(default=dataclasses.replace(command, settings=settings))
    return tyro.cli(
        functools.reduce(operator.or_, _COMMANDS),
        args=argv,
        prog="eqjax",
        description="Equilibrium models that settle, and learn by settling again. Any command takes --no-cache: to keep "
        "no compiled programs; and --quiet: for results, warnings and errors alone. Training on several hosts: --coordinator, --hosts and --host (docs/devices.md).",
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `eqjax` command."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    argv = sys.argv[1:] if argv is None else argv
    kept = "--no-cache" not in argv
    be_quiet("--quiet" in argv)
    argv = [word for word in argv if word not in ("--no-cache", "--quiet")]
    if argv == ["--version"]:
        print(importlib.metadata.version("eqjax"))
        return
    with ends_with_all():
        _ran(argv, kept)


def _ran(argv: list[str], kept: bool) -> None:
    command: Any = next((k for w, k in _CONFIGURED.items() if tuple(argv[: len(w)]) == w), None)
    parsing = io.StringIO()  # what the parser says of bad flags, in the settings' own words
    try:
        try:
            with contextlib.redirect_stderr(parsing):
                command = _parse(join_hosts(argv))
        finally:
            print(_in_flags(parsing.getvalue(), command), file=sys.stderr, end="")
        if kept:
            _keep_programs()
        _RUN[type(command)](command)
    except BrokenPipeError:
        os._exit(1)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}".rstrip(), file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {_in_flags(str(error), command)}", file=sys.stderr)
        raise SystemExit(2) from None


def _keep_programs() -> None:
    """Compiled programs are kept between processes, so that a second run starts at once."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder() / "xla"
    if not folder.exists():
        if not is_quiet():
            print(
                f"Compiled programs are kept in {folder}; with --no-cache they are not.",
                file=sys.stderr,
            )
        folder.mkdir(parents=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _in_flags(message: str, command: Any) -> str:
    if command is None or message.startswith("--config"):  # a file has names, not flags
        return message
    return as_flags(message, command)
