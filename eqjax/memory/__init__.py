"""A GPT-2 that remembers: slots, recurrences, evictions, and a memory that is a value.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
import tempfile
from pathlib import Path

import equinox as eqx

key, tokens = jax.random.key(1), jnp.arange(4)
config = ej.language.GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=2)
gpt2 = ej.language.GPT2.init(config, key)
remembering = ej.memory.MemoryGPT2(gpt2, capacity=5, key=key)
```
"""

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
