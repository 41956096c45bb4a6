"""Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), on Hugging Face's tokenizers."""

import dataclasses
import functools
import json
import operator
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from .._checks import check_count, check_kind
from .._files import write_text
from ._gpt2 import GPT2
from ._hub import ADDED, TOKENIZER_CONFIG, read_json, resolved

END_OF_TEXT = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class BPETokenizer:
    """GPT-2's tokenizer. Every text can be encoded; `decode(encode(text))` is the text again.

    Two tokenizers are equal if their `text` is, and `BPETokenizer(tokenizer.text)` is a copy.

    **Arguments:** `text`: the contents of a `tokenizer.json`. See `BPETokenizer.load` and `train_bpe`.

    ```python
    tokenizer = ej.language.train_bpe(["settle and settle"], size=260)
    again = ej.language.BPETokenizer(tokenizer.text)
    assert again == tokenizer and again.decode(again.encode("settle")) == "settle"
    ```
    """

    text: str

    def __post_init__(self):
        _ = self._tokenizer  # what is no tokenizer is refused here

    @classmethod
    def load(cls, source: str | os.PathLike) -> "BPETokenizer":
        """Read a `tokenizer.json`, or a folder that has one, or has `vocab.json` and `merges.txt` (and more tokens
        in `added_tokens.json` or `tokenizer_config.json`); or that of a model by its name, as `load_gpt2` does."""
        path = Path(source)
        path = path if path.is_file() else resolved(source)
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            try:
                return cls(file.read_text("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not UTF-8 text: {error}") from None
        vocabulary, merges = path / "vocab.json", path / "merges.txt"
        if not (vocabulary.is_file() and merges.is_file()):
            raise ValueError(
                f"{path} has no tokenizer: give a tokenizer.json, or a folder with one or with vocab.json and "
                "merges.txt."
            )
        try:
            model = tokenizers.models.BPE.from_file(str(vocabulary), str(merges))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{vocabulary} and {merges} make no tokenizer: {error}") from None
        tokenizer = _byte_level(model)
        if tokenizer.token_to_id(END_OF_TEXT) is not None:
            tokenizer.add_special_tokens([END_OF_TEXT])
        for number, token in sorted(_added(path).items()):
            tokenizer.add_tokens([token])
            if (found := tokenizer.token_to_id(token.content)) != number:
                raise ValueError(
                    f"{path} adds the token {token.content!r} as {number}, but it comes as {found}: added tokens "
                    "follow the vocabulary without a gap. Give the folder's tokenizer.json."
                )
        return cls(tokenizer.to_str())

    def save(self, path: str | os.PathLike) -> None:
        """Write `tokenizer.json`, under that name if `path` is a folder."""
        path = Path(path)
        write_text(path / "tokenizer.json" if path.is_dir() else path, self.text)

    @functools.cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        try:
            tokenizer = tokenizers.Tokenizer.from_str(self.text)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"`text` is not the contents of a tokenizer.json: {error}") from None
        # Files made for training in batches may cut or fill up every text, without a word.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs merged, first one first, in GPT-2's letters for bytes (a space is `Ġ`)."""
        pairs = json.loads(self.text)["model"]["merges"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in pairs)
        return [(first, second) for first, second in pairs]

    @property
    def end(self) -> int | None:
        """The id of `<|endoftext|>`, GPT-2's mark between documents; None if there is none."""
        return self._tokenizer.token_to_id(END_OF_TEXT)

    @property
    def cuts_at_spaces(self) -> bool:
        """Whether no token goes on from a word to a space, as in GPT-2: a text may then be encoded in pieces."""
        told = json.loads(self.text)
        words, normal = told.get("pre_tokenizer") or {}, told.get("normalizer")
        plain = lambda token: not (token.get("rstrip") or re.search(r"\s", token["content"]))
        return (
            words.get("type") == "ByteLevel"
            and words.get("use_regex", True)
            and (normal is None or normal.get("type") == "NFC")
            and all(map(plain, told.get("added_tokens") or []))
        )

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32; `<|endoftext|>` in the text becomes its one token."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids) -> str:
        """The text of token ids, special tokens included; `ValueError` for an id that is none."""
        ids = [int(i) for i in np.asarray(ids).ravel()]
        wrong = [i for i in ids if i < 0 or self._tokenizer.id_to_token(i) is None]
        if wrong:
            raise ValueError(
                f"token ids {sorted(set(wrong))[:5]} are not in the vocabulary of {self.size} tokens. Do they come "
                "from a model with another tokenizer?"
            )
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def check(self, model: GPT2) -> None:
        """`ValueError` unless `model` has an embedding for every token."""
        if self.size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.size} tokens, but the model's vocab_size is {model.config.vocab_size}. Use "
                "the tokenizer that the model was trained with, or a model with at least as many tokens."
            )


def train_bpe(texts: Iterable[str], size: int) -> BPETokenizer:
    """Learn a byte-level BPE: start from the 256 bytes, and merge the commonest pair again and again.

    **Arguments:** `texts`: any iterable of texts. `size`: tokens in all, at least 257 (the bytes and
    `<|endoftext|>`, which is token 0); fewer come out if no pair is left.

    ```python
    tokenizer = ej.language.train_bpe(["settle and settle"], size=260)
    assert tokenizer.decode(tokenizer.encode("unsettled")) == "unsettled"
    ```
    """
    check_count(0, size=size)
    if size < 257:
        raise ValueError(f"`size` must be at least 257, 256 bytes and {END_OF_TEXT}, got {size}.")
    if isinstance(texts, str):
        raise ValueError("`texts` must be an iterable of texts, got one text: pass `[text]`.")
    check_kind(Iterable, "an iterable of texts", texts=texts)
    texts = map(_text, texts)
    tokenizer = _byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BPETokenizer(tokenizer.to_str())


def _text(value: Any) -> str:
    check_kind(str, "a text", texts=value)
    return value


def _byte_level(model: tokenizers.models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _added(folder: Path) -> dict[int, tokenizers.AddedToken]:
    """The tokens beside the vocabulary, by their ids."""
    old, new = (
        {} if not path.is_file() else read_json(path)
        for path in (folder / ADDED, folder / TOKENIZER_CONFIG)
    )
    try:
        plain = {
            operator.index(number): tokenizers.AddedToken(token) for token, number in old.items()
        }
        told = new.get("added_tokens_decoder") or {}
        return plain | {
            int(number): tokenizers.AddedToken(**token) for number, token in told.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"the tokens that {ADDED} or {TOKENIZER_CONFIG} of {folder} add cannot be read: {error}"
        ) from None
