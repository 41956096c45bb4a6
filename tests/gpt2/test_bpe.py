"""Byte-pair tokens against their definition, and their files."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import regex
import transformers
from hypothesis import given, strategies as st

from eqjax.language import (
    BPETokenizer,
    train_bpe,
)

HUGS = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}


def test_the_textbook_corpus():
    tokenizer = train_bpe([word for word, n in HUGS.items() for _ in range(n)], 260)
    pairs = Counter()
    for word, n in HUGS.items():
        for pair in zip(word, word[1:], strict=False):
            pairs[pair] += n
    assert pairs.most_common(1) == [(("u", "g"), 20)]
    assert tokenizer.merges == [("u", "g"), ("u", "n"), ("h", "ug")]
    assert tokenizer.size == 260 and tokenizer.end == 0
    assert len(tokenizer.encode("hugs")) == 2 and len(tokenizer.encode("bug")) == 2


@given(text=st.text(max_size=30))
def test_every_text_comes_back(text):
    tokenizer = train_bpe(["the cat sat on the mat, the cat sat"], 270)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and tokenizer.decode(ids) == text


def byte_pairs(text, merges):
    """Byte-pair encoding from its definition: split into words, then apply the merges in their order."""
    words = regex.findall(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", text
    )
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
    pieces = []
    for word in words:
        parts = [letters[byte] for byte in word.encode()]
        for pair in merges:
            joined, i = [], 0
            while i < len(parts):
                step = 2 if tuple(parts[i : i + 2]) == pair else 1
                joined.append("".join(parts[i : i + step]))
                i += step
            parts = joined
        pieces += parts
    return pieces


def test_tokens_are_those_of_the_definition():
    text = (
        "It's what they've said: we'll settle, DON'T we?  naïve café\n\n\tdef f(x):  # 12 345\r\n"
        "Ελληνικά Русский 日本語の文章 한국어 ½ ℝ²\u2028 e\u0301 👩‍👩‍👧 🏳️‍🌈 🇩🇪 😀😀 \x00\ufeff end "
    )
    tokenizer = train_bpe([text * 3, "settle settles settled " * 9], 420)
    vocabulary = json.loads(tokenizer.text)["model"]["vocab"]
    assert len(tokenizer.merges) > 100
    for sample in (text, text[::-1], text.upper(), text.replace(" ", "  ")):
        expected = [vocabulary[piece] for piece in byte_pairs(sample, tokenizer.merges)]
        assert tokenizer.encode(sample).tolist() == expected


def test_tokenizers_from_files(tmp_path):
    tokenizer = train_bpe(["the cat sat on the mat, the cat sat"], 270)
    text = "the hat sat<|endoftext|> on ÄÖ"
    ids = tokenizer.encode(text)
    assert tokenizer.end in ids and tokenizer.decode(ids) == text
    assert BPETokenizer(tokenizer.text) == tokenizer
    tokenizer.save(tmp_path)
    assert BPETokenizer.load(tmp_path) == tokenizer
    assert BPETokenizer.load(tmp_path / "tokenizer.json") == tokenizer

    old = tmp_path / "old"
    old.mkdir()
    model = json.loads(tokenizer.text)["model"]
    (old / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in tokenizer.merges)
    (old / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    assert np.array_equal(BPETokenizer.load(old).encode(text), ids)
    theirs = transformers.GPT2Tokenizer.from_pretrained(old)
    assert theirs.encode(text) == ids.tolist()

    (old / "merges.txt").write_text("#version: 0.2\nqq zz\n")
    with pytest.raises(ValueError, match="make no tokenizer"):
        BPETokenizer.load(old)
    (old / "merges.txt").unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        BPETokenizer.load(old)
    cutting = json.loads(tokenizer.text) | {
        "truncation": {
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        }
    }
    assert np.array_equal(BPETokenizer(json.dumps(cutting)).encode(text), ids)
    with pytest.raises(ValueError, match="not the contents of a tokenizer.json"):
        BPETokenizer("{}")
    (old / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        BPETokenizer.load(old)


def test_tokenizers_that_do_not_fit(model):
    tokenizer = train_bpe(["the cat"], 257)
    with pytest.raises(ValueError, match="has 257 tokens, but the model's vocab_size is 97"):
        tokenizer.check(model)
    with pytest.raises(ValueError, match=r"\[-1, 257\] are not in the vocabulary of 257"):
        tokenizer.decode([5, 257, -1])
    with pytest.raises(ValueError, match="`size` must be at least 257"):
        train_bpe(["the cat"], 256)
    with pytest.raises(ValueError, match="got one text"):
        train_bpe("the cat", 300)
    large = dataclasses.replace(model, config=dataclasses.replace(model.config, vocab_size=257))
    tokenizer.check(large)


def old_folder(path, **files):
    """A folder without tokenizer.json, whose vocabulary has 260 tokens."""
    tokenizer = train_bpe(["the cat sat on the mat, the cat sat"], 260)
    vocabulary = json.loads(tokenizer.text)["model"]["vocab"]
    merges = "".join(f"{first} {second}\n" for first, second in tokenizer.merges)
    (path / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")
    for name, content in ({"vocab": vocabulary} | files).items():
        (path / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return path


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"<bot>": 261, "<user>": 260}},
        {
            "tokenizer_config": {
                "added_tokens_decoder": {"260": {"content": "<user>", "lstrip": True}}
            }
        },
    ],
    ids=lambda files: next(iter(files)),
)
def test_added_tokens_of_old_folders_are_those_of_transformers(files, tmp_path):
    ours = BPETokenizer.load(old_folder(tmp_path, **files))
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    for text in ("<user> hi", "the cat <user><bot> sat", "<|endoftext|>on"):
        assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False)
    assert ours.decode([260]) == "<user>" and ours.encode("<user> hi")[0] == 260
    assert BPETokenizer(ours.text).encode("<user>").tolist() == [260]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"added_tokens": {"<user>": 273}}, "'<user>' as 273, but it comes as 260"),
        ({"added_tokens": {"<user>": 5}}, "'<user>' as 5, but it comes as 260"),
        ({"added_tokens": {"<user>": "260"}}, "added_tokens.json .* cannot be read"),
        ({"tokenizer_config": {"added_tokens_decoder": {"260": "<user>"}}}, "cannot be read"),
        ({"tokenizer_config": {"added_tokens_decoder": ["<user>"]}}, "cannot be read"),
    ],
)
def test_added_tokens_that_make_no_sense_are_refused(files, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        BPETokenizer.load(old_folder(tmp_path, **files))
