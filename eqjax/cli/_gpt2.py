"""The commands for GPT-2: `eqjax gpt2 train | aeon | arll | generate | chat`."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..recipes import AeonSettings, ARLLSettings, GPT2Settings
from ._common import TrackerName, check_sampling, encoded, print_entropy, trained
from ._working import is_quiet, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2TrainCommand:
    """Train a GPT-2 from nothing, or go on from a pretrained one; with memory, if asked.

    The run's folder gets config.yaml (which --config accepts back), metrics.jsonl, checkpoints, and of a GPT-2 without memory
    in model/ what Hugging Face's transformers read. A run that was stopped goes on with --resume FOLDER.
    """

    settings: GPT2Settings = GPT2Settings()
    config: Path | None = None
    """A YAML file of settings; flags given beside it win."""
    resume: Path | None = None
    """Go on with the run in this folder, by its own settings: of the other flags only --devices and --log go with it."""
    log: tuple[TrackerName, ...] = ()
    """Where metrics go beside metrics.jsonl; a run that goes on goes on there. Each is an extra of eqjax."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AeonCommand(GPT2TrainCommand):
    """Train a GPT-2 with AEON: internal recurrence attention, and a rate, momentum and noise that follow the loss.

    The run's folder gets config.yaml, metrics.jsonl and checkpoints, which --resume goes on from.
    """

    settings: AeonSettings = AeonSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ARLLCommand(GPT2TrainCommand):
    """Train a GPT-2 by the adaptive-resonance learning law: its hidden states are pulled to prototypes that grow with them.

    The run's folder is as of `eqjax gpt2 train`.
    """

    settings: ARLLSettings = ARLLSettings()


@dataclasses.dataclass(frozen=True)
class GPT2GenerateCommand:
    """Let a GPT-2 go on from a prompt; one with memory remembers all that it reads and writes, beyond its context."""

    source: tyro.conf.Positional[str]
    """The folder of a run of `eqjax gpt2 train`, that of a saved GPT-2 or of `eqjax push`, or a name such as gpt2."""
    prompt: str = "\n"
    """Text to go on from."""
    memory: Path | None = None
    """A file that chat wrote: go on from what is remembered there. It stays as it is."""
    count: int = 200
    """Tokens to write."""
    temperature: float = 0.8
    """Of the sampling; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the fewest likeliest tokens that together have this probability."""
    seed: int = 0
    """Random seed."""


@dataclasses.dataclass(frozen=True)
class GPT2ChatCommand:
    """Talk to a GPT-2. What one with memory was told, the next run of this program knows, too; others see the end of the talk.

    Every line of standard input is read and answered. An empty line, or the end of the input, ends it.
    """

    source: tyro.conf.Positional[str]
    """The folder of a run of `eqjax gpt2 train`, that of a saved GPT-2 or of `eqjax push`, or a name such as gpt2."""
    memory: Path | None = None
    """File of the memory, of a GPT-2 that has one. Read if it exists, and written, whole, after every answer."""
    count: int = 80
    """Tokens of an answer, at the most; it ends with its line."""
    temperature: float = 0.8
    """Of the sampling; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the fewest likeliest tokens that together have this probability."""
    seed: int = 0
    """Random seed."""


@dataclasses.dataclass(frozen=True)
class GPT2Command:
    """GPT-2: train one, by AEON or ARLL too, let it write, talk to one that remembers."""

    what: (
        Annotated[GPT2TrainCommand, tyro.conf.subcommand("train")]
        | Annotated[AeonCommand, tyro.conf.subcommand("aeon")]
        | Annotated[ARLLCommand, tyro.conf.subcommand("arll")]
        | Annotated[GPT2GenerateCommand, tyro.conf.subcommand("generate")]
        | Annotated[GPT2ChatCommand, tyro.conf.subcommand("chat")]
    )
    """Which."""


def _train(command: GPT2TrainCommand) -> None:
    run, outcome = trained(command, "loss {task.fields[loss]}")
    print_entropy(run)
    if outcome.memory_bytes:
        print(f"{outcome.seconds_per_step:.3f} s/step, {outcome.memory_bytes / 2**20:.0f} MiB/step")


def _generate(command: GPT2GenerateCommand) -> None:
    import jax
    import jax.numpy as jnp

    from ..language import generate
    from ..memory import MemoryGPT2, load_memory

    check_sampling(command)
    model, tokenizer = _opened(command.source)
    prompt = encoded(tokenizer, command.prompt)
    config = model.gpt2.config if isinstance(model, MemoryGPT2) else model.config
    if isinstance(model, MemoryGPT2):
        how = {"memory": load_memory(command.memory, model) if command.memory else None}
    elif command.memory:
        raise ValueError(f"--memory {command.memory}: {command.source} is a GPT-2 without memory.")
    else:  # what is longer than the context slides its window
        how = {"cache": len(prompt) + command.count <= config.n_positions}
    with working(f"writing up to {command.count} tokens"):
        written = generate(
            model,
            jnp.asarray(prompt),
            command.count,
            key=jax.random.key(command.seed),
            temperature=command.temperature,
            top_k=command.top_k,
            top_p=command.top_p,
            stop=_ends(config, getattr(tokenizer, "end", None)),
            **how,
        )
        length = int(written.length)
    print(command.prompt + tokenizer.decode(written.tokens[:length]))


