"""GPT-2 against transformers, in one process on one device: logits, one training step, generation with a cache.

`python benchmarks/gpt2.py [--quick] [--json FILE] [--out FILE]`. Needs torch and transformers beside eqjax. Both have
the same random weights (124M parameters; nothing is downloaded), written by `save_gpt2` and read by `from_pretrained`.
Before it is timed, each must have the logits and gradients of transformers in float32 with full products; *error* is the
relative root mean square. Medians of alternating rounds; compilation (the first call) apart. Float32 products are TF32
in both where the device has it; bfloat16 is that of weights and activations alike; no dropout. `xla` and `cudnn` are
`DotProduct("xla")` and `DotProduct("cudnn")`; transformers attend by PyTorch's fused attention. *Chunked loss* never
writes out the logits of all tokens (`GPT2.factored`). *Same tokens* is the share
of greedy tokens that are those of transformers: with random weights two texts part where rounding decides a near tie.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some, too

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from common import device, table

from eqjax.analytic import cross_entropy, tree_cast
from eqjax.language import (
    GPT2,
    DotProduct,
    GPT2Config,
    generate,
    save_gpt2,
)

TORCH = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {
    False: {
        "config": GPT2Config(),
        "batch": 8,
        "length": 1024,
        "chunk": 128,
        "prompt": 64,
        "prompts": (1, 8, 32),
    },
    True: {
        "config": GPT2Config(vocab_size=512, n_positions=64, n_embd=64, n_layer=2, n_head=2),
        "batch": 2,
        "length": 32,
        "chunk": 8,
        "prompt": 8,
        "prompts": (1, 2, 4),
    },
}
ATTENTION = {"eqjax": DotProduct(), "eqjax, xla": DotProduct("xla")}
if jax.default_backend() == "gpu":
    ATTENTION["eqjax, cudnn"] = DotProduct("cudnn")


@eqx.filter_jit
def logits(model, attend, tokens):
    return jax.vmap(lambda one: model(one, attend=attend))(tokens)


@eqx.filter_jit
def gradient(model, attend, checkpointing, chunk, tokens, targets):
    def loss(model):
        def one(tokens, targets):
            logits = model.factored(tokens, attend=attend, gradient_checkpointing=checkpointing)
            whole = chunk is None
            logits = logits.array if whole else dataclasses.replace(logits, chunk=chunk)
            return cross_entropy(logits, targets)

        return jnp.mean(jax.vmap(one)(tokens, targets))

    return eqx.filter_value_and_grad(loss)(model)


@eqx.filter_jit
def write(model, attend, count, prompts, key):
    one = lambda prompt: generate(model, prompt, count, key=key, temperature=0, attend=attend)
    return jax.vmap(one)(prompts).tokens


def torch_logits(model, tokens):
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


def torch_gradient(model, tokens, targets):
    model.zero_grad(set_to_none=True)
    found = model(tokens, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(found.flatten(0, 1).float(), targets.flatten())
    loss.backward()
    return loss


def torch_write(model, count, prompts, **settings):
    return model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        **settings,
    )[:, prompts.shape[1] :]


def compiled_static():
    """Settings of transformers' compiled generation with a cache of fixed size."""
    torch.compiler.reset()  # every size is compiled anew, and only so many are allowed
    config = transformers.CompileConfig()
    config._compile_all_devices = True  # by default, not on a CPU
    return {"cache_implementation": "static", "compile_config": config}


def finished(value):
    if TORCH == "cuda":
        torch.cuda.synchronize()
    return jax.block_until_ready(value)


def race(contenders, rounds, check):
    """Median seconds, seconds of the first call and what `check` says of its output; what fails is told by its error."""
    first, seconds, checked, failed = {}, {}, {}, {}
    for name, call in contenders.items():
        start = time.perf_counter()
        try:
            value = finished(call())
            took = time.perf_counter() - start
            told = check(name, value)
            del value
            finished(call())  # some compile twice
        except Exception as error:  # a row of the table
            failed[name] = f"{type(error).__name__}: {(str(error) or '-').splitlines()[0][:90]}"
            print(f"{name} failed: {error}"[:2000])
            continue
        first[name], seconds[name], checked[name] = took, [], told
    for number in range(rounds):
        for name in list(seconds)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            finished(contenders[name]())
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    compiling = {name: max(0.0, first[name] - medians[name]) for name in medians}
    return medians, compiling, checked, failed


