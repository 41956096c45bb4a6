"""Force fields: Equinox modules with the Diffrax signature `field(t, z, x) -> dz/dt`.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
tokens, key = jnp.ones((3, 4)), jax.random.key(1)
two, patterns = jnp.ones(2), jnp.eye(2)
stored = jnp.array([[1.0, 1.0, -1.0, -1.0]])
network = ej.fields.BinaryHopfield(ej.fields.hebb(stored))
```
"""

from ._associative import (
    AdiabaticMemory as AdiabaticMemory,
    AssociativeMemory as AssociativeMemory,
    ClampedMemory as ClampedMemory,
    LogCosh as LogCosh,
    Polynomial as Polynomial,
    Quadratic as Quadratic,
    Softmax as Softmax,
    Spherical as Spherical,
    hamming_memory as hamming_memory,
    pattern_memory as pattern_memory,
    xor_memory as xor_memory,
)
from ._base import (
    AbstractEnergyField as AbstractEnergyField,
    AbstractForceField as AbstractForceField,
    AbstractSplitField as AbstractSplitField,
    Realified as Realified,
    hyperparameter as hyperparameter,
    on_complex_vectors as on_complex_vectors,
    scalar as scalar,
    trainable as trainable,
)
from ._causal import AbstractCausalField as AbstractCausalField, written as written
from ._circuit import Crossbar as Crossbar, FiniteBandwidth as FiniteBandwidth, to_spice as to_spice
from ._connections import (
    SparseWeight as SparseWeight,
    arrivals as arrivals,
    check_weight as check_weight,
)
from ._energy_transformer import (
    AdiabaticTransformer as AdiabaticTransformer,
    Blocks as Blocks,
    Context as Context,
    EnergyTransformer as EnergyTransformer,
    EnergyTransformerLM as EnergyTransformerLM,
)
from ._feedforward import FeedForward as FeedForward, feed_forward_model as feed_forward_model
from ._hopfield import (
    Asynchronous as Asynchronous,
    BinaryHopfield as BinaryHopfield,
    ContinuousHopfield as ContinuousHopfield,
    Recall as Recall,
    Synchronous as Synchronous,
    hebb as hebb,
    pseudo_inverse as pseudo_inverse,
    recall as recall,
    storkey as storkey,
)
from ._kuramoto import (
    Kuramoto as Kuramoto,
    KuramotoNetwork as KuramotoNetwork,
    order_parameter as order_parameter,
)
from ._mismatch import Mismatched as Mismatched, perturbed as perturbed
from ._model import (
    AbstractEquilibriumModel as AbstractEquilibriumModel,
    EquilibriumModel as EquilibriumModel,
)
from ._monotone import MonotoneBlock as MonotoneBlock
from ._neurons import HodgkinHuxley as HodgkinHuxley, MorrisLecar as MorrisLecar
from ._oscillators import (
    Brusselator as Brusselator,
    FitzHughNagumo as FitzHughNagumo,
    Lorenz as Lorenz,
    StuartLandau as StuartLandau,
    VanDerPol as VanDerPol,
)
from ._parts import check_heads as check_heads, in_ring as in_ring
from ._recurrent import GainNetwork as GainNetwork, RecurrentField as RecurrentField
from ._spiking import (
    AbstractSynapse as AbstractSynapse,
    DeltaSynapse as DeltaSynapse,
    ExponentialSynapse as ExponentialSynapse,
    LeakyIntegrateAndFire as LeakyIntegrateAndFire,
    SpikingNetwork as SpikingNetwork,
)
from ._transformer import (
    EnergyBlock as EnergyBlock,
    RealBlock as RealBlock,
    ThickBlock as ThickBlock,
)
