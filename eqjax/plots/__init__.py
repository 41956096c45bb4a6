"""Pictures: how a state settles, how it loses its stability, how training went, what neurons do. Every function draws and
returns a Matplotlib figure, but for `explorer`, which writes a page.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
import tempfile
from pathlib import Path

import numpy as np

network, oscillator = ej.fields.GainNetwork(gain=0.5), ej.fields.StuartLandau()
```
"""

from .._extras import require as _require

_require("plots")

from ._explorer import explorer as explorer
from ._figure import curves as curves, save as save
from ._learning import comparison as comparison, residuals as residuals, training as training
from ._neurons import (
    f_i_curve as f_i_curve,
    order_parameter as order_parameter,
    raster as raster,
    recall as recall,
    trace as trace,
)
from ._stability import (
    branch as branch,
    critical_curves as critical_curves,
    cycles as cycles,
    diagram as diagram,
    phase_portrait as phase_portrait,
    spectrum as spectrum,
)
