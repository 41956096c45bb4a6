"""A text that is too long to hold trains what it trains in memory, bit by bit."""

import json

import equinox as eqx
import jax
import numpy as np
import pytest

from eqjax import _files
from eqjax.language import (
    BPETokenizer,
    CharTokenizer,
    Streams,
    at_spaces,
    batches,
    bigram_cross_entropy,
    read_text,
    tokens_file,
    train_bpe,
    unigram_entropy,
)
from eqjax.recipes import GPT2Settings, open_run
from eqjax.training import Run

WORDS = "We'll be; or  not\n\n to be?\t12 34\xa0ÄÖ 🙂 e\u0301<|endoftext|> the\x1cend   "


@pytest.fixture
def long(monkeypatch):
    """Every text is too long, and is read in pieces of seven characters."""
    monkeypatch.setattr(_files, "IN_MEMORY", 0)
    monkeypatch.setattr(_files, "PIECE", 7)


def test_pieces_make_the_tokens_of_the_whole(tmp_path, long):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + (WORDS * 5).encode())
    text = read_text(path).text
    assert isinstance(text, _files.TextFile) and "".join(_files.pieces(text)) == WORDS * 5
    learned = train_bpe(at_spaces(_files.pieces(text)), 300)
    assert learned == train_bpe([WORDS * 5], 300) and learned.cuts_at_spaces
    other = json.loads(learned.text)
    other["pre_tokenizer"]["use_regex"] = False  # merges words and blanks: gets the text at once
    glued = BPETokenizer(json.dumps(other))
    assert not glued.cuts_at_spaces
    letters = CharTokenizer.from_text(text)
    for name, tokenizer in (("pairs", learned), ("glued", glued), ("letters", letters)):
        ids = tokens_file(tmp_path / name, tokenizer, text)
        assert isinstance(ids.base, np.memmap) and ids.dtype == np.int32
        np.testing.assert_array_equal(ids, tokenizer.encode(WORDS * 5))
    assert letters == CharTokenizer.from_text(WORDS)


def test_a_tokens_file_that_is_not_as_it_was_written_is_written_anew(tmp_path):
    path, letters = tmp_path / "tokens.bin", CharTokenizer("ab")
    want = tokens_file(path, letters, "abba").copy()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    for damaged in (data, data[:-1], b""):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(tokens_file(path, letters, "abba"), want)


def test_the_place_of_a_byte_that_is_no_text_is_told(tmp_path, long):
    path = tmp_path / "text.txt"
    path.write_bytes(b"ab " * 5000 + b"\xff")
    with pytest.raises(ValueError, match="byte 15000 is 0xff"):
        read_text(path)


def test_each_host_reads_its_rows_of_a_batch():
    ids = np.arange(50, dtype=np.int32)
    how = {"length": 4, "batch": 6, "seed": 3}
    for make in (batches, Streams):
        whole, parts = make(ids, **how), [make(ids, **how) for _ in range(3)]
        for _ in range(2):
            rows = [data.read(i, 3) for i, data in enumerate(parts)]
            for want, got in zip(next(whole), zip(*rows, strict=True), strict=True):
                np.testing.assert_array_equal(np.concatenate(got), want)
        assert parts[0].get_state() == whole.get_state()
    huge = np.broadcast_to(np.int32(0), 2**32 + 9)
    with pytest.raises(ValueError, match="`ids` must be less than 2³² tokens"):
        batches(huge, **how)


def test_counts_of_a_long_text_are_those_of_its_parts(monkeypatch):
    ids = np.random.default_rng(0).integers(0, 9, 301).astype(np.int32)
    ask = lambda: (unigram_entropy(ids), bigram_cross_entropy(ids[:200], ids[200:], 9))
    want = ask()
    for part in (100, 33, 7):
        monkeypatch.setattr("eqjax.language._corpus.PART", part)
        np.testing.assert_allclose(ask(), want, rtol=1e-14)


def test_a_run_on_a_long_text_is_that_on_the_same_text_in_memory(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 9)
    sizes = {"layers": 1, "heads": 1, "width": 8, "length": 8, "batch": 4, "steps": 2}
    arrays = lambda run: jax.tree.leaves(eqx.filter(run.model, eqx.is_array))
    start = lambda name: Run.start(
        GPT2Settings(text=text, out=tmp_path / name, evaluate_windows=4, save_every=1, **sizes)
    )
    held = start("held")
    held.train()
    monkeypatch.setattr(_files, "IN_MEMORY", 0)
    monkeypatch.setattr(_files, "PIECE", 7)
    run = start("long")
    text.write_text("it may go, or change")

    def stop(step, values):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run.train(on_step=stop)  # at the end of step 2, which is not kept
    again = open_run(tmp_path / "long")
    assert int(again.state.step) == 1 and not isinstance(again.material.text, str)
    again.train()
    for a, b in zip(arrays(held), arrays(again), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(held.train_ids, again.train_ids)
    assert held.evaluate(held.validation_ids) == again.evaluate(again.validation_ids)
    assert held.about()["text_sha256"] == again.about()["text_sha256"]
    (tmp_path / "long" / "text.txt").write_text("another")
    with pytest.raises(ValueError, match="not the text that this run was trained on"):
        open_run(tmp_path / "long")
