"""The command line: `eqjax demo | train | evaluate | sample | compare | spectrum | continue | run | gpt2`."""

from .._extras import require as _require

_require("cli")


import dataclasses
import os
import sys
import warnings
from typing import Annotated

import tyro

from ..recipes import GPT2Settings, TrainConfig
from . import _equilibrium as eq, _gpt2 as gpt2

_Command = (
    Annotated[eq.Demo, tyro.conf.subcommand("demo")]
    | Annotated[eq.Train, tyro.conf.subcommand("train")]
    | Annotated[eq.Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[eq.Sample, tyro.conf.subcommand("sample")]
    | Annotated[eq.Compare, tyro.conf.subcommand("compare")]
    | Annotated[eq.Spectrum, tyro.conf.subcommand("spectrum")]
    | Annotated[eq.Continue, tyro.conf.subcommand("continue")]
    | Annotated[
        tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[eq.Run]],
        tyro.conf.subcommand("run"),
    ]
    | Annotated[
        tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[gpt2.Gpt2]],
        tyro.conf.subcommand("gpt2"),
    ]
)
_RUN = eq.COMMANDS | gpt2.COMMANDS
# Commands whose settings may come from a YAML file.
_CONFIGURED = {("train",): (eq.Train, TrainConfig), ("gpt2", "train"): (gpt2.Train, GPT2Settings)}


def _parse(argv: list[str]):
    """Parse flags; `--config FILE` supplies the defaults that the flags then override."""
    for words, (kind, settings) in _CONFIGURED.items():
        if tuple(argv[: len(words)]) == words:
            args, prog = argv[len(words) :], " ".join(["eqjax", *words])
            command = tyro.cli(kind, args=args, prog=prog)
            if command.config is not None:
                default = dataclasses.replace(command, settings=settings.load(command.config))
                command = tyro.cli(kind, args=args, prog=prog, default=default)
            return command
    return tyro.cli(
        _Command,  # pyright: ignore[reportArgumentType]
        args=argv,
        prog="eqjax",
        description="Equilibrium models that settle, and learn by settling again.",
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `eqjax` command."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        command = _parse(sys.argv[1:] if argv is None else argv)
        _use_compilation_cache()
        _RUN[type(command)](command)
    except BrokenPipeError:
        os._exit(1)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _use_compilation_cache() -> None:
    """Keep compiled programs between processes, so that a second run starts at once."""
    import jax

    from ..language import cache_folder

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
