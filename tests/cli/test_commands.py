"""From a file to an answer: train, predict, inspect, methods, export, on real files and a tiny base."""

import csv
import json
import math
import os
import shutil
from itertools import product
from pathlib import Path

import matplotlib.image
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import unipelt
from cli.conftest import BAD, GOOD, write_reviews
from unipelt import PRESETS, Change, Gate, LowRank, Mixture
from unipelt.checkpoint.bases import load_base
from unipelt.checkpoint.description import describe, equations
from unipelt.cli.inspect import draw_gates
from unipelt.data import read_table
from unipelt.spec import RULES, mixture


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("method", ["unipelt-apl", "lora", "full"])
def test_what_train_writes_predict_reads(method: str, run, train_words, unlabelled: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "run"
    said = run(*train_words(out, method))
    assert said.code == 0, said.err
    assert "reviews.csv: text 'review', label 'stars'; classification, 2 labels: no, yes\n" in said.err
    assert "recipe: lr=0.003, epochs=4, batch_size=8" in said.err and "held out as the test set" in said.err
    assert "\nexamples: 38 train, 10 validation, 12 test\n" in said.err
    for word in (
        "validation  accuracy",
        "test accuracy",
        "always the most frequent training class",
        f"predict with `unipelt predict {out}",
    ):
        assert word in said.out
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["labels"], len(record["curve"])) == ("finished", ["no", "yes"], 4)
    assert not [path.name for path in out.iterdir() if path.name.startswith((".", "training"))], "nothing is left over"

    answered = run("predict", out, "--data", unlabelled, "--proba")
    rows = table(answered.out)
    assert len(rows) == 9 and {row["prediction"] for row in rows} <= {"yes", "no"}
    assert [row["review"] for row in rows] == [row["review"] for row in table(unlabelled.read_text())]
    for row in rows:
        yes, no = float(row["p(yes)"]), float(row["p(no)"])
        assert math.isclose(yes + no, 1, abs_tol=1e-5) and row["prediction"] == ("yes" if yes > no else "no")

    into = run("predict", out, "--data", unlabelled, "--out", tmp_path / "deep" / "answers.csv")
    assert into.out == f"{tmp_path}/deep/answers.csv: 9 examples\n"
    written = table((tmp_path / "deep" / "answers.csv").read_text())
    assert written == [{"review": row["review"], "prediction": row["prediction"]} for row in rows]

    again = run(*train_words(out, method))
    assert (again.code, again.out) == (0, said.out), "a finished run only prints its result"
    monkeypatch.chdir(tmp_path)  # other words for the same places are the same run
    assert (
        run(*(os.path.relpath(word) if Path(word).is_absolute() else word for word in train_words(out, method))).code
        == 0
    )
    assert again.err == f"{out}: already finished, nothing trained\n"


def test_a_run_whose_head_is_frozen_predicts_as_it_was_tested(run, train_words, tmp_path: Path):
    """Its head is random, and another one at each load: the run keeps its own."""
    reviews = write_reviews(tmp_path / "test.csv", seed=7)
    words = ("--head", "frozen", "--seed", 3, "--epochs", 12, "--test", reviews)
    assert run(*train_words(tmp_path / "run", "lora", *words)).code == 0
    predicted = [row["prediction"] for row in table(run("predict", tmp_path / "run", "--data", reviews).out)]
    right = [one == row["stars"] for one, row in zip(predicted, table(reviews.read_text()))]
    assert sum(right) / len(right) == json.loads((tmp_path / "run" / "run.json").read_text())["test"]


