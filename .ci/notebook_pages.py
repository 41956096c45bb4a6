"""A notebook as a page: run from its first cell to its last, its words, its code, and what came out."""

import base64
import re
import sys


def page(path, folder):
    """Run it (an error in a cell ends everything), and write `folder/NAME.md` and its pictures; returns its title."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, 4)
    print(f"running {path.name}", file=sys.stderr, flush=True)
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": path.parent}}
    ).execute()
    parts, pictures = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source.strip())
            continue
        parts.append(f"```python\n{cell.source.strip()}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                pictures += 1
                name = f"{path.stem}_{pictures}.png"
                (folder / name).write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![What this cell draws]({name})")
            elif text := said(output, data):
                parts.append(f"```text\n{text}\n```")
    text = "\n\n".join(parts).replace("](../docs/", "](../")
    (folder / f"{path.stem}.md").write_text(text + "\n", "utf-8")
    return re.match("# (.*)", text)[1]


def said(output, data):
    """What a cell printed, or is worth; not what libraries complain of, nor frames that only a notebook shows."""
    text = output.get("text", "") if output.get("name") == "stdout" else data.get("text/plain", "")
    return "" if text.startswith("<") else re.sub(r"\x1b\[[\d;]*m", "", text).rstrip()
