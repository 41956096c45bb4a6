"""What all pictures share: how they are written, and how their curves are told apart."""

from pathlib import Path

from matplotlib.figure import Figure

_STYLE = (("C0", "-"), ("C1", "--"), ("C2", ":"), ("C3", "-."))


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, atomically."""
    path = Path(path)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=130)
    temporary.replace(path)


def styles(n: int) -> list[tuple[str, str]]:
    """Colour and line of n curves, different in black and white too."""
    return [_STYLE[i % len(_STYLE)] for i in range(n)]
