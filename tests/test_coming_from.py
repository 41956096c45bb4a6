"""The page for those who know AUTO, MatCont or BifurcationKit: its code runs, and its calls are ones that may be made."""

import inspect
import re
from pathlib import Path

from eqjax import stability

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-matcont.md").read_text("utf-8")


def test_the_code_of_the_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "coming-from-matcont.md", "exec"), {})
    assert "Hopf" in capsys.readouterr().out


def test_the_calls_in_its_tables_have_these_arguments():
    seen = set()
    for name, inside in re.findall(r"\b([A-Za-z_]+)\(((?:[^()]|\([^()]*\))*)\)", PAGE):
        function = getattr(stability, name, None)
        if function is None or "prob" in inside or "br" in inside.split(","):
            continue
        taken = inspect.signature(function).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        for keyword in re.findall(r"(\w+)=", re.sub(r"\([^()]*\)", "", inside)):
            assert keyword in taken or open_ended, f"{name} takes no {keyword}"
        seen.add(name)
    assert len(seen) >= 15
