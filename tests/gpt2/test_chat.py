"""A talk with a plain GPT-2 of a folder is what transformers would say to all that was said before."""

import io
import sys

import jax
import numpy as np
import pytest
from gpt2_reference import torch, transformers

from eqjax.cli import main
from eqjax.language import GPT2, GPT2Config, save_gpt2, train_bpe

LINES = ["once more settle, and then answer; settle\n", "answer and settle, then answer, settle\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    tokenizer = train_bpe(["settle and answer then settle once more\n"] * 20, 300)
    config = GPT2Config(tokenizer.size, 24, 16, 1, 2, eos_token_id=tokenizer.end)
    save_gpt2(GPT2.init(config, jax.random.key(3)), path)
    tokenizer.save(path)
    return path, tokenizer


def greedy(theirs, said, count, ends):
    """The likeliest tokens, one after the other."""
    new = []
    while len(new) < count and not set(new) & ends:
        with torch.no_grad():
            logits = theirs(torch.tensor([[*said, *new]])).logits
        new.append(int(logits[0, -1].argmax()))
    return new


def test_a_talk_with_a_plain_folder(folder, monkeypatch, capsys):
    path, tokenizer = folder
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(LINES)))
    main(["--quiet", "gpt2", "chat", str(path), "--count", "6", "--temperature", "0"])
    theirs = transformers.GPT2LMHeadModel.from_pretrained(path).double().eval()
    ends = {tokenizer.end, int(tokenizer.encode("\n")[0])}
    said, expected = [], ""
    for line in LINES:
        said += tokenizer.encode(line).tolist()
        new = greedy(
            theirs, said[-18:], 6, ends
        )  # the end of the talk that leaves room for an answer
        said, expected = said + new, expected + tokenizer.decode(np.array(new)).strip("\n") + "\n"
    assert len(said) > 24  # more than the context
    assert capsys.readouterr().out == expected


def test_a_plain_folder_has_no_memory_and_an_answer_needs_room(folder, tmp_path, capsys):
    for flags, message in (
        (["--memory", str(tmp_path / "m")], "has no memory"),
        (["--count", "24"], "--count 24 leaves no room"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["gpt2", "chat", str(folder[0]), *flags])
        assert stop.value.code == 2 and message in capsys.readouterr().err
