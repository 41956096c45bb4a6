"""What is pushed comes back to the last bit, says what it is, and is refused once a byte has changed."""

import json
import shutil

import equinox as eqx
import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import yaml

from eqjax import recipes
from eqjax.cli import main
from eqjax.recipes import (
    AeonSettings,
    ARLLSettings,
    GPT2Settings,
    TrainConfig,
    published,
    pull,
    push,
)
from eqjax.training import Run, described, signature

SIZES = {
    "width": 8,
    "heads": 2,
    "length": 8,
    "batch": 2,
    "evaluate_windows": 4,
    "steps": 2,
    "warmup": 1,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "my text.txt"
    path.write_text("settle and answer, then settle once more.\n" * 40)
    return path


@pytest.fixture(scope="module")
def run(text):
    settings = {"estimator": "bptt", "bptt_steps": 2, "seed": 5}
    return Run.start(TrainConfig(out=text.parent / "run", text=text, **SIZES, **settings))


@pytest.fixture(scope="module")
def remembering(text):
    settings = {"memory": "both", "slots": 4, "segments": 1, "layers": 1}
    return Run.start(GPT2Settings(out=text.parent / "gpt", text=text, **SIZES, **settings))


@pytest.fixture(scope="module")
def folder(run):
    there = run.recipe.out.parent / "published"
    assert push(run, there, license="cc0-1.0") == str(there)
    return there


def test_it_comes_back_to_the_last_bit(run, folder):
    found = pull(folder)
    assert eqx.tree_equal(found.model, run.model) and published(folder)
    assert found.tokenizer == run.tokenizer and found.recipe.seed == 5
    assert type(found.estimator) is type(run.estimator)
    ids, how = run.tokenizer.encode("settle "), {"temperature": 0.0, "seed": 0}
    assert recipes.sample(found, ids, 4, **how) == recipes.sample(run, ids, 4, **how)


def test_a_gpt2_with_memory_comes_back(remembering, tmp_path):
    push(remembering, tmp_path / "a", data="Forty sentences.")
    found = pull(tmp_path / "a")
    assert eqx.tree_equal(found.model, remembering.model)
    assert (found.about["source"], found.recipe.memory) == ("Forty sentences.", "both")
    assert "GPT-2 with memory" in (tmp_path / "a" / "README.md").read_text()
    told = json.loads((tmp_path / "a" / "config.json").read_text())
    told["material"]["model"]["n_layer"] = 10**9
    told["sha256"] = signature({k: v for k, v in told.items() if k != "sha256"})
    (tmp_path / "a" / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="would take .* GiB"):
        pull(tmp_path / "a")
    push(remembering, tmp_path / "a")  # replaced
    assert pull(tmp_path / "a").about["source"] == "the file my text.txt"


def test_a_push_that_was_killed_is_made_again(run, folder, tmp_path):
    for rest in (".writing-abc", ".written-abc"):
        (tmp_path / "a" / rest).mkdir(parents=True)
        shutil.copy(folder / "README.md", tmp_path / "a")  # the first to be moved
        with pytest.raises(ValueError, match="is no model of"):
            pull(tmp_path / "a")
        push(run, tmp_path / "a")
        assert len(list((tmp_path / "a").iterdir())) == 3 and pull(tmp_path / "a").recipe.seed == 5
        shutil.rmtree(tmp_path / "a")


def test_the_card_states_data_figures_and_seed(run, folder):
    text = (folder / "README.md").read_text("utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc0-1.0" and head["library_name"] == "eqjax"
    result = run.evaluate(run.validation_ids)
    for part in (
        f"{result.cross_entropy:.4f}",
        run.material.digest,
        "Seed 5",
        "the file my text.txt",
    ):
        assert part in text
    told = json.loads((folder / "config.json").read_text("utf-8"))
    assert told["figures"]["validation"] == pytest.approx(result.cross_entropy, rel=1e-12)
    assert told["figures"]["validation_tokens"] == result.tokens
    # Nothing of this machine goes with it.
    assert str(run.recipe.out.parent) not in text + json.dumps(told)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_what_cannot_be_verified_is_refused(folder, tmp_path):
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    about = json.loads((folder / "config.json").read_text("utf-8"))
    name = max(arrays, key=lambda key: arrays[key].size)

    def refused(message, *, arrays=arrays, about=about, signed=True):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        (tmp_path / "a").mkdir()
        body = {k: v for k, v in about.items() if k != "sha256"}
        body |= {"sha256": signature(body) if signed else about["sha256"]}
        (tmp_path / "a" / "config.json").write_text(json.dumps(body))
        safetensors.numpy.save_file(arrays, tmp_path / "a" / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            pull(tmp_path / "a")

    flipped = arrays[name].copy()
    flipped.view(np.uint8).flat[3] ^= 1
    refused("is damaged: the array", arrays=arrays | {name: flipped})
    refused("missing in the file", arrays={k: a for k, a in arrays.items() if k != name})
    refused("missing in the settings and config.json", arrays=arrays | {"more": flipped})
    refused("not the one that was written", about=about | {"updates": 9}, signed=False)
    refused("of format 2, written by eqjax 9.0", about=about | {"format": 2, "version": "9.0"})
    wider = about["settings"] | {"width": 16}
    refused("its settings make it", about=about | {"settings": wider})
    refused("unknown setting `wings`", about=about | {"settings": about["settings"] | {"wings": 2}})
    refused("does not describe a model", about=about | {"material": {}})
    for name, what in (("command", ["train"]), ("settings", []), ("arrays", None), ("source", 5)):
        refused(f"does not describe a model: `{name}` is", about=about | {name: what})
    for dtype in (np.int32, np.float16, bool):
        other = {k: a.astype(dtype) for k, a in arrays.items()}
        stated = about | {"arrays": {k: described(a) for k, a in other.items()}}
        refused("its settings make it float", arrays=other, about=stated)
    refused("which this version does not read", about=about | {"command": "walk"})
    refused("is no model of", about={"model_type": "gpt2"} | {"sha256": ""})
    (tmp_path / "a" / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"is no model of .*load_gpt2"):
        pull(tmp_path / "a")


def test_what_should_not_be_pushed_is_refused(run, remembering, tmp_path, text):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").touch()
    for wrong, message in (
        (tmp_path / "there", "holds thesis.tex, and no model"),
        (tmp_path / "there" / "thesis.tex", "is a file"),
        ("hf://nobody", "a folder, or hf://owner/name"),
    ):
        with pytest.raises(ValueError, match=message):
            push(run, wrong)
    for license in ("mine: all of it", "a\nb", ""):
        with pytest.raises(ValueError, match="`license` must be the short name"):
            push(run, tmp_path / "b", license=license)
    with pytest.raises(ValueError, match="`run` must be a run"):
        push(run.model, tmp_path / "b")
    spoilt = eqx.tree_at(lambda r: r.gpt2.wte, remembering.model, replace_fn=lambda w: w * jnp.nan)
    state, remembering.state = (
        remembering.state,
        eqx.tree_at(lambda s: s.model, remembering.state, spoilt),
    )
    with pytest.raises(ValueError, match="finite"):
        push(remembering, tmp_path / "b")
    remembering.state = state
    small = {"layers": 1, "out": tmp_path / "arll", "text": text}
    # Of ARLL others read the GPT-2 in model/, which a run of AEON does not write.
    for kind, message in (
        (ARLLSettings, "gpt2 arll.*model/"),
        (AeonSettings, "gpt2 aeon.*`open_run`"),
    ):
        with pytest.raises(ValueError, match=message):
            push(Run.start(kind(**SIZES, **small)), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_repository_is_made_and_fetched(run, folder, tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, **how):
            calls.append((name, how))

        def list_repo_files(self, name):
            return [path.name for path in (tmp_path / name).glob("*")]

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return f"there/{repo_id}"

    def fetched(name, allow_patterns):
        assert {"config.json", "*.safetensors"} <= set(allow_patterns)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    loaded = lambda name, file: str(tmp_path / name / file)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", loaded)
    monkeypatch.chdir(folder.parent)  # what is local is not what hf:// names
    shutil.copytree(folder, folder.parent / "someone" / "settles")
    (folder.parent / "someone" / "settles" / "config.json").unlink()
    assert push(run, "hf://someone/settles", private=True) == "there/someone/settles"
    assert calls == [("someone/settles", {"exist_ok": True, "private": True})]
    assert eqx.tree_equal(pull("hf://someone/settles").model, run.model)
    assert 'pull("hf://someone/settles")' in (tmp_path / "someone/settles/README.md").read_text()

    push(run, "hf://someone/settles")  # again
    (tmp_path / "someone/settles/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConnectionError, match="it holds a model that is none of"):
        push(run, "hf://someone/settles")

    def fails(self, *_, **__):
        raise OSError("401")

    monkeypatch.setattr(Api, "create_repo", fails)
    with pytest.raises(
        ConnectionError, match=r"someone/settles could not be written.*hf auth login"
    ):
        push(run, "hf://someone/settles")


def test_the_command_line_pushes_and_writes_from_what_was_pushed(
    run, remembering, tmp_path, capsys, monkeypatch
):
    for made, said in ((run, ["sample"]), (remembering, ["gpt2", "generate"])):
        monkeypatch.setattr(recipes, "open_run", lambda path, made=made, **_: made)
        where = str(tmp_path / said[0])
        main(["push", "anywhere", where, "--license", "cc0-1.0"])
        assert capsys.readouterr().out == f"Published: {where}\n"
        main([*said, where, "--prompt", "settle ", "--count", "4"])
        assert capsys.readouterr().out.startswith("settle ")
    for words in (["sample", where], ["gpt2", "generate", str(tmp_path / "sample")]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2 and "Let it write by" in capsys.readouterr().err
