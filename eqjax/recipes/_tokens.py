"""The tokens that a run learns: the characters of its text, or byte pairs learned from it."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from .._files import TextFile, pieces
from ..language import BPETokenizer, CharTokenizer, at_spaces, tokens_file, train_bpe
from ..training import Material

TokensName = Literal["characters", "bpe"]


def check_vocabulary(tokens: TokensName, vocabulary: int) -> None:
    """`ValueError` for a vocabulary that has no room for all bytes."""
    if tokens == "bpe" and vocabulary < 257:
        raise ValueError(
            f"`vocabulary` must be at least 257, the bytes and an end of text, got {vocabulary}."
        )


def learned(
    tokens: TokensName, vocabulary: int, text: str | TextFile
) -> CharTokenizer | BPETokenizer:
    """The tokenizer of a model that starts from nothing."""
    if tokens == "characters":
        return CharTokenizer.from_text(text)
    return train_bpe(at_spaces(pieces(text)), vocabulary)


def tokenised(material: Material, folder: Path) -> np.ndarray:
    """The text as token ids; those of a text that is too long to hold lie in a file of the run's folder, which host 0 writes."""
    tokenizer, text = material.tokenizer, material.text
    if isinstance(text, str):
        return tokenizer.encode(text)
    about = json.dumps([material.digest, kept(tokenizer)])
    path = folder / f"tokens-{hashlib.sha256(about.encode()).hexdigest()[:16]}.bin"
    while jax.process_index() > 0 and not path.exists():
        time.sleep(0.5)
    return tokens_file(path, tokenizer, text)


def kept(tokenizer: CharTokenizer | BPETokenizer) -> dict[str, Any]:
    """What a run keeps of it, of which `recalled` makes it again."""
    if isinstance(tokenizer, CharTokenizer):
        return {"characters": tokenizer.characters}
    return {"byte_pairs": tokenizer.text}


def recalled(about: dict[str, Any]) -> CharTokenizer | BPETokenizer:
    """The tokenizer of a run, from what it kept."""
    letters = about.get("characters")
    return BPETokenizer(about["byte_pairs"]) if letters is None else CharTokenizer(letters)
