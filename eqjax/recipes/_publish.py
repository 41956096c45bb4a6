"""Trained models for others: a folder or a Hugging Face repository with weights, settings and a card, and back, verified."""

import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from .. import language, training
from .._checks import check_kind, given, refuse
from ..language import BPETokenizer, CharTokenizer, bigram_cross_entropy
from ..training import Run, check_finite, described, gathered, named_arrays, plain, signature
from ._card import card
from ._equilibrium import TrainConfig
from ._equilibrium_build import build_estimator, build_model
from ._gpt2 import GPT2Settings

_FORMAT, _CONFIG, _WEIGHTS, _CARD = 1, "config.json", "model.safetensors", "README.md"
_KINDS: dict[str, Any] = {kind.command: kind for kind in (TrainConfig, GPT2Settings)}
_HUB = "hf://"
_TOLD = {"command": str, "settings": dict, "material": dict, "source": str, "arrays": dict}
_UNFINISHED = (".writing-", ".written-")  # what a push that was killed leaves


@dataclasses.dataclass(frozen=True)
class Published:
    """What `pull` finds: the `model`, its `tokenizer`, the `recipe` that trained it, and `about`, all that `config.json` says:
    the data (`source`, `text_sha256`), the `figures` that `push` measured, the `updates`."""

    recipe: Any
    model: Any
    tokenizer: CharTokenizer | BPETokenizer
    about: dict[str, Any]

    @property
    def estimator(self) -> Any:
        """Of an equilibrium model: how it settles, and its gradient."""
        return build_estimator(self.recipe)


def push(
    run: Any,
    where: str | os.PathLike,
    *,
    data: str | None = None,
    license: str | None = None,
    private: bool | None = None,
) -> str:
    """Publish a run's model: `model.safetensors`, `config.json`, and `README.md`, a model card with data, figures and seed.

    The figures are measured here, on the run's validation text, and what was written is loaded again before it is shown to
    anyone.

    **Arguments:**

    - `run`: of `TrainConfig`, or of `GPT2Settings` (with memory or without), as `open_run(folder)` gives it.
    - `where`: a folder, new or one that `push` wrote before; or `"hf://owner/name"`, a repository on the Hugging Face hub,
      which is made if there is none (log in by `hf auth login`).
    - `data`: a sentence on the text; by default what the run knows. Local paths are not published.
    - `license`: of the weights, as `"apache-2.0"`; none is claimed if left out. `private`: whether a new repository is.

    **Returns:** the folder, or the address of the commit.

    **Raises:** `ValueError` for a run of another kind, weights that are not finite, and a folder with files of somebody
    else, or a repository with another model; `ConnectionError` if the repository cannot be written.

    ```python
    folder = ej.recipes.push(run, text.parent / "published", license="cc0-1.0")
    assert ej.recipes.pull(folder).about["updates"] == 0
    ```
    """
    check_kind(Run, "a run, such as `open_run(folder)`", run=run)
    check_kind((str, os.PathLike), "a folder, or hf://owner/name", where=where)
    if not isinstance(run.recipe, tuple(_KINDS.values())):
        plain = isinstance(run.model, language.GPT2)  # `finish` writes it where it is
        cure = (
            "The folder model/ that this run leaves at its end is what others read, or what `save_gpt2(run.model, folder)` writes."
            if plain
            else "Only a run's folder holds it, for `open_run`."
        )
        raise ValueError(
            f"`run` is one of `eqjax {run.recipe.command}`; only those of {', '.join(_KINDS)} can be published. {cure}"
        )
    check_kind(str, "a sentence", **given(data=data))
    check_kind((bool, type(None)), "True or False", private=private)
    if license is not None and not (
        isinstance(license, str) and re.fullmatch(r"\w[\w.+-]*", license)
    ):
        refuse("license", "be the short name of one, such as apache-2.0", license)
    check_finite(run.model)
    name = os.fspath(where)
    if not name.startswith(_HUB):
        _write(run, Path(where), Path(where).absolute().name, data, license)
        return name
    repository = name.removeprefix(_HUB)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        refuse("where", "be a folder, or hf://owner/name", name)
    with tempfile.TemporaryDirectory() as folder:
        _write(run, Path(folder), repository, data, license)
        return _uploaded(folder, repository, **given(private=private))


