"""Text from a data set, with the library `datasets` played by a few rows."""

import sys
import types

import pytest

from eqjax.language import load_corpus


class Rows(list):
    column_names = ("text", "label")
    _fingerprint = "f"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    calls = []

    def load_dataset(path, config, *, split):
        calls.append((path, config, split))
        if path == "nobody/nothing":
            raise FileNotFoundError("no such data set")
        return Rows({"text": f"row {i} of {split}", "label": i} for i in range(3))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr("eqjax.language._datasets.require", lambda extra: None)
    monkeypatch.setenv("EQJAX_CACHE", str(tmp_path / "cache"))
    return calls


def test_a_data_set_is_a_text(asked):
    found = load_corpus("datasets:someone/stories")
    assert found.text == "row 0 of train\n\nrow 1 of train\n\nrow 2 of train"
    assert found.source == "the data set someone/stories (split train, column text)"
    assert load_corpus("datasets:wiki@raw:test:text").text.startswith("row 0 of test")
    assert asked == [("someone/stories", None, "train"), ("wiki", "raw", "test")]


def test_what_is_no_text_is_told(asked):
    for name, error, message in (
        ("datasets:", ValueError, "write datasets:OWNER/NAME"),
        ("datasets:a/b:c:d:e", ValueError, "write datasets:OWNER/NAME"),
        ("datasets:a/b:train:words", ValueError, "no column words, but text, label"),
        (
            "datasets:a/b:train:label",
            ValueError,
            "row 0 of the data set has no text in column label",
        ),
        ("datasets:nobody/nothing", ConnectionError, "nobody/nothing could not be loaded"),
    ):
        with pytest.raises(error, match=message):
            load_corpus(name)