def test_a_run_learns_what_the_texts_say(run, train_words, tmp_path: Path):
    """One word of each text decides; 400 rows suffice for it."""
    data = write_reviews(tmp_path / "many.csv", 480, seed=3)
    said = run(*train_words(tmp_path / "run", "full", "--data", data, "--epochs", "12"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["test"] > 0.85, said.out
    texts = tmp_path / "texts.csv"
    texts.write_text("review\n" + "\n".join(GOOD + BAD) + "\n")
    predicted = [row["prediction"] for row in table(run("predict", tmp_path / "run", "--data", texts).out)]
    assert predicted.count("yes") >= 4 and predicted[:5].count("yes") >= 4, predicted


@pytest.mark.parametrize("classes", [2, 3])
def test_a_base_that_has_a_head_of_another_task_gets_a_new_one(
    classes: int, run, finished, train_words, tmp_path: Path
):
    """The head trains whatever the base brings: here one of two classes."""
    base, data = finished("full"), tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"word{i % 7} word{i % 20},{'abc'[i % classes]}\n" for i in range(60)))
    out = tmp_path / "run"
    assert run(*train_words(out, "lora", "--model", base, "--data", data)).code == 0
    described = describe(out)
    assert described.head["modules"] == ["classifier"] and len(described.task["labels"]) == classes
    record = json.loads((out / "run.json").read_text())
    assert record["parameters"]["head"] == classes * 33
    rows = table(run("predict", out, "--data", data, "--proba").out)
    assert len(rows) == 60 and len(rows[0]) == 3 + classes


def test_pairs_and_numbers(run, train_words, tmp_path: Path):
    data = write_reviews(tmp_path / "pairs.csv", pairs=True, numbers=True)
    said = run(*train_words(tmp_path / "run", "lora", "--data", data, "--text", "review", "--pair", "other"))
    assert said.code == 0 and "test spearman" in said.out and "most frequent" not in said.out, said.err
    assert "text 'review' and 'other', label 'stars'; regression" in said.err
    given, answered = table(data.read_text()), table(run("predict", tmp_path / "run", "--data", data).out)
    assert all(math.isfinite(float(row.pop("prediction"))) for row in answered)
    assert answered == given, "every column of the user's stays as it was"
    assert "regression has no class probabilities" in run("predict", tmp_path / "run", "--data", data, "--proba").line
    single = write_reviews(tmp_path / "single.csv", labels=False)
    assert "no column 'other', which the run was trained on" in run("predict", tmp_path / "run", "--data", single).line


def test_predictions_stand_behind_whatever_the_file_holds(run, finished, tmp_path: Path):
    rows = [{"id": 7, "review": "word1 good", "tags": ["ü", {"n": None}], "seen": True}, {"review": "bad", "id": None}]
    data = tmp_path / "new.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.loads(line) for line in run("predict", finished("lora"), "--data", data).out.splitlines()]
    assert all({**row, **line} == line and line["prediction"] for row, line in zip(rows, lines)), "JSONL as it came"
    run("predict", finished("lora"), "--data", data, "--out", tmp_path / "out.csv")
    first, second = table((tmp_path / "out.csv").read_text())
    assert [*first] == ["id", "review", "tags", "seen", "prediction"] and first["id"] == "7" and second["id"] == ""
    assert (json.loads(first["tags"]), json.loads(first["seen"])) == (rows[0]["tags"], True)


def test_predictions_follow_the_file_and_an_empty_text_has_none(run, finished, tmp_path: Path):
    """Delimiter, encoding and byte order mark as they came; a text that looks like a formula stays as it is."""
    data, out = tmp_path / "new.csv", tmp_path / "out.csv"
    data.write_bytes("\ufeffreview;n\ngut für word1;1\n;2\n=1+2;3\n[SEP] [CLS];4\n".encode())
    assert run("predict", finished("lora"), "--data", data, "--out", out).code == 0
    lines = out.read_bytes().decode("utf-8").splitlines()
    assert lines[0] == "\ufeffreview;n;prediction" and lines[2] == ";2;"
    assert [line.rsplit(";", 1)[0] for line in lines[1:]] == ["gut für word1;1", ";2", "=1+2;3", "[SEP] [CLS];4"]
    data.write_bytes("review;n\ngut für word1;1\n".encode("cp1252"))
    assert "--encoding cp1252" in run("predict", finished("lora"), "--data", data).line
    again = ("predict", finished("lora"), "--data", data, "--encoding", "cp1252", "--out", out)
    assert "exists already; expected a new file, or --overwrite" in run(*again).line
    assert run(*again, "--overwrite").code == 0
    assert "gut für word1;1;" in out.read_bytes().decode("cp1252")
    for suffix in (".jsonl", ".xlsx", ".parquet", ".tsv", ".json"):
        other = tmp_path / f"out{suffix}"
        run("predict", finished("lora"), "--data", data, "--encoding", "cp1252", "--out", other)
        assert read_table(other, "cp1252" if suffix == ".tsv" else None).columns["review"] == ["gut für word1"]


