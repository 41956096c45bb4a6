"""What more than one command checks before it begins."""

from pathlib import Path
from typing import Any

from ..training import Settings


def check_resume(resume: Path | None, settings: Settings) -> None:
    """`ValueError` if settings are given beside a run to go on with."""
    if resume and settings != type(settings)():
        raise ValueError(
            "--resume goes on with the settings of its run and takes no others; leave the other flags out."
        )


def check_prompt(prompt: str) -> None:
    """`ValueError` if there is nothing to go on from."""
    if not prompt:
        raise ValueError("--prompt is empty: give at least one character to go on from.")


def encoded(tokenizer: Any, prompt: str):
    """The token ids of `--prompt`; `ValueError` if it has what the tokenizer does not know."""
    try:
        return tokenizer.encode(prompt)
    except ValueError as error:
        raise ValueError(f"--prompt: {error}") from None
