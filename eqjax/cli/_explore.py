"""`eqjax explore`: pages in which a field is explored by hand, each one HTML file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from .._checks import check_count
from ._common import encoded
from ._working import working


@dataclasses.dataclass(frozen=True)
class ExploreHH:
    """The Hodgkin–Huxley neuron along its current: both Hopf points, and the cycles between. About a minute."""

    out: Path = Path("runs/explore/hh.html")
    """The file."""


@dataclasses.dataclass(frozen=True)
class ExploreGainToy:
    """Two neurons along the gain of their coupling: Euler's steps leave the fixed point first, the flow later. Seconds."""

    out: Path = Path("runs/explore/gain-toy.html")
    """The file."""


@dataclasses.dataclass(frozen=True)
class ExploreBlock:
    """A trained causal block on a text: how every token settles, whom it attends to, and how stable it is."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    out: Path | None = None
    """The file; explorer.html in the run's folder if not given."""
    prompt: str | None = None
    """The text; the first window of the validation text if not given."""
    step: int | None = None
    """Which checkpoint; the newest if not given."""
    steps: int = 60
    """Euler steps of the settling."""
    x64: bool = False
    """Settle in float64."""


@dataclasses.dataclass(frozen=True)
class ExploreCommand:
    """Write a page with sliders, one HTML file that needs no server and no network; open it in a browser.

    A slider for the parameter, one for Euler's step: eigenvalues move, trajectories are dragged, cycles grow.
    """

    what: (
        Annotated[ExploreHH, tyro.conf.subcommand("hh")]
        | Annotated[ExploreGainToy, tyro.conf.subcommand("gain-toy")]
        | Annotated[ExploreBlock, tyro.conf.subcommand("block")]
    )
    """Which."""


def explore(command: ExploreCommand) -> None:
    """Write the page, and say where it is."""
    what = command.what
    if what.out is not None and what.out.is_dir():
        raise IsADirectoryError(f"`out` {what.out} is a folder; name a file.")
    written = _block(what) if isinstance(what, ExploreBlock) else _neurons(what)
    print(f"Written: {written} ({written.stat().st_size / 1000:.0f} kB). Open it in a browser.")


def _neurons(what: ExploreHH | ExploreGainToy) -> Path:
    import jax
    import jax.numpy as jnp

    from .. import fields

    with jax.enable_x64(True):
        if isinstance(what, ExploreGainToy):
            settings = {
                "names": ["z₁", "z₂"],
                "parameter": "gain α",
                "title": "Two neurons and the gain of their coupling",
            }
            where = lambda f: f.gain
            branch = {"bounds": (0.0, 1.2), "step": 1.0, "k": 2}
            return _followed(fields.GainNetwork(), jnp.zeros(2), where, branch, what.out, settings)
        field = fields.HodgkinHuxley()
        settings = {
            "names": ["V (mV)", "m", "h", "n"],
            "parameter": "current I (µA/cm²)",
            "title": "The Hodgkin–Huxley neuron",
            "start": field.clamped(-50.0),
            "span": 60.0,
        }
        where = lambda f: f.current
        branch = {"bounds": (0.0, 200.0), "step": 0.05, "k": 4, "backwards": True}
        return _followed(field, field.clamped(-65.0), where, branch, what.out, settings)


def _followed(
    field: Any,
    z0: Any,
    where: Callable,
    branch: dict[str, Any],
    out: Path,
    settings: dict[str, Any],
) -> Path:
    """The page of a branch, with the cycles that are born at its last Hopf point; `backwards`: which way these go."""
    from .. import plots
    from ..stability import PseudoArclength, continuation, cycle_continuation, switch

    backwards = branch.pop("backwards", False)
    bounds, k = branch["bounds"], branch["k"]
    with working("following the fixed point") as tell:
        fine = PseudoArclength(most=0.015)
        found = continuation(field, z0, where=where, path=fine, **branch)
        hopf = [point for point in found.special_points if point.flow == "Hopf"][-1]
        tell("following the cycles")
        born = switch(field, found, hopf, where=where)
        path = PseudoArclength(most=0.1)
        how = {"bounds": bounds, "backwards": backwards, "k": k - 1, "path": path}
        cycles = cycle_continuation(*born, where=where, **how)
        tell("writing the page")
        return plots.explorer(found, out, field=field, where=where, cycles=cycles, **settings)


def _block(what: ExploreBlock) -> Path:
    from .. import plots
    from ..fields import AbstractCausalField
    from ..recipes import TrainConfig, in_double, open_run, windows

    check_count(1, 2000, steps=what.steps)
    run = open_run(what.run, TrainConfig, step=what.step)
    model: Any = in_double(run) if what.x64 else run.model
    if not isinstance(model.field, AbstractCausalField):
        raise ValueError(
            f"{what.run} is a run of `{type(model.field).__name__}`, in which tokens feel later ones: the page shows causal blocks."
        )
    import jax.numpy as jnp

    prompt = what.prompt
    ids = windows(run, 1)[0] if prompt is None else jnp.asarray(encoded(run.tokenizer, prompt))
    if len(ids) > run.recipe.length:
        raise ValueError(
            f"`prompt` has {len(ids)} tokens, and the model was trained on {run.recipe.length}: make it shorter."
        )
    with working("settling"):
        x = model.encode(ids)
        return plots.explorer(
            model.field,
            what.run / "explorer.html" if what.out is None else what.out,
            x,
            start=model.initial(x),
            names=[run.tokenizer.decode([int(i)]) for i in ids],
            step=run.recipe.step_size,
            steps=what.steps,
            title=f"How {what.run.resolve().name} settles",
        )