def test_a_prediction_below_the_confidence_is_blank(run, finished, unlabelled: Path):
    whole = table(run("predict", finished("lora"), "--data", unlabelled, "--proba").out)
    sure = [max(float(value) for name, value in row.items() if name.startswith("p(")) for row in whole]
    least = sorted(sure)[len(sure) // 2]
    rows = table(run("predict", finished("lora"), "--data", unlabelled, "--min-confidence", least).out)
    for row, one, value in zip(rows, whole, sure):
        if abs(value - least) > 1e-5:  # it was printed with six digits
            assert row["prediction"] == (one["prediction"] if value > least else "")
    assert any(row["prediction"] == "" for row in rows)
    assert "from 0 to 1" in run("predict", finished("lora"), "--data", unlabelled, "--min-confidence", 2).line


def test_gates_are_shown_for_each_text_layer_and_change(run, finished, unlabelled: Path, tmp_path: Path):
    folder = finished("unipelt-apl")
    rows = table(run("predict", folder, "--data", unlabelled, "--gates").out)
    gates = [name for name in rows[0] if name.startswith("gate(")]
    assert len(gates) == 2 * 4, gates  # two layers; adapter, prefix, and LoRA on query and value
    assert all(0 < float(row[gate]) < 1 for row in rows for gate in gates)
    assert "this run has no gates" in run("predict", finished("lora"), "--data", unlabelled, "--gates").line

    figure = tmp_path / "figures" / "gates.png"
    said = run("inspect", folder, "--data", unlabelled, "--figure", figure)
    assert said.code == 0 and "gates on 9 examples" in said.out and said.out.endswith(f"{figure}: drawn\n")
    (tmp_path / "mine.png").write_text("mine")
    again = ("inspect", folder, "--data", unlabelled, "--figure", tmp_path / "mine.png")
    assert "mine.png: exists already; expected a new file, or --overwrite to replace it" in run(*again).line
    assert (tmp_path / "mine.png").read_text() == "mine" and run(*again, "--overwrite").code == 0
    for layer in (0, 1):  # the table's means are those of the rows
        line = next(line for line in said.out.splitlines() if line.startswith(f"encoder {layer}"))
        means = sorted(sum(float(row[gate]) for row in rows) / 9 for gate in gates if f"encoder.{layer}." in gate)
        shown = sorted(float(word) for word in line.split()[2::3])
        assert shown == pytest.approx(means, abs=6e-4)
    pixels = matplotlib.image.imread(figure)
    assert figure.read_bytes().startswith(b"\x89PNG\r\n") and pixels.shape[0] > 100 and pixels.std() > 0.01
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # texts as texts, not as shapes
        assert run("inspect", folder, "--data", unlabelled, "--figure", tmp_path / "gates.SVG").code == 0
    drawn = (tmp_path / "gates.SVG").read_text()
    assert drawn.lstrip().startswith("<?xml") and "mean gates over 9 examples" in drawn and "encoder 1" in drawn


def test_gates_that_differ_a_little_have_colours_that_differ(tmp_path: Path):
    values = {f"encoder.{layer}.adapter": torch.full((3,), 0.5 + 0.05 * layer) for layer in (0, 1)}
    draw_gates(values, str(tmp_path / "gates.png"), "two layers")
    pixels = matplotlib.image.imread(tmp_path / "gates.png")[..., :3]
    first, second = (pixels[int(pixels.shape[0] * height), int(pixels.shape[1] * 0.42)] for height in (0.3, 0.7))
    assert abs(first - second).max() > 0.5, (first, second)


def test_inspect_counts_what_train_counted(run, finished):
    folder = finished("unipelt-apl")
    said = run("inspect", folder)
    record, described = json.loads((folder / "run.json").read_text()), describe(folder)
    assert f"test accuracy: {record['test']:.4f}" in said.out and described.base["name"] in said.out
    assert f": {(folder / 'unipelt.safetensors').stat().st_size / 1e3:,.1f} kB; head reads" in said.out
    counts = dict(record["parameters"], prefix_heads=2 * 2 * 2 * 32)  # two layers of two keys and values
    lines = [line.split() for line in said.out.splitlines()]
    shown = {line[0]: int(line[1].replace(",", "")) for line in lines if line and line[0] in counts}
    gates = sum(int(line[1].replace(",", "")) for line in lines if line and line[0] == "gates")
    assert sum(shown.values()) == record["stored"] < sum(record["parameters"].values())
    assert shown.keys() | {"gates"} == counts.keys() | {"gates"} and gates == 0
    assert {name: count for name, count in shown.items() if "prefix" not in name} == {
        name: count for name, count in counts.items() if "prefix" not in name
    }
    formulas = equations(Mixture.from_dict(described.mixture), "bert")
    assert all(f"  {formula}" in said.out for formula in formulas.values()), "no terminal, no wrapped lines"
    whole = run("inspect", finished("full")).out
    assert "full on" in whole and "test accuracy" in whole


def test_inspect_shows_the_row_of_a_base_and_tries_the_laws(run, base_of, tmp_path: Path):
    for folder, said in (
        (base_of("bert"), "in the table"),
        (is_decoder(base_of("bert"), tmp_path), "found by running it"),
    ):
        lines = run("inspect", "--model", folder, "--show-modules").out.splitlines()
        assert lines[0].startswith(f"{folder}: bert") and lines[0].endswith(said)
        assert (
            '  "layers": "encoder.layer",' in lines and lines[-1] == "all checks pass: complete, sites, ffn, positions"
        )
    assert '  "causal": true,' in lines and "decoder: 2 layers, encoder.layer.0 to encoder.layer.1" in lines
    assert "leave out the run" in run("inspect", folder, "--model", folder, "--show-modules").line


def is_decoder(folder: str, to: Path) -> Path:
    """The same base, run as a decoder, of which the table has no row."""
    shutil.copytree(folder, to / "decoder")
    config = json.loads((to / "decoder" / "config.json").read_text())
    (to / "decoder" / "config.json").write_text(json.dumps(config | {"is_decoder": True}))
    return to / "decoder"


def test_methods_are_listed_with_their_counts(run, tiny_base: str, base_of):
    said = run("methods")
    assert said.code == 0 and all(f"\n{name} " in "\n" + said.out for name in PRESETS)
    assert all(
        mixture(line.strip()) for line in said.out.splitlines() if "(" in line and line.strip().endswith("None)")
    )
    assert "    lora(r=8, alpha=16.0, dropout=0.0, target_modules=('query', 'value'), " in said.out
    counted = run("methods", "--model", tiny_base).out
    line = next(line for line in counted.splitlines() if line.startswith("lora "))
    lora = f"{2 * 2 * 2 * 8 * 32:,}"  # layers, linears, matrices, rank, width
    assert line.split()[1:5] == [lora, "trained,", lora, "stored"]
    trained, _, stored, _ = next(line for line in counted.splitlines() if line.startswith("prefix ")).split()[1:5]
    assert stored == f"{2 * 2 * 10 * 32:,}" != trained  # layers, key and value, length, width
    assert "bitfit" in counted and "not possible" in run("methods", "--model", base_of("llama")).out
    listed = [line.rstrip() for line in run("methods", "--compatible").out.splitlines()]
    for law in RULES:
        assert any(law.equation in line and line.endswith(law.source) for line in listed), (
            "no terminal, no wrapped lines"
        )


def test_what_is_exported_answers_as_the_run_does(run, finished, unlabelled: Path, tmp_path: Path):
    folder, merged = finished("lora"), tmp_path / "merged"
    expected = [float(row["p(yes)"]) for row in table(run("predict", folder, "--data", unlabelled, "--proba").out)]
    said = run("export", folder, "--merged", merged)
    assert (said.out, said.err) == (f"{merged}: written\n", ""), "no bar of another library"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    texts = [row["review"] for row in table(unlabelled.read_text())]
    with torch.no_grad():
        given = tokenizer(texts, padding=True, return_tensors="pt")
        logits = model.eval()(**given).logits
    temperature = (
        json.loads((folder / "run.json").read_text())["temperature"] or 1.0
    )  # which the plain model does not know
    found = (logits / temperature).softmax(dim=-1)[:, model.config.label2id["yes"]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=0)

    assert run("export", folder, "--peft", tmp_path / "peft").code == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert "expected one of --merged FOLDER, --peft FOLDER and --simplified FOLDER" in run("export", folder).line
    gated = finished("unipelt-apl")
    line = run("export", gated, "--merged", tmp_path / "no").line
    assert "gate depends on the input" in line and "--data" not in line, "its adapter and prefix never fold"
    whole = run("export", finished("full"), "--merged", tmp_path / "no").line
    assert f"{finished('full')}: a full run is already a plain transformers model" in whole
    for place, kind in product((folder, merged, merged / "config.json"), ("--merged", "--peft")):
        before = sorted(path.name for path in folder.iterdir())
        assert f"{kind} {place}: not empty; expected a new folder" in run("export", folder, kind, place).line
        assert sorted(path.name for path in folder.iterdir()) == before
    fixed = run("export", gated, "--merged", tmp_path / "no", "--data", unlabelled).line
    assert "merge refused" in fixed and "prefix" in fixed and not (tmp_path / "no").exists()


def test_a_gated_lora_merges_once_its_gates_are_fixed(run, tiny_base: str, finished, unlabelled: Path, tmp_path: Path):
    model, folder = load_base(tiny_base, outputs=2), tmp_path / "run"
    change = Change(form=LowRank(r=2), site=("query", "value"), reads="input", weight=Gate())
    unipelt.attach(model, Mixture((change,), "gated lora"), fresh_head=True)
    unipelt.save(model, folder, base=tiny_base, task=describe(finished("lora")).task)
    line = run("export", folder, "--peft", tmp_path / "peft").line
    assert "gate depends on the input" in line and "`unipelt export` with --data FILE" in line
    for kind in ("--merged", "--peft"):
        said = run("export", folder, kind, tmp_path / kind, "--data", unlabelled)
        assert (said.code, said.out) == (0, f"{tmp_path / kind}: written\n"), said.err


def test_a_simplified_run_predicts(run, finished, reviews: Path, unlabelled: Path, tmp_path: Path):
    gated, folder = finished("unipelt-apl"), tmp_path / "simplified"
    asked = ("export", gated, "--simplified", folder)
    said = run(*asked, "--data", reviews, "--max-deviation", 1, "--drop-below", 0)
    before, after = (describe(folder).results[f"accuracy {when}"] for when in ("with all gates", "simplified"))
    assert said.out.startswith(
        "8 gates over 60 examples: 0% kept, 50% fixed, 50% merged, 0% dropped; outputs change by at most "
    )
    assert said.out.endswith(f"; accuracy {before:.4f} → {after:.4f}\n{folder}: written\n")
    rows = table(run("predict", folder, "--data", reviews).out)
    assert after == sum(row["prediction"] == row["stars"] for row in rows) / 60
    assert "this run has no gates" in run("predict", folder, "--data", reviews, "--gates").line

    kept = run(*asked[:3], tmp_path / "kept", "--data", unlabelled, "--max-deviation", 0)
    assert "8 gates over 9 examples: 100% kept" in kept.out and "accuracy" not in kept.out
    for data in (gated, tmp_path / "kept"):
        answered = run("predict", data, "--data", unlabelled, "--proba").out
        assert answered == run("predict", gated, "--data", unlabelled, "--proba").out

    assert "--simplified needs --data" in run(*asked[:3], tmp_path / "no").line
    assert "not empty; expected a new folder" in run(*asked, "--data", reviews).line
    wrong = run(*asked[:3], tmp_path / "no", "--data", reviews, "--max-deviation", -1).line
    assert "deviation=-1.0: expected a number from 0 to 1" in wrong
    none = run("export", finished("lora"), "--simplified", tmp_path / "no", "--data", reviews).line
    assert "has no gates, so there is nothing to simplify" in none and not (tmp_path / "no").exists()


def test_values_far_from_zero_are_learnt_and_predicted_as_they_are(run, train_words, tmp_path: Path):
    """Prices, for example: the base's own numbers are near 1."""
    data = write_reviews(tmp_path / "prices.csv", 80, numbers=True)
    rows = table(data.read_text())
    prices = [250_000 + 10_000 * float(row["stars"]) for row in rows]
    data.write_text("review,stars\n" + "".join(f"{row['review']},{price}\n" for row, price in zip(rows, prices)))
    assert run(*train_words(tmp_path / "run", "lora", "--data", data, "--kind", "regression")).code == 0
    said = table(run("predict", tmp_path / "run", "--data", data).out)
    assert all(min(prices) - 1e5 < float(row["prediction"]) < max(prices) + 1e5 for row in said)
