"""Every python snippet of the README and the docs runs and prints what it says; every `unipelt` command line has the flags it names.

The snippets of a page are one program, from top to bottom, in an empty folder. What is printed stands behind `# →` or in the
```text block below. Models of the hub are tiny random ones here, and code that docs/generate.py quotes is not run.
"""

import io
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cli.test_help import parse

from unipelt import mixture

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("README.md"), *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = re.compile(r"<!-- generated: .+? -->.*?<!-- end -->", flags=re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fence, blank where code was quoted, so that line numbers hold."""
    text = page.read_text(encoding="utf-8")
    return FENCE.findall(GENERATED.sub("", text))


def programs() -> list:
    return [pytest.param(page, id=page.name) for page in PAGES if any(kind == "python" for kind, _ in fences(page))]


def command_lines() -> list:
    lines = []
    for page in PAGES:
        for kind, text in fences(page):
            if kind in ("bash", "sh", "console"):
                joined = re.sub(r"\\\n\s*", " ", text).splitlines()
                lines += [(page, line.strip().removeprefix("$ ")) for line in joined]
    return [pytest.param(line, id=f"{page.name}: {line}") for page, line in lines if line.startswith("unipelt ")]


@pytest.mark.parametrize("page", programs())
def test_the_program_of_a_page_runs_and_prints_what_it_says(page: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_hub(monkeypatch)
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = fences(page)
    for (kind, source), (following, text) in zip(blocks, [*blocks[1:], ("", "")]):
        if kind != "python":
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(source, page.name, "exec"), names)
        lines = [line.rstrip() for line in printed.getvalue().splitlines()]
        rest = iter(lines)  # a Trainer prints between what the snippet prints
        for expected in re.findall(r"# → (.*)$", source, flags=re.MULTILINE):
            assert expected in rest, f"{expected!r} is not printed, or not in its place; printed: {lines}\n{source}"
        if following == "text":
            assert lines == text.splitlines(), source


@pytest.mark.parametrize("line", command_lines())
def test_the_command_and_its_flags_exist(line: str):
    line = line.split(" | ")[0].split(" > ")[0].replace(" --debug", "")
    if "--help" not in line:
        method = parse(shlex.join(shlex.split(line, comments=True))).params.get("method")  # parses, and runs nothing
        assert method in (None, "full") or mixture(method)


def without_hub(monkeypatch) -> None:
    """from_pretrained of a name that is no folder gives something tiny of the same kind."""
    sizes = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}

    def bert(**settings: Any) -> Any:
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(
            transformers.BertConfig(**sizes, num_attention_heads=4, **settings)
        )

    def llama(**settings: Any) -> Any:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4, **settings))

    def tokenizer(**_: Any) -> Any:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        letters = [prefix + chr(code) for prefix in ("", "##") for code in range(ord("!"), ord("~") + 1)]
        return transformers.BertTokenizer(vocab={token: i for i, token in enumerate(special + letters)})

    for owner, make in (
        (transformers.AutoModelForSequenceClassification, bert),
        (transformers.AutoModelForCausalLM, llama),
        (transformers.AutoTokenizer, tokenizer),
    ):
        monkeypatch.setattr(owner, "from_pretrained", local_or(owner.from_pretrained, make))


def local_or(load: Callable, make: Callable) -> Callable:
    def from_pretrained(name: Any, **settings: Any) -> Any:
        if Path(name).is_dir():
            return load(name, **settings)
        known = ("num_labels", "problem_type", "attn_implementation")
        return make(**{key: value for key, value in settings.items() if key in known})

    return from_pretrained
