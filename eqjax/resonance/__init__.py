"""Adaptive resonance: fuzzy ART, its continuous field, ARLL; and AEON, which learns by how learning goes."""

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
