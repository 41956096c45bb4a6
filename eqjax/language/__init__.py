"""Text in, text out: corpora, tokenisers, the equilibrium language model, GPT-2, generation.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
import tempfile
from pathlib import Path

import equinox as eqx
import numpy as np

key, ids = jax.random.key(1), np.arange(40, dtype=np.int32) % 8
config = ej.language.GPT2Config(vocab_size=8, n_positions=6, n_embd=4, n_layer=1, n_head=2)
gpt2, tokens = ej.language.GPT2.init(config, key), jnp.asarray(ids[:6])
state = jax.random.normal(key, (6, 4))
```
"""

from .._extras import require as _require

_require("language")

from ._attend import (
    Attend as Attend,
    Cache as Cache,
    Cached as Cached,
    DotProduct as DotProduct,
    Heads as Heads,
    RingAttention as RingAttention,
    weights as weights,
)
from ._bpe import BPETokenizer as BPETokenizer, train_bpe as train_bpe
from ._corpus import (
    CharTokenizer as CharTokenizer,
    Corpus as Corpus,
    bigram_cross_entropy as bigram_cross_entropy,
    cache_folder as cache_folder,
    read_text as read_text,
    tiny_shakespeare as tiny_shakespeare,
    unigram_entropy as unigram_entropy,
)
from ._datasets import load_corpus as load_corpus
from ._equilibrium_lm import (
    Embedding as Embedding,
    Readout as Readout,
    equilibrium_lm as equilibrium_lm,
    without_attention as without_attention,
)
from ._generate import (
    Continuation as Continuation,
    Sampler as Sampler,
    SettledContinuation as SettledContinuation,
    autoregress as autoregress,
    generate as generate,
)
from ._gpt2 import (
    GPT2 as GPT2,
    GPT2Block as GPT2Block,
    GPT2Norm as GPT2Norm,
    Linear as Linear,
    SelfAttention as SelfAttention,
    counted as counted,
    known as known,
)
from ._gpt2_config import GPT2Config as GPT2Config
from ._hub import (
    load_gpt2 as load_gpt2,
    opened as opened,
    read_json as read_json,
    replacing as replacing,
    resolved as resolved,
    save_gpt2 as save_gpt2,
)
from ._lora import (
    adapted_maps as adapted_maps,
    adapters as adapters,
    lora as lora,
    merge as merge,
    quantise as quantise,
)
from ._peft import load_adapters as load_adapters, save_adapters as save_adapters
from ._sequences import (
    DecoderLayer as DecoderLayer,
    EncoderLayer as EncoderLayer,
    PostNorm as PostNorm,
    PreNorm as PreNorm,
    RecurrentLayer as RecurrentLayer,
    SimpleRNNCell as SimpleRNNCell,
    look_ahead_mask as look_ahead_mask,
    padding_mask as padding_mask,
    sinusoidal_positions as sinusoidal_positions,
)
from ._tokens_file import at_spaces as at_spaces, tokens_file as tokens_file
from ._windows import (
    Streams as Streams,
    Windows as Windows,
    batches as batches,
    split as split,
    tiles as tiles,
)
