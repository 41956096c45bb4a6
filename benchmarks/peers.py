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

import os
import time
from pathlib import Path

# PyTorch needs some of the GPU's memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import equinox as eqx
import jax

try:
    import peers_torch
except ImportError as error:
    raise SystemExit(
        f"{error}. The comparison needs PyTorch and torchdeq beside eqjax: `pip install torch torchdeq` (and "
        "`pip install jaxopt` for that peer), best in an environment of its own."
    ) from None
import peers_torch_memory
from common import Text, arguments, device, model as new_model, table, trained
from peers_bench import LENGTH, OURS, PEERS, TARGET, Bench, Programs, Timed


def too_large(size, width, platform):
    """Whether BPTT of every step would not fit: about 25 states are kept a step."""
    needed = 25 * 4 * 150 * size * LENGTH * width
    free = peers_torch_memory.free_memory(platform)
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
        f"{device()}; torch {peers_torch.torch.__version__} on {peers_torch_memory.device(platform)}",
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
                    bench.advance, why = peers_torch.first_compilation(
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
