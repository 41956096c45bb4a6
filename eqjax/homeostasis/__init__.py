"""What holds a field settled while it learns: penalties, controllers, homeostats, rails.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
import optax


class Leak(ej.AbstractForceField):
    def __call__(self, t, z, x):
        return x - z


leak, key = Leak(), jax.random.key(1)
report = ej.OracleAdjoint()(model, ej.squared_error, batch).report
tokens = jnp.ones((3, 4))
alone = ej.fields.ThickBlock(4, 2, attention_gain=0.0, residual_scale=0.0, key=key)  # F = x - 2 z
```
"""

from ._controllers import (
    PI as PI,
    AbstractController as AbstractController,
    Constant as Constant,
    Multiplicative as Multiplicative,
)
from ._homeostat import (
    AbstractHomeostat as AbstractHomeostat,
    Homeostat as Homeostat,
    HomeostatState as HomeostatState,
    growth_homeostat as growth_homeostat,
    penalty_signal as penalty_signal,
    rejected_signal as rejected_signal,
    residual_signal as residual_signal,
    unsettled_signal as unsettled_signal,
)
from ._penalties import (
    antisymmetry_penalty as antisymmetry_penalty,
    chain_gain as chain_gain,
    chain_penalty as chain_penalty,
    growth_penalty as growth_penalty,
    growth_rate as growth_rate,
    jacobian_penalty as jacobian_penalty,
    lognorm_penalty as lognorm_penalty,
    residual_penalty as residual_penalty,
    spectral_penalty as spectral_penalty,
    token_growth_penalty as token_growth_penalty,
    token_growth_rates as token_growth_rates,
)
from ._rails import cap_norms as cap_norms, rails as rails
