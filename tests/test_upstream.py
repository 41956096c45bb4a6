"""The page of solvers on their own: its code runs, and needs nothing of eqjax but the solvers."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "upstream.md").read_text("utf-8")


def test_plain_calls_of_optimistix_lineax_and_diffrax_take_our_solvers(capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S))
    assert re.findall("^.*eqjax.*$", code, re.M) == ["from eqjax import relaxation"]
    exec(compile(code, "upstream.md", "exec"), {})
    assert capsys.readouterr().out.count("steps") == 2
