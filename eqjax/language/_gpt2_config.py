"""The settings of a GPT-2, under the names of a Hugging Face `config.json`."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax

from .._checks import check_count, check_flags, check_number, refuse
from ..analytic import gelu

ACTIVATIONS = {
    "gelu_new": gelu,
    "gelu_pytorch_tanh": gelu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jax.numpy.tanh,
}
# What a config.json may say that changes no logit of a language model.
_IRRELEVANT = (
    "_name_or_path architectures chunk_size_feed_forward dtype gradient_checkpointing id2label is_decoder "
    "label2id n_ctx output_attentions output_hidden_states output_past pad_token_id problem_type "
    "reorder_and_upcast_attn return_dict task_specific_params torch_dtype transformers_version use_cache"
).split()
# What would change them, with the only value understood here.
_REQUIRED = {
    "model_type": "gpt2",
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "quantization_config": None,
}


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Shape and settings of a `GPT2` (Radford et al. 2019). The names are those of Hugging Face.

    **Arguments:**

    - `vocab_size`: tokens V. `n_positions`: longest context P. `n_embd`: width C. `n_layer`: blocks L.
      `n_head`: heads H, a divisor of C. `n_inner`: hidden width of the MLPs, 4 C by default.
    - `activation_function`: of the MLPs; `gelu_new` (tanh form), `gelu_pytorch_tanh` (the same), `gelu` (exact),
      `relu`, `silu` or `tanh`.
    - `resid_pdrop`, `embd_pdrop`, `attn_pdrop`: dropout rates, in force only where the model is given a key.
    - `layer_norm_epsilon`: of every layer norm. `initializer_range`: standard deviation of the initial weights.
    - `scale_attn_weights`: divide scores by `sqrt(C / H)`. `scale_attn_by_inverse_layer_idx`: and by the number
      of the layer, counted from 1.
    - `tie_word_embeddings`: the token embeddings also read the logits out.
    - `bos_token_id`, `eos_token_id`: the tokens that begin and end a text, None for none; there may be several ends.
      `generate` stops at them.

    Refuses, with a `ValueError`, what cannot be built.

    ```python
    config = ej.language.GPT2Config(vocab_size=50, n_layer=2, n_embd=64, n_head=4)
    assert config.n_positions == 1024
    ```
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if value is None and name == "n_inner":
                continue
            check_count(**{name: value})
        if self.n_embd % self.n_head:
            raise ValueError(
                f"`n_embd` must be a multiple of `n_head`, got n_embd={self.n_embd} and n_head={self.n_head}. "
                f"Choose a width such as {self.n_head * max(1, round(self.n_embd / self.n_head))}."
            )
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"`activation_function={self.activation_function!r}` is not known. Known: {', '.join(ACTIVATIONS)}."
            )
        for name, low, high in (
            ("resid_pdrop", 0, 1),
            ("embd_pdrop", 0, 1),
            ("attn_pdrop", 0, 1),
            ("layer_norm_epsilon", 1e-12, 1),
            ("initializer_range", 0, 100),
        ):
            fits = lambda value, low=low, high=high: low <= value < high
            check_number(f"lie in [{low}, {high})", fits, **{name: getattr(self, name)})
        flags = "scale_attn_weights scale_attn_by_inverse_layer_idx tie_word_embeddings"
        check_flags(**{name: getattr(self, name) for name in flags.split()})
        begins = () if self.bos_token_id is None else (self.bos_token_id,)
        for name, tokens in (("bos_token_id", begins), ("eos_token_id", self.ends)):
            # Not below `vocab_size`: small models are saved with GPT-2's own 50256, which they never write.
            if not all(type(token) is int and token >= 0 for token in tokens):
                refuse(name, "be the number of a token or None", getattr(self, name))

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens of `eos_token_id`."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def inner(self) -> int:
        """Hidden width of the MLPs."""
        return self.n_inner or 4 * self.n_embd

    @property
    def score_scales(self) -> tuple[float, ...]:
        """What every layer's queries are multiplied by."""
        width = (self.n_embd // self.n_head) ** -0.5 if self.scale_attn_weights else 1.0
        by_layer = self.scale_attn_by_inverse_layer_idx
        return tuple(width / (layer + 1 if by_layer else 1) for layer in range(self.n_layer))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "GPT2Config":
        """From the contents of a `config.json`.

        Settings that change no logit are passed over, unknown ones under a warning that names them. `ValueError`
        for those that ask for another model.
        """
        for name, needed in _REQUIRED.items():
            if settings.get(name, needed) != needed:
                raise ValueError(
                    f"config.json asks for {name}={settings[name]!r}; only {name}={needed!r} is understood. "
                    "Is it the folder of a GPT-2 language model?"
                )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(settings) - known - {*_IRRELEVANT, *_REQUIRED}
        if unknown := sorted(name for name in unknown if not name.startswith("summary_")):
            warnings.warn(
                f"config.json has settings that GPT-2 does not, and they are ignored: {', '.join(unknown)}.",
                stacklevel=2,
            )
        ends = settings.get("eos_token_id")
        given = {**settings, "eos_token_id": tuple(ends) if isinstance(ends, list) else ends}
        return cls(**{name: _typed(name, given[name]) for name in given if name in known})

    def to_dict(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers reads."""
        ends = self.eos_token_id
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **dataclasses.asdict(self),
            "eos_token_id": list(ends) if isinstance(ends, tuple) else ends,
        }


def _typed(name: str, value: Any) -> Any:
    """A setting as its default is: a number, or true or false."""
    default = GPT2Config.__dataclass_fields__[name].default
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"config.json has {name}={value!r}; it must be true or false.")
    elif isinstance(default, float):
        if type(value) not in (int, float):
            raise ValueError(f"config.json has {name}={value!r}; it must be a number.")
        return float(value)
    return value
