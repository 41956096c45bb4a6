"""With which settings torchdeq needs the fewest evaluations, and runs fastest, in `peers.py`."""

import dataclasses
import itertools
import math
import statistics
import time

from peers_torch import DEQ, counted, finite, synchronise


def tuned(solver, model, batch, target, pull, errors, limit):
    """The settings of torchdeq that need the fewest evaluations.

    Step and ridge from a grid, each with the loosest tolerance for which the *measured* force residual is at
    most `target`; then the ridge and tolerance of the backward pass, the loosest for which the gradient's
    relative error `errors(grads)` is at most `limit`. `pull`: the typical size of ∂L/∂z of a sample.
    """
    x = model.encode(batch[0]).detach()
    ridges = (1e-4, 1e-8) if solver == "anderson" else (1e-4,)
    best, fewest = None, DEQ.max_iter
    for step, ridge in itertools.product((0.5, 0.35, 0.7), ridges):
        for factor in (4, 2, 1, 0.5, 0.25):
            trial = DEQ(solver, step, ridge, f_tol=factor * step * target, max_iter=fewest + 2)
            out = finite(lambda trial=trial: counted(trial.build(model), "forward", *batch))
            reached = math.inf if out is None else model.residual(out[0], x)
            if reached <= target and out[1] < fewest:
                best, fewest = trial, out[1]
            if reached <= target or not reached <= 10 * target:
                break  # a tighter tolerance costs more, or will not help
    if best is None:
        return None
    forward, best, fewest = dataclasses.replace(best, max_iter=DEQ.max_iter), None, math.inf
    ridges = (1e-8 * pull**2, 1e-4 * pull**2, 1e-4) if solver == "anderson" else (1e-4,)
    for b_ridge in ridges:
        for b_tol in (1e-2, 3e-3, 1e-3, 3e-4, 1e-4):
            trial = dataclasses.replace(forward, b_tol=b_tol, b_ridge=b_ridge)
            out = finite(lambda trial=trial: counted(trial.build(model), "gradient", *batch))
            if out is None or out[1] + out[2] >= fewest:
                break
            if errors(model.numpy(out[0][1])) <= limit:
                best, fewest = trial, out[1] + out[2]
                break
    return best or dataclasses.replace(forward, b_tol=1e-4, b_ridge=ridges[0])


def tightened(settings, model, batch, target):
    """`settings` with a forward tolerance that reaches `target` on this batch too."""
    x = model.encode(batch[0]).detach()
    for _ in range(6):
        z = finite(lambda run=settings.build(model): run.forward(*batch))
        if z is not None and model.residual(z, x) <= target:
            break
        settings = dataclasses.replace(settings, f_tol=0.7 * settings.f_tol)
    return settings


def faster(settings, model, batch, advance, repeats=5):
    """`settings` with the block compiled, or not, and the backward pass as a hook, or not: the fastest."""
    choices = {}
    for compiled, hook in itertools.product((True, False) if advance else (False,), (True, False)):
        trial = dataclasses.replace(settings, compiled=compiled, hook=hook)
        run = trial.build(model, advance)
        if finite(lambda run=run: run.gradient(*batch)) is None:
            continue
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            run.gradient(*batch)
            synchronise(model)
            seconds.append(time.perf_counter() - start)
            if sum(seconds) > 2.0:
                break
        choices[trial] = statistics.median(seconds)
    return min(choices, key=choices.get)
