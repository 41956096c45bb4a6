"""Text in, text out: corpora, tokenisers, the equilibrium language model, GPT-2, generation."""

from .aeon import (
    AeonGPT2 as AeonGPT2,
    Biased as Biased,
    Coupling as Coupling,
    GatedRecurrence as GatedRecurrence,
    Resonance as Resonance,
)
from .art import (
    FuzzyART as FuzzyART,
    SimpleARTMAP as SimpleARTMAP,
    complement_code as complement_code,
)
from .attend import (
    Cache as Cache,
    Cached as Cached,
    DotProduct as DotProduct,
    Heads as Heads,
)
from .attention_memory import AttentionWithMemory as AttentionWithMemory
from .bpe import BPETokenizer as BPETokenizer, train_bpe as train_bpe
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
from .gpt2 import GPT2 as GPT2, Block as Block
from .gpt2_config import GPT2Config as GPT2Config
from .hub import load_gpt2 as load_gpt2, save_gpt2 as save_gpt2
from .lora import (
    adapters as adapters,
    load_adapters as load_adapters,
    lora as lora,
    merge as merge,
    save_adapters as save_adapters,
)
from .memory import Memory as Memory, load_memory as load_memory, save_memory as save_memory
from .memory_gpt2 import MemoryGPT2 as MemoryGPT2, memory_parameters as memory_parameters
from .quantise import quantise as quantise
from .resonance import (
    ARLL as ARLL,
    AbstractTap as AbstractTap,
    AdaptiveResonance as AdaptiveResonance,
    ARLLState as ARLLState,
    HeadTap as HeadTap,
    LayerTap as LayerTap,
    nearest_distance as nearest_distance,
    squash as squash,
)
from .sampling import Continuation as Continuation, Sampler as Sampler, autoregress as autoregress
from .segments import reply as reply, segment_loss as segment_loss
from .slots import (
    Fifo as Fifo,
    LeastAttended as LeastAttended,
    LeastSalient as LeastSalient,
    Slots as Slots,
    Summarise as Summarise,
)
from .tokens import (
    CharTokenizer as CharTokenizer,
    batches as batches,
    split as split,
    tiles as tiles,
)
