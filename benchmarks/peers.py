"""eqjax and its peers: the same block, the same weights, the same tolerance, in one run.

`python benchmarks/peers.py [--widths 128 256] [--batches 8 32] [--train 0 300] [--only NAME …]`: time, memory and
evaluations to a force residual of 1e-5, forward and with the gradient, against torchdeq (Anderson, Broyden),
plain fixed-point iteration in Optimistix, Anderson in JAXopt, and a PyTorch loop through time.

Needs PyTorch and torchdeq besides eqjax (and JAXopt, or that peer is left out); nothing is timed before forces,
equilibrium and gradient of the two blocks have been found to agree.

What the columns mean. *calls*: of the force, and products with its Jacobian, for the slowest sample. *residual*: the worst
force residual of the batch at the state that is read out, measured by one function for all. *gradient error*: relative,
against a tightly settled reference. *MiB*: in JAX the compiled program's temporaries and outputs; in PyTorch on a GPU the
allocator's peak, on a CPU the growth of the resident set of a fresh process. Each peer has the settings, of a few tried,
that need the fewest calls, and the loosest tolerance of its own that reaches ours. *(missed)*: the tolerance, or a gradient error of
5e-3, was not reached.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# PyTorch needs some of the GPU's memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx

try:
    import peers_torch as torch_side
except ImportError as error:
    raise SystemExit(
        f"{error}. The comparison needs PyTorch and torchdeq beside eqjax: `pip install torch torchdeq` (and "
        "`pip install jaxopt` for that peer), best in an environment of its own."
    ) from None
from common import Text, arguments, device, model as new_model, table, trained

from eqjax.analytic import cross_entropy
from eqjax.fields import trainable
from eqjax.gradients import AsymEP, OracleAdjoint, SharedAdjoint
from eqjax.relaxation import (
    GMRES,
    Anderson,
    equilibrium,
    force_residual,
)

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
def encode(model, tokens):
    return jax.vmap(model.encode)(tokens)


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


# eqjax -------------------------------------------------------------------------------------------------


def eqjax_forward(model, batch, tolerance):
    def one(tokens):
        x = model.encode(tokens)
        solver = Anderson(rtol=tolerance)
        found = equilibrium(model.field, model.initial(x), x, solver=solver, throw=False)
        return found.value, found.stats["field_evaluations"]

    return jax.vmap(one)(batch[0])


def eqjax_gradient(name, model, batch, tolerance, adjoint):
    free = Anderson(rtol=tolerance)
    if name == "eqjax AsymEP":
        nudged = Anderson(rtol=adjoint)
        estimator = AsymEP(free=free, nudged=nudged, contrast=SharedAdjoint())
    else:
        estimator = OracleAdjoint(free=free, adjoint_solver=GMRES(rtol=adjoint))
    return estimator(model, cross_entropy, batch)


# Peers in JAX ------------------------------------------------------------------------------------------


def tallied(product, note):
    """`product`, calling `note` each time, once for every sample."""
    if note is None:
        return product

    def noted(v):
        jax.debug.callback(note)
        return product(v)

    return noted


class Tallied(lx.AbstractLinearSolver):
    """Lineax's GMRES with its products tallied."""

    solver: lx.GMRES
    note: Callable | None = eqx.field(static=True)

    def init(self, operator, options):
        return self.solver.init(operator, options)

    def compute(self, state, vector, options):
        product = tallied(state.mv, self.note)
        operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: vector))
        return self.solver.compute(operator, vector, options)

    def transpose(self, state, options):
        return self.solver.transpose(state, options)

    def conj(self, state, options):
        return self.solver.conj(state, options)

    def assume_full_rank(self):
        return True


class Optimistix(eqx.Module):
    """`optimistix.FixedPointIteration` on `z + step · F(z)`, with GMRES in its implicit adjoint.

    `tol`, `adjoint`: root mean square of the last step, and of the adjoint's residual, at which they stop.
    """

    step: Any
    tol: Any
    adjoint: Any
    restart: int = eqx.field(static=True, default=5)  # 10 and 20 need as many products or more
    note: Callable | None = eqx.field(static=True, default=None)

    steps = (0.1, 0.2, 0.35, 0.5, 0.65)
    variants = ({},)
    traced = True

    def __str__(self):
        return f"step {self.step:g}, GMRES({self.restart})"

    @staticmethod
    def units(bench):
        """What a force residual of 1, and a relative adjoint residual of 1, are in its own measures."""
        root = bench.z[0].size ** 0.5
        return bench.size / root, bench.pull / root

    def solve(self, field, x, implicit):
        solver = optx.FixedPointIteration(rtol=0.0, atol=self.tol, norm=optx.rms_norm)
        gmres = lx.GMRES(0.0, self.adjoint, norm=optx.rms_norm, restart=self.restart)
        found = optx.fixed_point(
            lambda z, args: z + args[2] * args[0](0.0, z, args[1]),
            solver,
            x,
            (field, x, self.step),
            adjoint=optx.ImplicitAdjoint(Tallied(gmres, self.note)),
            max_steps=512,
            throw=False,
        )
        return found.value, found.stats["num_steps"]


