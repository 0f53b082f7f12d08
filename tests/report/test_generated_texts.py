"""Texts of a comparison side by side: every method's answer beside the right one, from the worst to the best."""

from pathlib import Path

import pytest
from cli.conftest import run  # noqa: F401
from generation.bases import save_base, save_pairs

from unipelt.report.generated_texts import SHOWN, examples

pytest.importorskip("rouge_score")


def test_examples_go_from_the_worst_answer_to_the_best():
    answers = [f"one two three four {n}" for n in range(20)]
    good = [" ".join(answer.split()[: n % 6]) for n, answer in enumerate(answers)]
    inputs = {"messages": [[{"role": "user", "content": f"question {n}"}] for n in range(20)], "answer": answers}
    table = examples(inputs, [f"f.jsonl, example {n + 1}" for n in range(20)], {"lora": good, "other": answers}, "lora")
    assert len(table.blocks) == SHOWN
    scores = [next(row[2].value for row in block.rows if row[0].value == "lora") for block in table.blocks]
    assert scores == sorted(scores) and scores[0] == 0.0 and scores[-1] == 100.0
    for block in table.blocks:
        number = int(block.heading.split(":")[0].removeprefix("example ")) - 1
        assert block.heading.endswith(f"question {number}")
        assert [row[1].value for row in block.rows] == [answers[number], good[number], answers[number]]


def test_a_comparison_of_generated_text_shows_them(run, tmp_path: Path):  # noqa: F811
    base, data, out = save_base(tmp_path / "base"), save_pairs(tmp_path / "pairs.jsonl", 60), tmp_path / "out"
    said = run(
        "compare", "--model", base, "--data", data, "--methods", "lora", "unipelt-apl(bottleneck=4, prefix=2, mlp=8, r=2)",
        "--seeds", 1, "--epochs", 1, "--num-rates", 1, "--max-new-tokens", 3, "--max-length", 64, "--out", out,
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "winner: " in said.out
    page = (out / "report" / "report.html").read_text()
    assert "Answers side by side" in page and "right answer" in page and "Metrics of the generated texts" in page
    rows = (out / "report" / "text-metrics.csv").read_text()
    assert "rougeL" in rows and "lora" in rows and "unipelt-apl" in rows
    answered = run("predict", out / "winner", "--data", data)
    assert answered.code == 0 and answered.out.count("\n") >= 60