def _uploaded(folder: str, repository: str, **how: Any) -> str:
    import huggingface_hub  # only where it is asked for

    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repository, exist_ok=True, **how)
        if _CONFIG in api.list_repo_files(repository):
            there = Path(huggingface_hub.hf_hub_download(repository, _CONFIG))
            if not published(there.parent):
                raise FileExistsError(f"it holds a model that is none of `eqjax push`: {_CONFIG}")
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Model of eqjax"
        )
        return str(getattr(done, "commit_url", done))
    except Exception as error:  # whatever went wrong, the cure is the same
        raise ConnectionError(
            f"{repository} could not be written ({type(error).__name__}: {error}). Log in by `hf auth login`, ask for a "
            "repository that is yours, or push to a folder."
        ) from error


def _write(run: Run, folder: Path, name: str, data: str | None, license: str | None) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`where` {folder} is a file. Give a folder.")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    rest = [folder / name for name in names if name.startswith(_UNFINISHED)]
    there = sorted(set(names) - {path.name for path in rest} - ({_CARD} if rest else set()))
    if there and not published(folder):
        raise ValueError(
            f"`where` {folder} holds {there[0]}, and no model of `push`. Choose another folder."
        )
    arrays = named_arrays(gathered(run.model))
    about = _about(run, arrays, data)
    with language.replacing(folder) as fresh:
        safetensors.numpy.save_file(arrays, fresh / _WEIGHTS, metadata={"format": "eqjax"})
        signed = json.dumps(about | {"sha256": signature(about)}, indent=1, ensure_ascii=False)
        (fresh / _CONFIG).write_text(signed + "\n", "utf-8")
        (fresh / _CARD).write_text(card(name, about, license), "utf-8")
        again = named_arrays(pull(fresh).model)
        if any(not np.array_equal(again[path], array) for path, array in arrays.items()):
            raise ValueError(
                f"`where` {folder}: what was written is not what was trained. Is the disk damaged?"
            )
    for path in rest:
        shutil.rmtree(path, ignore_errors=True)


def _about(run: Run, arrays: dict[str, np.ndarray], data: str | None) -> dict[str, Any]:
    """What config.json says, but for its own hash."""
    result = run.evaluate(run.validation_ids)
    bigram = bigram_cross_entropy(run.train_ids, run.validation_ids, run.tokenizer.size)
    figures = {
        "validation": result.cross_entropy,
        "validation_tokens": result.tokens,
        "bigram": bigram,
    }
    figures |= {"residual": result.residual, "unsettled": result.unsettled}
    local = {"out", "text", "devices"}
    settings = {k: v for k, v in run.recipe.to_dict().items() if k not in local}
    if (start := settings.get("start")) and Path(start).exists():
        settings["start"] = Path(start).absolute().name
    source = run.material.source
    if source.startswith("the file "):  # a path is nobody's business
        source = f"the file {Path(source).name}"
    about = {
        "model_type": "eqjax",
        "format": _FORMAT,
        "version": importlib.metadata.version("eqjax"),
        "command": run.recipe.command,
        "settings": settings,
        "material": run.material.about,
        "source": data or source,
        "text_sha256": run.material.digest,
        "tokens": [len(run.train_ids), len(run.validation_ids)],
        "updates": int(run.state.step),
        "figures": {k: v for k, v in plain(figures).items() if v is not None},
        "arrays": {name: described(array) for name, array in arrays.items()},
    }
    return json.loads(json.dumps(about))


