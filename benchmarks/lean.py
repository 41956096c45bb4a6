"""Imported first: on a machine with the engine's packages alone, whatever else eqjax would import is stood in for."""

import importlib.util
import sys
from unittest import mock

from eqjax import _extras

_MODULES = ("tokenizers", "safetensors", "safetensors.numpy", "huggingface_hub", "pooch", "grain")
missing = [name for name in _MODULES if importlib.util.find_spec(name.partition(".")[0]) is None]
for name in missing:
    sys.modules[name] = mock.MagicMock()
if missing:
    _extras.require = lambda extra: None