class JAXopt(eqx.Module):
    """`jaxopt.AndersonAcceleration` on `z + step · F(z)`, with its GMRES in the implicit adjoint.

    `tol`: norm of the last step; `adjoint`: relative. Both must be known when the gradient is compiled.
    """

    step: Any
    tol: Any
    adjoint: Any
    restart: int = eqx.field(static=True, default=5)
    note: Callable | None = eqx.field(static=True, default=None)
    ridge: Any = 1e-5

    steps = (0.35, 0.5, 0.65)
    variants = ({"ridge": 1e-5}, {"ridge": 1e-8})
    traced = False

    def __str__(self):
        return f"step {self.step:g}, ridge {self.ridge:.0e}, GMRES({self.restart})"

    @staticmethod
    def units(bench):
        return bench.size, 1.0

    def solve(self, field, x, implicit):
        import jaxopt
        from jaxopt.linear_solve import solve_gmres

        def gmres(product, b, **_):
            product = tallied(product, self.note)
            return solve_gmres(product, b, tol=self.adjoint, restart=self.restart)

        solver = jaxopt.AndersonAcceleration(
            lambda z, field, x: z + self.step * field(0.0, z, x),
            history_size=6,
            maxiter=256,
            tol=self.tol,
            ridge=self.ridge,
            implicit_diff=implicit,
            unroll=False,
            implicit_diff_solve=gmres,
        )
        found = solver.run(x, field, x)
        return found.params, found.state.num_fun_eval


def peer_forward(model, batch, peer, implicit=False):
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda u: peer.solve(model.field, model.encode(u), implicit))(batch[0])


def peer_gradient(model, batch, peer):
    trained, held = eqx.partition(model, trainable(model))

    def objective(trained):
        model = eqx.combine(trained, held)
        z, steps = peer_forward(model, batch, peer, implicit=True)
        losses = jax.vmap(cross_entropy)(jax.vmap(model.decode)(z), batch[1])
        return jnp.mean(losses), (z, steps)

    with jax.default_matmul_precision("highest"):
        grads, out = jax.grad(objective, has_aux=True)(trained)
    return grads, *out


# The measurement ---------------------------------------------------------------------------------------


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
        self.torch = torch_side.LanguageModel(exported(net), platform)
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
            settings = torch_side.Loop(compiled=self.advance is not None)
        else:
            if settings is None:
                solver = name.split()[1].lower()
                limit = max(ADJOINT, 1e-4)
                settings = torch_side.tuned(
                    solver, self.torch, self.torch_batch, TARGET, self.pull, self.error, limit
                )
                if settings is None:
                    raise RuntimeError("no setting reached the tolerance")
            settings = torch_side.tightened(settings, self.torch, self.torch_batch, TARGET)
            settings = torch_side.faster(settings, self.torch, self.torch_batch, self.advance)
        timed = {}
        for kind in ("forward", "gradient"):
            run = settings.build(self.torch, self.advance)
            out, *calls = torch_side.counted(run, kind, *self.torch_batch)
            z, grads = (out, None) if kind == "forward" else out

            def call(run=run, kind=kind):
                out = getattr(run, kind)(*self.torch_batch)
                torch_side.synchronise(self.torch)
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
            if isinstance(row.settings, torch_side.DEQ | torch_side.Loop)
            for kind in ("forward", "gradient")
        ]
        if not memory:
            return
        if self.torch.device == "cpu":
            memory = self.resident([(row.settings, kind) for row, kind in jobs])
        else:
            memory = [torch_side.cuda_memory(getattr(row, kind).call) for row, kind in jobs]
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
                work = pool.submit(torch_side.resident_memory, exported(self.net), arrays, jobs)
                return work.result()
        finally:
            del os.environ["MALLOC_MMAP_THRESHOLD_"]


def too_large(size, width, platform):
    """Whether BPTT of every step would not fit: about 25 states are kept a step."""
    needed = 25 * 4 * 150 * size * LENGTH * width
    free = torch_side.free_memory(platform)
    return f"would keep about {needed / 2**30:.0f} GiB" if needed > 0.6 * free else None


def cell(value, form, scale=1.0):
    return "–" if value is None or value != value else form.format(scale * value)


def report(rows, title, out):
    base = next((row for row in rows if row.name == OURS[0]), None)
    lines = []
    for row in rows:
        f, g = row.forward or Timed(None), row.gradient
        against = (g.seconds / base.gradient.seconds) if base else None
        forward = (f.seconds / base.forward.seconds) if base and row.forward else None
        lines.append(
            (
                row.name if row.fit else f"{row.name} (missed)",
                cell(f.seconds, "{:.1f}", 1e3),
                cell(forward, "{:.2f}"),
                f.calls or "–",
                cell(f.residual, "{:.1e}"),
                cell(f.memory, "{:.0f}"),
                cell(g.seconds, "{:.1f}", 1e3),
                cell(against, "{:.2f}"),
                g.calls,
                cell(g.residual, "{:.1e}"),
                cell(g.error, "{:.1e}"),
                cell(g.memory, "{:.0f}"),
                row.settings,
            )
        )
    header = "method,forward ms,against eqjax,calls,residual,MiB,gradient ms,against eqjax,calls,residual,"
    header += "gradient error,MiB,settings"
    table(title, header.split(","), lines, out)


