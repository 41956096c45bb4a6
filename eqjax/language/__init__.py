"""Text in, text out: corpora, tokenisers, the equilibrium language model, generation."""

from .corpus import (
    Corpus as Corpus,
    bigram_cross_entropy as bigram_cross_entropy,
    load_corpus as load_corpus,
    read_text as read_text,
    tiny_shakespeare as tiny_shakespeare,
    unigram_entropy as unigram_entropy,
)
from .equilibrium_lm import (
    Embedding as Embedding,
    Readout as Readout,
    equilibrium_lm as equilibrium_lm,
    without_attention as without_attention,
)
from .generate import Sample as Sample, generate as generate
from .tokens import (
    CharTokenizer as CharTokenizer,
    batches as batches,
    split as split,
    tiles as tiles,
)
