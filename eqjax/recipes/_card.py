"""The model card of a published model: what it is, the data, the figures, the seed, and how to use it."""

import json
from typing import Any

_FIGURES = {
    "validation": ("cross-entropy on validation text, nats per token", ".4f"),
    "bigram": ("the same of bigram counts", ".4f"),
    "validation_tokens": ("over so many tokens", ","),
    "residual": ("median force residual there", ".1e"),
    "unsettled": ("fraction that did not settle", ".2%"),
}


def card(name: str, about: dict[str, Any], license: str | None) -> str:
    """README.md of a repository."""
    settings, figures = about["settings"], about["figures"]
    remembers = settings.get("memory", "none") != "none"
    equilibrium = about["command"] == "train"
    kind = "equilibrium language model" if equilibrium else "GPT-2" + " with memory" * remembers
    head = ["library_name: eqjax", "tags:", "- jax", "- text-generation"]
    head += [f"- {'equilibrium-model' if equilibrium else 'gpt2'}"]
    head += [f"license: {license}"] if license else []
    rows = [
        f"| {label} | {format(figures[key], form)} |"
        for key, (label, form) in _FIGURES.items()
        if key in figures
    ]
    how = f", trained by `{settings['estimator']}`" if equilibrium else ""
    train, validation = about["tokens"]
    place = name if "/" in name else "the folder of this file"
    source = json.dumps(f"hf://{name}" if "/" in name else name, ensure_ascii=False)
    use = (
        'text = sample(found, found.tokenizer.encode("\\n"), 200, temperature=0.8, seed=0)'
        if equilibrium
        else f"print(found.model.{'gpt2.' * remembers}config)"
    )
    imported = "pull, sample" if equilibrium else "pull"
    lines = [
        "---",
        *head,
        "---",
        "",
        f"# {name}",
        "",
        f"A small {kind}{how}: {settings['width']} channels, {settings['heads']} heads, windows of {settings['length']} tokens. "
        f"Written by eqjax {about['version']} after {about['updates']} updates. A model for research: what it writes resembles "
        "its text, and knows nothing else.",
        "",
        "## Data",
        "",
        f"{about['source']} (SHA-256 of the text `{about['text_sha256']}`): {train:,} tokens to learn from, "
        f"{validation:,} to validate.",
        "",
        "## Figures",
        "",
        "Measured on these very weights when they were published.",
        "",
        "| | |",
        "| --- | --- |",
        *rows,
        "",
        "## Seed and settings",
        "",
        f"Seed {settings['seed']}. All settings are in `config.json`, with the SHA-256 of every array.",
        "",
        "## Use",
        "",
        "```python",
        f"from eqjax.recipes import {imported}",
        "",
        f"found = pull({source})  # {place}: refused if a byte has changed",
        use,
        "```",
        "",
    ]
    return "\n".join(lines)