def plain(array):
    """An array of either library in float32."""
    if isinstance(array, torch.Tensor):
        return array.detach().float().cpu().numpy()
    return np.asarray(array.astype(jnp.float32))


def some_gradients(value, theirs):
    """Of the embeddings and of one matrix in the first and the last layer; PyTorch has them in its model."""
    if isinstance(value, tuple):
        grads, blocks = value[1], value[1].blocks
        found = grads.wte, grads.wpe, blocks.attn.c_attn.weight[0], blocks.mlp.c_proj.weight[-1]
    else:
        core = theirs.transformer
        parts = core.wte, core.wpe, core.h[0].attn.c_attn, core.h[-1].mlp.c_proj
        found = [part.weight.grad for part in parts]
    return [plain(array) for array in found]


def relative(found, truth):
    """Root mean square of the difference over that of the truth."""
    difference = sum(np.sum((a - b) ** 2) for a, b in zip(found, truth, strict=True))
    return float(np.sqrt(difference / sum(np.sum(b**2) for b in truth)))


class Report:
    """The tables, and all figures as JSON after each."""

    def __init__(self, options, config):
        self.options, self.records = options, []
        self.about = {"device": device(), "torch": torch.__version__, "quick": options.quick}
        self.about |= {"transformers": transformers.__version__, "config": config.to_dict()}

    def measure(self, task, dtype, contenders, rounds, check, *, count=None, checks):
        """Race, and tell. `check` as in `race`, `checks` its name; `count`: tokens, to tell the speed in."""
        medians, compiling, checked, failed = race(contenders, rounds, check)
        base, rows = medians.get("transformers"), []
        for name in contenders:
            record = {"task": task, "dtype": dtype, "name": name}
            if name in failed:
                self.records.append(record | {"error": failed[name]})
                rows.append((name, failed[name], "–", "–", "–"))
                continue
            seconds = medians[name]
            record |= {"seconds": seconds, "compile_seconds": compiling[name]}
            record |= {checks: checked[name]}
            figure, ratio = f"{1e3 * seconds:.1f}", "–"
            if count is not None:
                record["tokens_per_second"] = count / seconds
                figure = f"{count / seconds:.0f}"
            if base is not None:
                record["speed"] = base / seconds
                ratio = f"{base / seconds:.2f}"
            self.records.append(record)
            told = f"{checked[name]:.1e}" if count is None else f"{checked[name]:.0%}"
            rows.append((name, figure, ratio, f"{compiling[name]:.1f}", told))
        unit = "ms" if count is None else "tokens/s"
        header = ("", unit, "times as fast as transformers", "compile s", checks)
        title = f"{task}, {dtype}, {device()}, torch {torch.__version__}, transformers {transformers.__version__}"
        table(title, header, rows, self.options.out)
        if self.options.json is not None:
            figures = {"about": self.about, "figures": self.records}
            self.options.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--out", type=Path, help="also append the tables to this file")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without-compile", action="store_true", help="no torch.compile")
    parser.add_argument(
        "--static-cache",
        action="store_true",
        help="also transformers' compiled generation with a cache of fixed size",
    )
    options = parser.parse_args()
    config, batch, length, chunk, prompt, prompt_batches = SHAPES[options.quick].values()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    jax.config.update("jax_default_matmul_precision", "tensorfloat32")
    report = Report(options, config)

    model = GPT2.init(config, jax.random.key(0))
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        save_gpt2(model, folder)
        for dtype in dict.fromkeys(["float32", *options.dtypes]):
            theirs = transformers.GPT2LMHeadModel.from_pretrained(
                folder, dtype=getattr(torch, dtype)
            )
            models[dtype] = tree_cast(model, jnp.dtype(dtype)), theirs.eval().to(TORCH)
    rng = np.random.default_rng(0)
    windows = rng.integers(0, config.vocab_size, (batch, length + 1))
    ids = [jnp.asarray(a, jnp.int32) for a in (windows[:, :-1], windows[:, 1:])]
    their_ids = [torch.tensor(a, device=TORCH) for a in (windows[:, :-1], windows[:, 1:])]

    # The truth: transformers in float32 with full products, which need no compilation.
    torch.set_float32_matmul_precision("highest")
    exact = models["float32"][1]
    truth = [plain(torch_logits(exact, their_ids[0])[:2])]
    torch_gradient(exact, *their_ids)
    true_gradients = some_gradients(None, exact)
    exact.zero_grad(set_to_none=True)
    torch.set_float32_matmul_precision("high")

    for dtype in options.dtypes:
        ours, theirs = models[dtype]
        limit = 3e-2 if dtype == "bfloat16" else 5e-3 if TORCH == "cuda" else 1e-5

        def checked(name, found, expected, limit=limit):
            error = relative(found, expected)
            if not error <= limit:
                raise SystemExit(f"{name} is wrong: relative error {error:.1e}, allowed {limit}.")
            return error

        attentions = {
            name: attend
            for name, attend in ATTENTION.items()
            if "cudnn" not in name or dtype == "bfloat16"
        }
        kinds = {"transformers": theirs}
        if not options.without_compile:
            kinds["transformers, torch.compile"] = torch.compile(theirs)
        sizes = f"B={batch} T={length}"

        contenders = {k: functools.partial(torch_logits, m, their_ids[0]) for k, m in kinds.items()}
        contenders |= {
            k: functools.partial(logits, ours, attend, ids[0]) for k, attend in attentions.items()
        }
        report.measure(
            f"Logits, {sizes}",
            dtype,
            contenders,
            options.rounds,
            lambda name, value: checked(name, [plain(value[:2])], truth),
            checks="error",
        )

        contenders = {k: functools.partial(torch_gradient, m, *their_ids) for k, m in kinds.items()}
        contenders |= {
            k: functools.partial(gradient, ours, attend, False, None, *ids)
            for k, attend in attentions.items()
        }
        last, attend = list(attentions.items())[-1]
        for name, *how in (
            ("gradient checkpointing", True, None),
            ("chunked loss", False, chunk),
            ("chunked loss, gradient checkpointing", True, chunk),
        ):
            contenders[f"{last}, {name}"] = functools.partial(gradient, ours, attend, *how, *ids)
        report.measure(
            f"Loss and gradient, {sizes}",
            dtype,
            contenders,
            options.rounds,
            lambda name, value: checked(name, some_gradients(value, theirs), true_gradients),  # noqa: B023
            checks="error",
        )
        theirs.zero_grad(set_to_none=True)

        few, many = (8, 16) if options.quick else (128, 256)
        runs = [(1, few), (batch, many)]
        if dtype == "bfloat16":
            runs = [(size, many) for size in prompt_batches] + [(1, few), (batch, few)]
        for size, count in runs:
            prompts = rng.integers(0, config.vocab_size, (size, prompt))
            their_prompts = torch.tensor(prompts, device=TORCH)
            written = functools.partial(torch_write, theirs, count, their_prompts)
            contenders = {"transformers": written}
            if options.static_cache:
                contenders["transformers, compiled static cache"] = functools.partial(
                    written, **compiled_static()
                )
            contenders |= {
                k: functools.partial(write, ours, a, count, jnp.asarray(prompts), jax.random.key(0))
                for k, a in attentions.items()
                if k == "eqjax" or count == many
            }
            expected = []

            def same(name, value, expected=expected):
                expected.append(plain(value))  # the first are those of transformers
                return float(np.mean(expected[-1] == expected[0]))

            report.measure(
                f"Generation, prompt {prompt}, {count} tokens, batch {size}",
                dtype,
                contenders,
                2,
                same,
                count=size * count,
                checks="same tokens",
            )


if __name__ == "__main__":
    main()