def published(source: str | os.PathLike) -> bool:
    """Whether `pull` is what reads this: a folder that `push` wrote, or a name that begins with hf://.

    ```python
    assert ej.recipes.published("hf://owner/name") and not ej.recipes.published("nowhere")
    ```
    """
    if os.fspath(source).startswith(_HUB):
        return True
    try:
        found = json.loads((Path(source) / _CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("model_type") == "eqjax"


def pull(source: str | os.PathLike) -> Published:
    """Read a model that `push` published.

    **Arguments:** `source`: the folder, or `"hf://owner/name"`, which huggingface_hub then fetches into its own cache.

    **Returns:** a `Published`: model, tokenizer, recipe, and what is known of them.

    **Raises:** `ValueError` for what is no such model, was written by a later version, or cannot be verified: every array has
    the shape and the dtype that its settings make, and the SHA-256 that `config.json` states, which has one of its own.
    `ConnectionError` for a name that cannot be fetched.

    ```python
    model = lambda: ej.recipes.pull("hf://owner/name").model  # or of a folder that `push` wrote
    ```
    """
    check_kind((str, os.PathLike), "a folder, or hf://owner/name", source=source)
    name = os.fspath(source)
    where = name if name.startswith(_HUB) else Path(source)
    folder = language.resolved(where, "a model of `eqjax push`")
    about = _verified(folder / _CONFIG)
    kind = _KINDS[about["command"]]
    recipe = kind.from_dict(about["settings"], str(folder / _CONFIG))
    try:
        material = recipe.recall("", about["source"], about["material"])
        template = _template(recipe, material)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / _CONFIG} does not describe a model: {error}.") from None
    model = _filled(template, folder / _WEIGHTS, about["arrays"])
    return Published(recipe, model, material.tokenizer, about)


def _verified(path: Path) -> dict[str, Any]:
    if not path.is_file() or not published(path.parent):
        raise ValueError(
            f"{path.parent} is no model of `eqjax push`. A GPT-2 of Hugging Face is read by `load_gpt2`, a run by `open_run`."
        )
    about = language.read_json(path)
    if about.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is of format {about.get('format')!r}, written by eqjax {about.get('version')}; this version "
            f"({importlib.metadata.version('eqjax')}) reads {_FORMAT}. Upgrade eqjax."
        )
    told = about.pop("sha256", None)
    if told != signature(about):
        raise ValueError(
            f"{path} is not the one that was written: its SHA-256 is another. Fetch it again, or push the model again."
        )
    for name, kind in _TOLD.items():
        if not isinstance(about.get(name), kind):
            raise ValueError(
                f"{path} does not describe a model: `{name}` is {about.get(name)!r}. Push the model again."
            )
    if about["command"] not in _KINDS:
        raise ValueError(
            f"{path} is of `eqjax {about['command']}`, which this version does not read."
        )
    return about


def _template(recipe: Any, material: training.Material) -> Any:
    """The model's structure, with shapes for arrays."""
    key = jax.random.key(0)
    if isinstance(recipe, TrainConfig):
        return eqx.filter_eval_shape(build_model, recipe, material.tokenizer.size, key)
    return eqx.filter_eval_shape(recipe.completed, material.model, key, key)


def _single(dtype: Any) -> str:
    """A dtype's name, the same with x64 and without."""
    return np.dtype(dtype).name.replace("64", "32")


def _filled(template: Any, path: Path, stored: dict[str, dict[str, Any]]) -> Any:
    is_array = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    leaves = jax.tree_util.tree_leaves_with_path(template)
    wanted = {jax.tree_util.keystr(p): leaf for p, leaf in leaves if is_array(leaf)}
    with language.opened(path) as file:
        names = set(file.keys())
        for name in sorted(names | wanted.keys() | stored.keys()):
            there = (name in names, name in wanted, name in stored)
            if not all(there):
                which = ("the file", "the settings", "config.json")
                lacks = [w for w, is_there in zip(which, there, strict=True) if not is_there]
                raise ValueError(f"{path}: the array `{name}` is missing in {' and '.join(lacks)}.")
        arrays = {name: file.get_tensor(name) for name in names}
    for name, array in arrays.items():
        if described(array) != stored[name]:
            raise ValueError(
                f"{path} is damaged: the array `{name}` is not the one that config.json states. Fetch it again."
            )
        if array.shape != wanted[name].shape:
            raise ValueError(
                f"{path}: the array `{name}` has shape {array.shape}, and its settings make it {wanted[name].shape}."
            )
        if _single(array.dtype) != _single(wanted[name].dtype):
            raise ValueError(
                f"{path}: the array `{name}` is of {array.dtype}, and its settings make it {wanted[name].dtype}."
            )
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(
                f"{path} holds {array.dtype}, which JAX would shorten. Set "
                '`jax.config.update("jax_enable_x64", True)` first.'
            )
    fill = lambda p, leaf: jnp.asarray(arrays[jax.tree_util.keystr(p)]) if is_array(leaf) else leaf
    model = jax.tree_util.tree_map_with_path(fill, template)
    check_finite(model)
    return model
