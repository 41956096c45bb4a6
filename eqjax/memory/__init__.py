"""A GPT-2 that remembers: slots, recurrences, evictions, and a memory that is a value."""

from .._extras import require as _require

_require("language")

from ._attention_memory import AttentionWithMemory as AttentionWithMemory
from ._memory import Memory as Memory, load_memory as load_memory, save_memory as save_memory
from ._memory_gpt2 import MemoryGPT2 as MemoryGPT2, memory_parameters as memory_parameters
from ._segments import reply as reply, segment_loss as segment_loss
from ._slots import (
    Fifo as Fifo,
    LeastAttended as LeastAttended,
    LeastSalient as LeastSalient,
    Slots as Slots,
    Summarise as Summarise,
)
