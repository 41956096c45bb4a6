"""Force fields: Equinox modules with the Diffrax signature `field(t, z, x) -> dz/dt`."""

from .associative import (
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
from .base import (
    AbstractEnergyField as AbstractEnergyField,
    AbstractForceField as AbstractForceField,
    AbstractSplitField as AbstractSplitField,
    Realified as Realified,
    hyperparameter as hyperparameter,
    trainable as trainable,
)
from .circuit import (
    Crossbar as Crossbar,
    FiniteBandwidth as FiniteBandwidth,
    to_spice as to_spice,
)
from .connections import SparseWeight as SparseWeight
from .energy_transformer import (
    AdiabaticTransformer as AdiabaticTransformer,
    Blocks as Blocks,
    Context as Context,
    EnergyTransformer as EnergyTransformer,
    EnergyTransformerLM as EnergyTransformerLM,
)
from .feedforward import FeedForward as FeedForward, feed_forward_model as feed_forward_model
from .firing import (
    AbstractScheme as AbstractScheme,
    EventDriven as EventDriven,
    FixedStep as FixedStep,
    SpikeTrain as SpikeTrain,
    SpikingState as SpikingState,
    fire as fire,
)
from .hopfield import (
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
from .kuramoto import (
    Kuramoto as Kuramoto,
    KuramotoNetwork as KuramotoNetwork,
    order_parameter as order_parameter,
)
from .mismatch import Mismatched as Mismatched, perturbed as perturbed
from .model import (
    AbstractEquilibriumModel as AbstractEquilibriumModel,
    EquilibriumModel as EquilibriumModel,
)
from .monotone import MonotoneBlock as MonotoneBlock
from .neurons import HodgkinHuxley as HodgkinHuxley, MorrisLecar as MorrisLecar
from .oscillators import (
    Brusselator as Brusselator,
    FitzHughNagumo as FitzHughNagumo,
    Lorenz as Lorenz,
    StuartLandau as StuartLandau,
    VanDerPol as VanDerPol,
)
from .recurrent import RecurrentField as RecurrentField
from .sequences import (
    DecoderLayer as DecoderLayer,
    EncoderLayer as EncoderLayer,
    PostNorm as PostNorm,
    PreNorm as PreNorm,
    Recurrent as Recurrent,
    SimpleRNNCell as SimpleRNNCell,
    look_ahead_mask as look_ahead_mask,
    padding_mask as padding_mask,
    sinusoidal_positions as sinusoidal_positions,
)
from .spiking import (
    AbstractSynapse as AbstractSynapse,
    DeltaSynapse as DeltaSynapse,
    ExponentialSynapse as ExponentialSynapse,
    LeakyIntegrateAndFire as LeakyIntegrateAndFire,
    SpikingNetwork as SpikingNetwork,
)
from .transformer import (
    EnergyBlock as EnergyBlock,
    RealBlock as RealBlock,
    ThickBlock as ThickBlock,
)
