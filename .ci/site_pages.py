"""The pages of the site, staged in `.docs`: `python .ci/site_pages.py`, and then `zensical build --strict`.

A page of docs/ is copied as it is, but for a line that asks for what is known elsewhere: `::: eqjax.fields` becomes every
public name of that room, `::: eqjax --help` the help of every command, `::: notebooks` a list of the notebooks, each run,
which become pages themselves, `::: gallery` the scripts of docs/gallery, each run, with the picture it draws, and
`::: explorer gain-toy` what `eqjax explore gain-toy` writes.
"""

import ast
import contextlib
import functools
import io
import multiprocessing
import os
import re
import runpy
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import notebook_pages
import reference

ROOT = Path(__file__).parents[1]
STAGE = ROOT / ".docs"


def help_of(*words):
    """What `eqjax ... --help` prints, without colours."""
    from eqjax.cli import main

    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    text = re.sub(r"\x1b\[[\d;]*m| +$", "", said.getvalue(), flags=re.M)
    return text.replace(str(Path.home()), "~")


def commands(*words):
    """Every command with its help; which there are is what the help itself says."""
    text = help_of(*words)
    yield f"## `{' '.join(['eqjax', *words])}`\n\n```text\n{text.strip()}\n```"
    there = re.match(r"usage: [^{]*\[-h\] \{([\w,-]+)\}", text)
    for name in there[1].split(",") if there else ():
        yield from commands(*words, name)


def notebooks():
    """The notebooks, each run, and a page of its own below `learn/`; two at a time."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    folder = STAGE / "learn"
    folder.mkdir(exist_ok=True)
    with side_by_side() as pool:
        titles = list(pool.map(notebook_pages.page, paths, [folder] * len(paths)))
    for path, title in zip(paths, titles, strict=True):
        yield f"1. [{title}](learn/{path.stem}.md)"


def side_by_side():
    """Two at a time: most of it is the compilers'."""
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))


def drawn(path):
    """Run a script and save the `figure` it leaves behind, beside its page."""
    import jax

    from eqjax import plots

    jax.config.update("jax_enable_x64", True)
    with contextlib.redirect_stdout(io.StringIO()):
        figure = runpy.run_path(str(path))["figure"]
    plots.save(figure, STAGE / "gallery" / f"{path.stem}.png")


def gallery(draw=drawn):
    """Every script with its picture."""
    paths = sorted((ROOT / "docs" / "gallery").glob("*.py"))
    with side_by_side() as pool:
        list(pool.map(draw, paths))
    for path in paths:
        text = path.read_text("utf-8")
        about = ast.get_docstring(ast.parse(text))
        code = text.split('"""', 2)[2].strip()
        title = path.stem.split("_", 1)[1].replace("_", " ").capitalize()
        yield f"## {title}\n\n{about}\n\n![{title}](gallery/{path.stem}.png)\n\n```python\n{code}\n```"


def explored(name):
    """A page of its own, written by `eqjax explore`."""
    from eqjax.cli import main

    with contextlib.redirect_stdout(io.StringIO()):
        main(["explore", name, "--out", str(STAGE / "explore" / f"{name}.html")])


@functools.cache
def all_explored():
    """Every such page that a page of docs/ asks for."""
    pages = [page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md")]
    names = sorted(set(re.findall(r"^::: explorer (\S+)$", "\n".join(pages), flags=re.M)))
    with side_by_side() as pool:
        list(pool.map(explored, names))


def explorer(name):
    """One of these pages in a frame, and a link to it."""
    all_explored()
    # A page of the site stands in a folder of its own name.
    path = f"../explore/{name}.html"
    return (
        f'<iframe src="{path}" title="{name}" loading="lazy" style="width: 100%; height: 46rem; border: 0"></iframe>\n\n'
        f'<a href="{path}">The same on a page of its own</a>'
    )


def asked(match):
    """What a line `::: ...` asks for."""
    if match[1] == "gallery":
        return "\n\n".join(gallery())
    if match[1] == "notebooks":
        return "\n".join(notebooks())
    if match[1].startswith("explorer "):
        return explorer(match[1].split()[1])
    return "\n\n".join(commands()) if match[1] == "eqjax --help" else reference.page(match[1][6:])


def main():
    # Each program runs once: half the time of compiling it is saved, here and in what is started.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", STAGE)
    for page in sorted(STAGE.rglob("*.md")):
        text = page.read_text("utf-8")
        page.write_text(re.sub(r"^::: (.+)$", asked, text, flags=re.M), "utf-8")


if __name__ == "__main__":
    main()
