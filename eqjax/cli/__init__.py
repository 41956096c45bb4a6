"""The command line: `eqjax demo | train | evaluate | sample | compare | spectrum | continue | run | gpt2`."""

from .._extras import require as _require

_require("cli")

import contextlib
import dataclasses
import importlib.metadata
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..recipes import AeonSettings, ARLLSettings, GPT2Settings, TrainConfig
from ..training import Settings
from . import _equilibrium, _gpt2
from ._checks import as_flags

_Command = (
    Annotated[_equilibrium.DemoCommand, tyro.conf.subcommand("demo")]
    | Annotated[_equilibrium.TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[_equilibrium.EvaluateCommand, tyro.conf.subcommand("evaluate")]
    | Annotated[_equilibrium.SampleCommand, tyro.conf.subcommand("sample")]
    | Annotated[_equilibrium.CompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[_equilibrium.SpectrumCommand, tyro.conf.subcommand("spectrum")]
    | Annotated[_equilibrium.ContinueCommand, tyro.conf.subcommand("continue")]
    | Annotated[
        tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[_equilibrium.RunCommand]],
        tyro.conf.subcommand("run"),
    ]
    | Annotated[
        tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[_gpt2.GPT2Command]],
        tyro.conf.subcommand("gpt2"),
    ]
)
_RUN = _equilibrium.COMMANDS | _gpt2.GPT2_COMMANDS
# Commands whose settings may come from a YAML file.
_CONFIGURED = {
    ("train",): (_equilibrium.TrainCommand, TrainConfig),
    ("gpt2", "train"): (_gpt2.GPT2TrainCommand, GPT2Settings),
    ("gpt2", "aeon"): (_gpt2.AeonCommand, AeonSettings),
    ("gpt2", "arll"): (_gpt2.ARLLCommand, ARLLSettings),
}


def _parse(argv: list[str]):
    """Parse flags; `--config FILE` supplies the defaults that the flags then override."""
    for words, (kind, settings) in _CONFIGURED.items():
        if tuple(argv[: len(words)]) == words:
            args, prog = argv[len(words) :], " ".join(["eqjax", *words])
            command = tyro.cli(kind, args=args, prog=prog)
            if command.config is not None:
                default = dataclasses.replace(command, settings=_loaded(settings, command.config))
                command = tyro.cli(kind, args=args, prog=prog, default=default)
            return command
    return tyro.cli(
        _Command,  # pyright: ignore[reportArgumentType]
        args=argv,
        prog="eqjax",
        description="Equilibrium models that settle, and learn by settling again.",
    )


def _loaded(settings: type[Settings], path: Path) -> Settings:
    try:
        return settings.load(path)
    except ValueError as error:
        raise ValueError(f"--config {error}") from None


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `eqjax` command."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--version"]:
        print(importlib.metadata.version("eqjax"))
        return
    words = next((w for w in _CONFIGURED if tuple(argv[: len(w)]) == w), None)
    command: Any = _CONFIGURED[words][0] if words else None
    parsing = io.StringIO()  # what the parser says of bad flags, in the settings' own words
    try:
        try:
            with contextlib.redirect_stderr(parsing):
                command = _parse(argv)
        finally:
            print(_in_flags(parsing.getvalue(), command), file=sys.stderr, end="")
        _use_compilation_cache()
        _RUN[type(command)](command)
    except BrokenPipeError:
        os._exit(1)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {_in_flags(str(error), command)}", file=sys.stderr)
        raise SystemExit(2) from None


def _in_flags(message: str, command: Any) -> str:
    if command is None or message.startswith("--config"):  # a file has names, not flags
        return message
    return as_flags(message, command)


def _use_compilation_cache() -> None:
    """Keep compiled programs between processes, so that a second run starts at once."""
    import jax

    from ..language import cache_folder

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
