"""Makes the README's pictures.

    python docs/picture.py FOLDER            docs/gates.svg: the gates of a run on real text, in a few minutes on two cores
    python docs/picture.py report.html       docs/report.png: the top of a report, such as that of `make demo`, in Chromium

The run is UniPELT on the built-in task; the gates are what `unipelt inspect --figure` draws over texts that it was not trained on.
"""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

from unipelt.cli import main
from unipelt.data.builtin import load_docstrings

PICTURE, REPORT = (Path(__file__).resolve().with_name(name) for name in ("gates.svg", "report.png"))
WIDTH, HEIGHT, COLOURS = 1280, 1480, 64
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


def photograph(page: Path) -> None:
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
    command = [browser, *options, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={REPORT}", page.resolve().as_uri()]
    subprocess.run(command, check=True)
    with Image.open(REPORT) as taken:  # few colours make a small file
        small = taken.convert("RGB").quantize(COLOURS)
    small.save(REPORT, optimize=True)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    photograph(given) if given.suffix == ".html" else draw(given)
