"""Any run, from its folder."""

import os

from ..training import AbstractRecipe, Run
from ._aeon import AeonSettings
from ._arll import ARLLSettings
from ._equilibrium import TrainConfig
from ._gpt2 import GPT2Settings

RECIPES: tuple[type[AbstractRecipe], ...] = (TrainConfig, GPT2Settings, AeonSettings, ARLLSettings)


def open_run(
    folder: str | os.PathLike, *recipes: type[AbstractRecipe], step: int | None = None
) -> Run:
    """Rebuild a run from its folder; see `eqjax.training.Run.open`.

    **Arguments:** `folder`; `recipes`: the kinds of run that will do, by default all; `step`: the checkpoint, by default the
    newest.
    """
    return Run.open(folder, recipes or RECIPES, step=step)