def _ends(config, *others: int | None) -> tuple[int, ...]:
    """After which tokens to stop."""
    return tuple(sorted({*config.ends, *others} - {None}))


def _opened(source: str):
    """Model and tokenizer of a run, or of a saved GPT-2."""
    from ..recipes import open_run, pretrained, published, pull
    from ..training import holds_run

    if published(source):
        found = pull(source)
        if isinstance(found.recipe, GPT2Settings):
            return found.model, found.tokenizer
        raise ValueError(
            f"{source}: an equilibrium model. Let it write by `eqjax sample {source}`."
        )
    if holds_run(source):
        run = open_run(source)
        if isinstance(run.recipe, AeonSettings):
            raise ValueError(
                f"{source}: a model trained by `eqjax gpt2 aeon` reads text in a state of its own, which text that it "
                "writes itself does not give. `eqjax evaluate` tells how well it reads."
            )
        if isinstance(run.recipe, (GPT2Settings, ARLLSettings)):
            return run.model, run.tokenizer
        raise ValueError(
            f"{source}: an equilibrium model. Let it write by `eqjax sample {source}`."
        )
    return pretrained(source)


def _chat(command: GPT2ChatCommand) -> None:
    from ..language import CharTokenizer
    from ..memory import MemoryGPT2

    check_sampling(command)
    if command.memory is not None and command.memory.is_dir():
        raise ValueError(f"--memory {command.memory} is a folder. Give the name of a file.")
    model, tokenizer = _opened(command.source)
    remembers = isinstance(model, MemoryGPT2)
    if command.memory is not None and not remembers:
        raise ValueError(
            f"--memory {command.memory}: {command.source} has no memory: it sees the end of the talk, as much as its context "
            "holds. Leave --memory out, or train one that remembers by `eqjax gpt2 train --memory both`."
        )
    try:
        newline = int(tokenizer.encode("\n")[0])
    except ValueError:
        newline = None  # the text that it learned from was one line
    config = model.gpt2.config if remembers else model.config
    sampling = {name: getattr(command, name) for name in ("temperature", "top_k", "top_p")}
    sampling |= {"stop": _ends(config, getattr(tokenizer, "end", None), newline)}
    answer = (_remembering if remembers else _in_context)(command, model, sampling)
    for line in sys.stdin:
        if not line.strip():
            break
        if isinstance(tokenizer, CharTokenizer):
            line = "".join(c for c in line if c in tokenizer.characters)
        prompt = tokenizer.encode(line)
        if not line.strip():
            print("None of these characters was in the text that the model learned from.")
            continue
        with working("answering"):
            written = answer(prompt)
        print(tokenizer.decode(written).strip("\n"), flush=True)


# So that few lengths are compiled.
def _padded(prompt, size: int):
    """The tokens with padding before them, and which are none."""
    import jax.numpy as jnp
    import numpy as np

    padding = size - len(prompt)
    return jnp.asarray(np.pad(prompt, (padding, 0))), jnp.arange(size) >= padding


def _remembering(command: GPT2ChatCommand, model, sampling: dict[str, Any]) -> Callable[[Any], Any]:
    """How a GPT-2 with memory answers: with what it remembers, which is kept in a file if there is one."""
    import jax

    from ..memory import load_memory, reply, save_memory

    file = command.memory
    known = file is not None and file.exists()
    memory = load_memory(file, model) if file is not None and known else model.memory()
    if known and not is_quiet():
        print(f"Goes on after {int(memory.tokens)} tokens.", file=sys.stderr)

    def answer(prompt):
        nonlocal memory
        tokens, mask = _padded(prompt, -(-len(prompt) // 8) * 8)  # it takes room in the context
        key = jax.random.fold_in(jax.random.key(command.seed), int(memory.tokens))
        written, memory = reply(
            model, tokens, memory, command.count, key=key, mask=mask, **sampling
        )
        if file is not None:
            save_memory(memory, file, model)
        return written.tokens[: int(written.length)]

    return answer


def _in_context(command: GPT2ChatCommand, model, sampling: dict[str, Any]) -> Callable[[Any], Any]:
    """How a GPT-2 without memory answers: with the end of the talk, as much as leaves room for the answer."""
    import jax
    import numpy as np

    from ..language import generate

    room, said = model.config.n_positions - command.count, np.zeros(0, np.int32)
    if room < 1:
        raise ValueError(
            f"--count {command.count} leaves no room for a question in the context of {model.config.n_positions} tokens."
        )

    def answer(prompt):
        nonlocal said
        said = np.concatenate([said, np.asarray(prompt, np.int32)])
        tokens, mask = _padded(said[-room:], min(room, 1 << max(3, (said.size - 1).bit_length())))
        key = jax.random.fold_in(jax.random.key(command.seed), said.size)
        written = generate(model, tokens, command.count, key=key, mask=mask, **sampling)
        new = np.asarray(written.tokens[: int(written.length)], np.int32)
        said = np.concatenate([said, new])
        return new

    return answer


GPT2_COMMANDS = {
    GPT2TrainCommand: _train,
    AeonCommand: _train,
    ARLLCommand: _train,
    GPT2GenerateCommand: _generate,
    GPT2ChatCommand: _chat,
    GPT2Command: lambda command: GPT2_COMMANDS[type(command.what)](command.what),
}