def verdict(key, rows):
    """The best peer of each kind against ours."""
    by_name = {row.name: row for row in rows}
    peers = [row for row in rows if row.name in PEERS and row.fit]
    if not peers or OURS[0] not in by_name:
        return None
    oracle, asymep = by_name[OURS[0]], by_name.get(OURS[1])
    forward = min(peers, key=lambda row: row.forward.seconds)
    gradient = min(peers, key=lambda row: row.gradient.seconds)
    ratio = asymep.gradient.seconds / gradient.gradient.seconds if asymep else None
    return (
        *key,
        forward.name,
        f"{forward.forward.seconds / oracle.forward.seconds:.2f}",
        gradient.name,
        f"{gradient.gradient.seconds / oracle.gradient.seconds:.2f}",
        cell(ratio, "{:.2f}"),
    )


def parsed():
    parser = arguments(__doc__)
    on_cpu = jax.default_backend() == "cpu"
    widths = [128, 256] if on_cpu else [128, 256, 512]
    parser.add_argument("--widths", type=int, nargs="+", default=widths)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument(
        "--train",
        type=int,
        nargs="+",
        default=[0],
        help="updates before measuring; several are several stages",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="rows whose name contains one of these"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="NAME", help="rows to leave out"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--eager", action="store_true", help="no torch.compile")
    parser.add_argument("--no-memory", action="store_true", help="do not measure PyTorch's memory")
    parser.add_argument(
        "--weights", type=Path, help="a folder that keeps trained weights between runs"
    )
    options = parser.parse_args()
    if options.quick:
        options.widths, options.batches, options.rounds = [64], [8], 3
    wanted = lambda name, words: any(word.lower() in name.lower() for word in words)
    options.names = [
        name
        for name in (*OURS, *PEERS)
        if (options.only is None or wanted(name, options.only))
        and not wanted(name, options.without)
    ]
    return options


def network(text, width, steps, folder):
    net = new_model(text, width=width, length=LENGTH)
    path = folder / f"peers_{width}_{steps}.eqx" if folder and steps else None
    if path is not None and path.is_file():
        return eqx.tree_deserialise_leaves(path, net)
    net = trained(net, text, steps, LENGTH)
    if path is not None:
        folder.mkdir(parents=True, exist_ok=True)
        eqx.tree_serialise_leaves(path, net)
    return net


def main():
    options = parsed()
    platform = "cpu" if jax.default_backend() == "cpu" else "cuda"
    text = Text(options.text)
    print(
        f"{device()}; torch {torch_side.torch.__version__} on {torch_side.device(platform)}",
        flush=True,
    )
    verdicts = []
    for width in options.widths:
        nets = {steps: network(text, width, steps, options.weights) for steps in options.train}
        settings = {}
        for size in options.batches:
            programs = Programs()
            for steps, net in nets.items():
                started = time.perf_counter()
                bench = Bench(net, text, size, programs, platform)
                if size == options.batches[0]:
                    bench.verify()
                if not options.eager:
                    bench.advance, why = torch_side.first_compilation(
                        bench.torch, bench.torch_batch[0]
                    )
                    if why:
                        print(f"torch.compile does not run here, so PyTorch runs eagerly: {why}\n")
                rows = []
                for name in options.names:
                    if name == "torch loop" and (why := too_large(size, width, platform)):
                        print(f"{name}: left out, {why}\n", flush=True)
                        continue
                    measured = (
                        bench.ours
                        if name in OURS
                        else bench.in_torch
                        if name.startswith("torch")
                        else bench.in_jax
                    )
                    try:
                        row = measured(name, settings.get((name, steps)))
                    except (
                        Exception
                    ) as error:  # one peer that fails must not take the others with it
                        if name in OURS:
                            raise
                        said = str(error).strip().splitlines() or [""]
                        print(
                            f"{name}: left out, {type(error).__name__}: {said[0][:200]}\n",
                            flush=True,
                        )
                        continue
                    settings[name, steps] = row.settings
                    rows.append(row)
                bench.measure(rows, options.rounds, not options.no_memory)
                stage = f"after {steps} updates" if steps else "initial weights"
                title = f"To {TARGET:g}, C={width} T={LENGTH} B={size} float32, {stage}, {device()}"
                report(rows, title, options.out)
                verdicts.append(verdict((width, size, stage), rows))
                print(f"{time.perf_counter() - started:.0f} s\n", flush=True)
    header = (
        "C,B,weights,best peer forward,its time over eqjax's,best peer gradient,its time over eqjax's,"
        "AsymEP's time over that peer's"
    )
    rows = [row for row in verdicts if row]
    if rows:
        table(f"Best peer against eqjax, {device()}", header.split(","), rows, options.out)


if __name__ == "__main__":
    main()
