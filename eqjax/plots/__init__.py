"""Pictures: how a state settles, how it loses its stability, how training went, what neurons do. Every function draws and
returns a Matplotlib figure."""

from .figure import save as save
from .learning import comparison as comparison, residuals as residuals, training as training
from .memories import recall as recall
from .neurons import (
    f_i_curve as f_i_curve,
    order_parameter as order_parameter,
    raster as raster,
    trace as trace,
)
from .stability import (
    branch as branch,
    cycles as cycles,
    phase_portrait as phase_portrait,
    spectrum as spectrum,
)
