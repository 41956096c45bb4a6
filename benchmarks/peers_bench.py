"""What `peers.py` measures: one block with one set of weights, settled and differentiated by everyone."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import peers_torch
import peers_torch_memory
import peers_torch_tuning
from peers_jax import (
    JAXopt,
    Optimistix,
    eqjax_forward,
    eqjax_gradient,
    peer_forward,
    peer_gradient,
)

from eqjax.analytic import cross_entropy
from eqjax.relaxation import force_residual

TARGET = 1e-5  # force residual
ADJOINT = 1e-3  # adjoint residual, and the gradient error that a peer may have
LENGTH = 64
OURS = ("eqjax OracleAdjoint", "eqjax AsymEP")
PEERS = (
    "Optimistix fixed point",
    "JAXopt Anderson",
    "torchdeq Anderson",
    "torchdeq Broyden",
    "torch loop",
)


def weights(model):
    """The arrays of a model (or of its gradient) by name."""
    field = model.field
    arrays = {
        "tokens": model.encoder.tokens,
        "positions": model.encoder.positions,
        "norm1_weight": field.norm1.weight,
        "norm1_bias": field.norm1.bias,
        "query": field.attention.query,
        "key": field.attention.key,
        "value": field.attention.value,
        "output": field.attention.output,
        "norm2_weight": field.norm2.weight,
        "norm2_bias": field.norm2.bias,
        "up": field.mlp.up,
        "up_bias": field.mlp.up_bias,
        "down": field.mlp.down,
        "down_bias": field.mlp.down_bias,
        "head": model.decoder.weight,
    }
    return {name: np.asarray(array) for name, array in arrays.items()}


def exported(model):
    field = model.field
    scalars = {"leak": field.leak, "gain": field.attention_gain, "heads": field.attention.heads}
    return weights(model) | {name: np.asarray(value) for name, value in scalars.items()}


def relative(ours, theirs):
    """`‖ours - theirs‖ / ‖theirs‖` over arrays, or dictionaries of arrays."""
    if not isinstance(ours, dict):
        ours, theirs = {"": ours}, {"": theirs}
    ours = {k: np.asarray(v, np.float64) for k, v in ours.items()}
    theirs = {k: np.asarray(v, np.float64) for k, v in theirs.items()}
    error = sum(np.sum((ours[k] - theirs[k]) ** 2) for k in theirs)
    return float(np.sqrt(error / sum(np.sum(v**2) for v in theirs.values())))


@eqx.filter_jit
def forces(model, z, tokens):
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda z, u: model.field(0.0, z, model.encode(u)))(z, tokens)


@eqx.filter_jit
def residuals(model, z, tokens):
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda z, u: force_residual(model.field, z, model.encode(u)))(z, tokens)


@eqx.filter_jit
def pulls(model, z, targets):
    """The norm of ∂(batch loss)/∂z of every sample."""
    pull = jax.grad(lambda z: jnp.mean(jax.vmap(cross_entropy)(jax.vmap(model.decode)(z), targets)))
    return jax.vmap(optx.two_norm)(pull(z))


@dataclasses.dataclass
class Timed:
    """A call, and what was found out about it."""

    call: Callable
    memory: float = float("nan")
    calls: int = 0  # of the force, and products with its Jacobian, for the slowest sample
    residual: float = float("nan")
    error: float = float("nan")
    seconds: float = float("nan")


@dataclasses.dataclass
class Row:
    name: str
    settings: Any
    forward: Timed | None
    gradient: Timed

    @property
    def fit(self):
        """Whether it did what was asked: only then is it compared with."""
        parts = [part for part in (self.forward, self.gradient) if part]
        settled = all(part.residual <= 1.01 * TARGET for part in parts)
        return settled and self.gradient.error <= 5 * ADJOINT


class Programs:
    """Compiled programs by name, for one width and batch size."""

    def __init__(self):
        self.kept = {}

    def __call__(self, name, function, *args):
        if name not in self.kept:
            program = eqx.filter_jit(function).lower(*args).compile()
            analysis = program.compiled.memory_analysis()
            self.kept[name] = (
                program,
                (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 2**20,
            )
        program, memory = self.kept[name]
        return Timed(lambda: jax.block_until_ready(program(*args)), memory)


class Bench:
    """One width, batch size and set of weights."""

    def __init__(self, net, text, size, programs, platform):
        self.net, self.programs = net, programs
        self.batch = text.batch(size, LENGTH, seed=999)
        # As settled as float32 allows; the program is the one that is timed.
        self.z, _ = self.our_forward(5e-7).call()
        self.reference = weights(self.our_gradient(OURS[0], 5e-7, 1e-6).call().grads)
        # Sizes of a typical sample, by which a tolerance is put in a peer's own measure.
        self.size = float(jnp.min(jax.vmap(optx.two_norm)(self.z)))
        self.pull = float(jnp.median(pulls(net, self.z, self.batch[1])))
        self.torch = peers_torch.LanguageModel(exported(net), platform)
        tokens, targets = (self.torch.array(a).long() for a in self.batch)
        self.torch_batch = tokens, targets
        self.advance, self.uncompiled = None, None

    def residual(self, z):
        return float(jnp.max(residuals(self.net, jnp.asarray(z), self.batch[0])))

    def error(self, grads):
        return relative(grads, self.reference)

    def verify(self):
        """Refuse to go on unless forces, equilibrium and gradient of the two blocks agree."""
        tokens, targets = self.torch_batch
        x = self.torch.encode(tokens).detach()
        z = x + 0.3 * x.roll(1, 0)  # any state will do
        force = self.torch.force(z, x).detach().cpu().numpy()
        found = {"force": relative(force, forces(self.net, jnp.asarray(z.cpu()), self.batch[0]))}
        for step, iterations in ((0.5, 60), (0.1, 600), (0.05, 2400)):
            z, grads = self.torch.settled(tokens, targets, step, iterations)
            if self.torch.residual(z, x) <= 2e-6:
                break
        found["equilibrium"] = relative(z.cpu().numpy(), self.z)
        found["gradient"] = self.error(self.torch.numpy(grads))
        said = ", ".join(f"{name} {error:.1e}" for name, error in found.items())
        if not all(error <= 1e-4 for error in found.values()):
            raise SystemExit(f"The two blocks do not agree, nothing is timed: {said}")
        print(f"the two blocks agree: {said} (relative)\n", flush=True)

    # One row each

    def our_forward(self, tolerance):
        tolerance = jnp.asarray(tolerance, jnp.float32)
        return self.programs("equilibrium", eqjax_forward, self.net, self.batch, tolerance)

    def our_gradient(self, name, *tolerances):
        tolerances = (jnp.asarray(tolerance, jnp.float32) for tolerance in tolerances)
        gradient = functools.partial(eqjax_gradient, name)
        return self.programs(name, gradient, self.net, self.batch, *tolerances)

    def ours(self, name, _):
        forward = None
        if name == "eqjax OracleAdjoint":
            forward = self.our_forward(TARGET)
            z, calls = forward.call()
            forward.calls, forward.residual = int(jnp.max(calls)), self.residual(z)
        gradient = self.our_gradient(name, TARGET, ADJOINT)
        out = gradient.call()
        gradient.calls = int(jnp.max(out.report.field_evaluations))
        gradient.residual = float(jnp.max(out.report.free_residual))
        gradient.error = self.error(weights(out.grads))
        return Row(name, f"tol {TARGET:g}/{ADJOINT:g}", forward, gradient)

    def in_jax(self, name, settings):
        kind = {"Optimistix fixed point": Optimistix, "JAXopt Anderson": JAXopt}[name]
        if settings is None:
            settings = self.tuned(kind)
        else:
            unit = kind.units(self)[1]
            settings = eqx.tree_at(lambda s: s.adjoint, settings, ADJOINT * unit)
        for _ in range(6):
            forward = self.jax_forward(settings)
            z, steps = forward.call()
            forward.calls, forward.residual = int(jnp.max(steps)), self.residual(z)
            if not TARGET < forward.residual < 10 * TARGET:
                break
            settings = eqx.tree_at(lambda s: s.tol, settings, 0.7 * settings.tol)
        tally = []
        noted = dataclasses.replace(settings, note=lambda: tally.append(1))
        (grads, z, steps) = self.jax_gradient(noted).call()
        jax.effects_barrier()
        gradient = self.jax_gradient(settings)
        gradient.calls = int(jnp.max(steps)) + len(tally)
        gradient.residual, gradient.error = self.residual(z), self.error(weights(grads))
        return Row(name, settings, forward, gradient)

    def tuned(self, kind):
        """The fewest steps, each with the loosest tolerance that reaches the target."""
        unit, adjoint = kind.units(self)
        best, fewest = None, np.inf
        for step in kind.steps:
            for variant in kind.variants:
                for factor in (4, 2, 1, 0.5, 0.25):
                    trial = kind(step, factor * step * TARGET * unit, ADJOINT * adjoint, **variant)
                    z, steps = self.jax_forward(trial).call()
                    steps, residual = int(jnp.max(steps)), self.residual(z)
                    if residual <= TARGET and steps < fewest:
                        best, fewest = trial, steps
                    if residual <= TARGET or not residual <= 10 * TARGET:
                        break  # a tighter tolerance costs more, or will not help
        return best or kind(kind.steps[0], 0.1 * TARGET * unit, ADJOINT * adjoint)

    def jax_forward(self, settings):
        settings = jax.tree.map(lambda number: jnp.asarray(number, jnp.float32), settings)
        return self.programs(
            (type(settings), "forward"), peer_forward, self.net, self.batch, settings
        )

    def jax_gradient(self, settings):
        name = (type(settings), "gradient", settings.note)
        if settings.traced:
            settings = jax.tree.map(lambda number: jnp.asarray(number, jnp.float32), settings)
            return self.programs(name, peer_gradient, self.net, self.batch, settings)
        name, fixed = (*name, settings), functools.partial(peer_gradient, peer=settings)
        return self.programs(name, fixed, self.net, self.batch)

    def in_torch(self, name, settings):
        if name == "torch loop":
            settings = peers_torch.Loop(compiled=self.advance is not None)
        else:
            if settings is None:
                solver = name.split()[1].lower()
                limit = max(ADJOINT, 1e-4)
                settings = peers_torch_tuning.tuned(
                    solver, self.torch, self.torch_batch, TARGET, self.pull, self.error, limit
                )
                if settings is None:
                    raise RuntimeError("no setting reached the tolerance")
            settings = peers_torch_tuning.tightened(settings, self.torch, self.torch_batch, TARGET)
            settings = peers_torch_tuning.faster(
                settings, self.torch, self.torch_batch, self.advance
            )
        timed = {}
        for kind in ("forward", "gradient"):
            run = settings.build(self.torch, self.advance)
            out, *calls = peers_torch.counted(run, kind, *self.torch_batch)
            z, grads = (out, None) if kind == "forward" else out

            def call(run=run, kind=kind):
                out = getattr(run, kind)(*self.torch_batch)
                peers_torch.synchronise(self.torch)
                return out

            timed[kind] = Timed(
                call, calls=sum(calls), residual=self.residual(z.detach().cpu().numpy())
            )
            if grads is not None:
                timed[kind].error = self.error(self.torch.numpy(grads))
        return Row(name, settings, **timed)

    def measure(self, rows, rounds, memory=True):
        """Median seconds, all calls taking turns; memory of PyTorch's."""
        parts = [part for row in rows for part in (row.forward, row.gradient) if part]
        samples = {id(part): [] for part in parts}
        for round in range(rounds + 1):  # the first one warms up
            for part in parts:
                taken = samples[id(part)]
                if len(taken) >= 3 and sum(taken) > 3.0:
                    continue
                time.sleep(0.02)  # the other library's threads come to rest
                start = time.perf_counter()
                part.call()
                taken += [time.perf_counter() - start] if round else []
        for part in parts:
            part.seconds = statistics.median(samples[id(part)])
        jobs = [
            (row, kind)
            for row in rows
            if isinstance(row.settings, peers_torch.DEQ | peers_torch.Loop)
            for kind in ("forward", "gradient")
        ]
        if not memory:
            return
        if self.torch.device == "cpu":
            memory = self.resident([(row.settings, kind) for row, kind in jobs])
        else:
            memory = [peers_torch_memory.cuda_memory(getattr(row, kind).call) for row, kind in jobs]
        for (row, kind), mebibytes in zip(jobs, memory, strict=True):
            getattr(row, kind).memory = mebibytes

    def resident(self, jobs):
        if not jobs:
            return []
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # for the child: freed arrays are returned
        context = multiprocessing.get_context("spawn")
        arrays = tuple(np.asarray(a, np.int64) for a in self.batch)
        try:
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                work = pool.submit(
                    peers_torch_memory.resident_memory, exported(self.net), arrays, jobs
                )
                return work.result()
        finally:
            del os.environ["MALLOC_MMAP_THRESHOLD_"]
