"""What is shown while a training runs: a bar on a terminal, lines where there is none."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path


def test_without_a_terminal_there_are_lines(run, train_words, tmp_path: Path):
    said = run(*train_words(tmp_path / "run", "lora"))
    assert re.search(r"^recipe: lr=0.003, epochs=4, .*max_length=128$", said.err, re.M)
    lines = re.findall(
        r"^epoch (\d+)  loss \d\.\d{4}  accuracy (\S+)  best (\S+)  step (\d+)/20  at most \d+ s left$", said.err, re.M
    )
    assert [(line[0], line[3]) for line in lines] == [("1", "5"), ("4", "20")], said.err
    assert "\x1b" not in said.err + said.out


def test_on_a_terminal_there_is_a_bar(train_words, tmp_path: Path):
    ours, theirs = pty.openpty()
    words = [str(Path(sys.executable).with_name("unipelt")), *train_words(tmp_path / "run", "lora", "--epochs", "10")]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other side has closed
        pass
    os.close(ours)
    text = shown.decode()
    assert process.wait() == 0 and "recipe: lr=0.003" in text
    assert "━" in text and re.search(r"\d+/50", text) and re.search(r"\d:\d\d:\d\d", text), (
        "steps, a bar, the time left"
    )
    assert re.search(r"epoch \d+  loss \d\.\d{4}  accuracy", text) and "s left" not in text
