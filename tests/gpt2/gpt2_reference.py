"""A small GPT-2 in transformers whose every parameter is a sine, and how the tests run it and ours."""

import re
import warnings

import equinox as eqx
import jax.numpy as jnp
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # at import only: they are not ours
    import torch
    import transformers

from eqjax.language import GPT2Config

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


SHAPE = {"vocab_size": 97, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4}
TINY = GPT2Config(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=2)
IDS = np.array([(7 * i * i + 3 * i + 1) % 97 for i in range(24)])


def reference():
    """The reference model in torch: every parameter a sine."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPE)).double().eval()
    with torch.no_grad():
        for k, (name, parameter) in enumerate(sorted(model.named_parameters())):
            wave = torch.sin(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + k)
            values = 1 + 0.1 * wave if re.search(r"ln_.*weight", name) else 0.2 * wave
            parameter.copy_(values.reshape(parameter.shape))
    return model


@eqx.filter_jit
def run(model, ids, **options):
    return model(jnp.asarray(ids), **options)


def torch_logits(model, ids, **options):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids))[None], **options).logits[0].numpy()
