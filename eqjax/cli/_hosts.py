"""One command on several hosts: each starts it with the same flags, and says which of them it is."""

import contextlib
import os
import sys
import traceback

import jax

_FLAGS = ("--coordinator", "--hosts", "--host")
_SILENT = 30  # seconds after which a host that says nothing is taken to be dead


# Why not as Python ends by itself: on its way out it waits for the other hosts, which wait for this one in the middle of a sum.
# After minutes all are aborted, with a page of addresses below what had gone wrong.
@contextlib.contextmanager
def ends_with_all():
    """Of several hosts each that fails ends at once, and says what can be done; and with it end the others."""
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
            what = str(error).partition("\n")[0] or type(error).__name__
            said = f"error: host {jax.process_index()} of {jax.process_count()} has ended: {what}"
            print(
                f"{said}\nWhere another host has ended, this is how it shows. The last checkpoint is whole: start all of "
                "them again, with --resume.",
                file=sys.stderr,
            )
        if code not in (None, 0):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
        raise


def join_hosts(argv: list[str]) -> list[str]:
    """`argv` without the flags that join hosts, which is done, before anything is computed.

    `--coordinator ADDRESS:PORT` (of host 0) with `--hosts` (how many) and `--host` (which, from 0), or `--coordinator slurm`,
    which knows all three from SLURM's variables. Only host 0 prints.
    """
    told, rest = {}, []
    words = iter(word for flag in argv for word in _parts(flag))
    for word in words:
        if word not in _FLAGS:
            rest.append(word)
        elif (value := next(words, None)) is None:
            raise ValueError(f"{word} needs a value.")
        else:
            told[word] = value
    if not told:
        return argv
    if told == {"--coordinator": "slurm"}:
        if "SLURM_JOB_ID" not in os.environ:
            raise ValueError("--coordinator slurm: this is no job of SLURM's. Start it by `srun`.")
        jax.distributed.initialize(heartbeat_timeout_seconds=_SILENT)
    else:
        jax.distributed.initialize(*_checked(told), heartbeat_timeout_seconds=_SILENT)
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return rest


def _parts(word: str) -> list[str]:
    name, equals, value = word.partition("=")
    return [name, value] if equals and name in _FLAGS else [word]


def _checked(told: dict[str, str]) -> tuple[str, int, int]:
    if missing := [flag for flag in _FLAGS if flag not in told]:
        raise ValueError(f"{', '.join(missing)}: several hosts need all of {', '.join(_FLAGS)}.")
    address, count, which = (told[flag] for flag in _FLAGS)
    if ":" not in address:
        raise ValueError(f"--coordinator must be ADDRESS:PORT of host 0, or slurm, got {address}.")
    if not (count.isdigit() and which.isdigit() and int(which) < int(count)):
        raise ValueError(
            f"--host must be a number from 0 to below that of --hosts, got --host {which} --hosts {count}."
        )
    return address, int(count), int(which)
