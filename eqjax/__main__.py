"""`python -m eqjax`, and the command `eqjax`: it says in one line which extra is missing."""

import sys


def start() -> None:
    """Run the command line."""
    try:
        from .cli import main as run
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    start()
