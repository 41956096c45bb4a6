"""Force fields: Equinox modules with the Diffrax signature `field(t, z, x) -> dz/dt`."""

from .base import (
    AbstractEnergyField as AbstractEnergyField,
    AbstractForceField as AbstractForceField,
    AbstractSplitField as AbstractSplitField,
    hyperparameter as hyperparameter,
    trainable as trainable,
)
from .model import (
    AbstractEquilibriumModel as AbstractEquilibriumModel,
    EquilibriumModel as EquilibriumModel,
)
from .monotone import MonotoneBlock as MonotoneBlock
from .recurrent import RecurrentField as RecurrentField
from .transformer import (
    EnergyBlock as EnergyBlock,
    RealBlock as RealBlock,
    ThickBlock as ThickBlock,
)
