"""The tokens that a run learns: the characters of its text, or byte pairs learned from it."""

from typing import Any, Literal

from ..language import BPETokenizer, CharTokenizer, train_bpe

TokensName = Literal["characters", "bpe"]


def check_vocabulary(tokens: TokensName, vocabulary: int) -> None:
    """`ValueError` for a vocabulary that has no room for all bytes."""
    if tokens == "bpe" and vocabulary < 257:
        raise ValueError(
            f"`vocabulary` must be at least 257, the bytes and an end of text, got {vocabulary}."
        )


def learned(tokens: TokensName, vocabulary: int, text: str) -> CharTokenizer | BPETokenizer:
    """The tokenizer of a model that starts from nothing."""
    return (
        CharTokenizer.from_text(text) if tokens == "characters" else train_bpe([text], vocabulary)
    )


def kept(tokenizer: CharTokenizer | BPETokenizer) -> dict[str, Any]:
    """What a run keeps of it, of which `recalled` makes it again."""
    if isinstance(tokenizer, CharTokenizer):
        return {"characters": tokenizer.characters}
    return {"byte_pairs": tokenizer.text}


def recalled(about: dict[str, Any]) -> CharTokenizer | BPETokenizer:
    """The tokenizer of a run, from what it kept."""
    letters = about.get("characters")
    return BPETokenizer(about["byte_pairs"]) if letters is None else CharTokenizer(letters)
