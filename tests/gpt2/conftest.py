"""One reference model, from transformers and read by us, for each file of tests."""

import pytest
from gpt2_reference import IDS, reference, run

from eqjax.language import load_gpt2


@pytest.fixture(scope="module")
def theirs():
    return reference()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_gpt2(folder)


@pytest.fixture(scope="module")
def logits(model):
    return run(model, IDS)
