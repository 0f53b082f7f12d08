"""Writes what the docs take from the code between `<!-- generated: … -->` and `<!-- end -->`: run it after changing either.

presets, mam and compatible are tables; `code PATH NAME …` quotes definitions, `code PATH "some text"` the first call that holds the text.
"""

import ast
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from textwrap import dedent
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from unipelt import attach, detach, trainable_parameters
from unipelt.errors import SpecError
from unipelt.inject.fixed_gates import with_prefix_tables
from unipelt.inject.state import mixture_state
from unipelt.spec import FORMS, PRESETS, RULES, Gate, Learned, equation
from unipelt.spec.compatibility import ANY_WEIGHT, LINEARS, READS, REFUSALS, SITES

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", flags=re.DOTALL)

STATED = {  # what Mao et al. 2022 state for bert-base, in thousands and millions
    "bitfit": "103K",
    "prefix": "184K",
    "lora": "295K",
    "adapter": "895K",
    "unipelt-ap": "1.1M",
    "unipelt-apl": "1.4M",
}


def count(base: PreTrainedModel, method: str) -> tuple[int, int, int]:
    """Trainable parameters: of prefixes without their MLPs, the head's, and in training, without the head and with the prefixes' MLPs."""
    with torch.device("meta"):
        attach(base, method)
        training = trainable_parameters(base)
        _, state = with_prefix_tables(mixture_state(base))
        detach(base)
    kept = sum(value[0].numel() for path, value in state.items() if not path.startswith("head."))
    head = training.pop("head", 0)
    return kept, head, sum(training.values())


def presets() -> str:
    with torch.device("meta"):
        base = BertForSequenceClassification(BertConfig())  # the defaults are bert-base
    rows = []
    for name, preset in PRESETS.items():
        formula, _, paper = (preset.__doc__ or "").partition("\n")[0].partition("          ")
        kept, head, training = count(base, name)
        numbers = (f"{kept:,}", f"{kept + head:,}", f"{training:,}" if training != kept else "")
        rows.append((f"`{name}`", formula.strip(), paper.strip(), *numbers, STATED.get(name, "")))
    titles = ("method", "equation", "source", "parameters", "with head", "in training", "the paper says")
    return table(titles, rows)


def mam() -> str:
    cases: list[tuple[str, Callable[[], PreTrainedModel], str, str]] = [
        ("roberta-base", lambda: RobertaForSequenceClassification(RobertaConfig()), "mam", "0.47 %"),
        (
            "bart-large",
            lambda: BartForConditionalGeneration(BartConfig()),
            "mam(prefix=30, mlp=800, bottleneck=512, s=4.0)",
            "6.7 %",
        ),
    ]
    rows = []
    for name, make, method, stated in cases:
        with torch.device("meta"):
            base = make()
        kept, _, _ = count(base, method)
        share = kept / sum(p.numel() for p in base.base_model.parameters())
        rows.append((name, f"`{method}`", f"{kept:,}", f"{share:.2%}".replace("%", " %"), stated))
    return table(("base", "method", "parameters", "of the base", "the paper says"), rows)


def compatible() -> str:
    rows = [(*map(words, (rule.forms, rule.sites, rule.reads, rule.weights)), rule.text, rule.source) for rule in RULES]
    return table(("form", "site", "reads", "weight", "equation", "source"), rows) + "\n" + refused()


def refused() -> str:
    """Every combination that has no equation, with its reason, forms that are refused alike in one row."""
    weights: dict[str, Any] = dict(zip(ANY_WEIGHT, (1.0, Learned(), Gate(), Gate(group="g"))))
    forms_of: dict[tuple, list[str]] = defaultdict(list)
    for name, form in FORMS.items():
        found: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for site, reads, kind in product(SITES, READS, ANY_WEIGHT):
            try:
                equation(form(), site + "x" * (site == LINEARS), reads, weights[kind])
            except SpecError as error:
                found[str(error).split("refused, because ")[1], reads][site].append(kind)
        rest = REFUSALS.get((name, "elsewhere"), REFUSALS["any", "elsewhere"])
        for (reason, reads), kinds in found.items():
            if reason == rest:
                continue
            sites: dict[tuple, list[str]] = defaultdict(list)
            for site, refusals in kinds.items():
                sites[tuple(refusals)].append(site)
            for refusals, places in sites.items():
                forms_of[words(places), reads, words(refusals), reason].append(name)
        forms_of["any other", "any other", "any", rest].append(name)
    rows = sorted((words(forms), *row) for row, forms in forms_of.items())
    return table(("form", "site", "reads", "weight", "refused, because"), rows)


def words(names: Iterable[str]) -> str:
    names = tuple(names)
    if names == ANY_WEIGHT:
        return "any"
    return ", ".join(f"{LINEARS}NAME" if name == LINEARS else name for name in names)


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = tuple(titles)
    lines = [titles, ("---",) * len(titles), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(path: str, *names: str) -> str:
    """Definitions, assignments, or the first call that holds a text, as they stand in a source file."""
    source = (ROOT / path).read_text(encoding="utf-8")
    return "```python\n" + "\n\n\n".join(quoted(source, name) for name in names) + "\n```\n"


def quoted(source: str, name: str) -> str:
    outer, _, inner = name.rpartition(".") if " " not in name else ("", "", name)
    tree: ast.AST = ast.parse(source)
    if outer:
        tree = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == outer)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found = node.name == inner
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found = inner in map(ast.unparse, node.targets if isinstance(node, ast.Assign) else [node.target])
        else:
            found = isinstance(node, ast.Call) and " " in name and name in str(ast.get_source_segment(source, node))
        if found:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            return dedent("\n".join(source.splitlines()[first - 1 : node.end_lineno])).rstrip(",")
    raise ValueError(f"no {name!r} in the source to quote")


def generate(text: str) -> str:
    """A page with everything between its markers made again."""
    makers: dict[str, Callable[..., str]] = {"presets": presets, "mam": mam, "compatible": compatible, "code": code}

    def renew(match: re.Match) -> str:
        maker, *arguments = shlex.split(match[2])
        return match[1] + makers[maker](*arguments) + match[3]

    return BLOCK.sub(renew, text)


def pages() -> list[Path]:
    return sorted((ROOT / "docs").glob("*.md"))


if __name__ == "__main__":
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = generate(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: written again")
