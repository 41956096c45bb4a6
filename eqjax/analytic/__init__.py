"""Elementary functions that are right on real and complex arrays; losses; arithmetic on trees.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
import equinox as eqx

key = jax.random.key(1)
q = jax.random.normal(key, (2, 3, 2))  # two heads, three tokens
z = jax.lax.complex(start, x)  # i, i, i, i
```
"""

from ._devices import (
    on_shards as on_shards,
    thrown as thrown,
    varies as varies,
    vary_like as vary_like,
    while_loop as while_loop,
)
from ._functions import (
    at_least_float32 as at_least_float32,
    attention as attention,
    causal_mask as causal_mask,
    gelu as gelu,
    heads as heads,
    is_complex as is_complex,
    layer_norm as layer_norm,
    logsumexp as logsumexp,
    matmul as matmul,
    rms_norm as rms_norm,
    scale as scale,
    shift as shift,
    softmax as softmax,
    softplus as softplus,
    tree_cast as tree_cast,
    tree_complex as tree_complex,
    tree_finite as tree_finite,
    tree_held as tree_held,
    tree_where as tree_where,
    unheads as unheads,
)
from ._losses import (
    FactoredLogits as FactoredLogits,
    check_ids as check_ids,
    cross_entropy as cross_entropy,
    rows as rows,
    squared_error as squared_error,
)
from ._marked import for_marked as for_marked
from ._ring import (
    TokenRing as TokenRing,
    ring_attention as ring_attention,
    ring_size as ring_size,
)
