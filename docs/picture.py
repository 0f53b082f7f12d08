"""Draws the README's picture, docs/gates.svg: the gates of a run on real text, in a few minutes on two cores.

    python docs/picture.py FOLDER

The run is UniPELT on the built-in task; the picture is what `unipelt inspect --figure` draws over texts that it was not trained on.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import matplotlib

from unipelt.cli import main
from unipelt.data.builtin import load_docstrings

PICTURE = Path(__file__).resolve().with_name("gates.svg")
TRAIN = (
    "--data docstrings --method unipelt-apl --k 800 --epochs 4 --evaluate-every 2 --validation-rows 300 --max-length 48"
)
TEXTS = 300


def draw(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # so that the picture's title names the file alone
    subprocess.run([sys.executable, "-m", "unipelt", "train", *TRAIN.split(), "--out", "run"], check=True)
    test = load_docstrings().test
    assert test is not None
    with Path("texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in test.first[:TEXTS])])
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unipelt"}):  # the same run gives the same file
        main(["inspect", "run", "--data", "texts.csv", "--figure", str(PICTURE)])


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
