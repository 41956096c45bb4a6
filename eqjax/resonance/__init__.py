"""Adaptive resonance: fuzzy ART, its continuous field, ARLL; and AEON, which learns by how learning goes.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
import equinox as eqx
import optax

key = jax.random.key(1)
inputs = ej.resonance.complement_code(jnp.array([[0.1, 0.1], [0.9, 0.9], [0.1, 0.2]]))
art = ej.resonance.FuzzyART.empty(4, 8, vigilance=0.8)
config = ej.language.GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=2)
gpt2 = ej.language.GPT2.init(config, key)
```
"""

from .._extras import require as _require

_require("language")

from ._aeon import (
    AeonBackprop as AeonBackprop,
    AeonGate as AeonGate,
    AeonGPT2 as AeonGPT2,
    Biased as Biased,
    Coupling as Coupling,
    Resonance as Resonance,
)
from ._aeon_control import (
    LossController as LossController,
    ResonantState as ResonantState,
    resonant_adamw as resonant_adamw,
)
from ._arll import (
    ARLL as ARLL,
    AbstractTap as AbstractTap,
    HeadTap as HeadTap,
    LayerTap as LayerTap,
    nearest_distance as nearest_distance,
    squash as squash,
)
from ._art import (
    AdaptiveResonance as AdaptiveResonance,
    FuzzyART as FuzzyART,
    SimpleARTMAP as SimpleARTMAP,
    complement_code as complement_code,
    stacked as stacked,
)
