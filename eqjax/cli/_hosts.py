"""One command on several hosts: each starts it with the same flags, and says which of them it is."""

import os
import sys

import jax

_FLAGS = ("--coordinator", "--hosts", "--host")


def with_hosts(argv: list[str]) -> list[str]:
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
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(*_checked(told))
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
