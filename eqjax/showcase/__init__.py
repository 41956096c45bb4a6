"""Known answers on the command line: small memories, neurons and oscillators, each beside the number it must give."""

from .._extras import require as _require

_require("cli")

from ._memories import (
    HammingShow as HammingShow,
    HopfieldShow as HopfieldShow,
    XorShow as XorShow,
    one_step_law as one_step_law,
    retrieval_overlap as retrieval_overlap,
)
from ._neurons import (
    HHShow as HHShow,
    KuramotoShow as KuramotoShow,
    LIFShow as LIFShow,
    coherence as coherence,
    firing_rates as firing_rates,
    spiking_network as spiking_network,
)
from ._parity import ParityShow as ParityShow
from ._show import AbstractShow as AbstractShow, Shown as Shown, present as present
