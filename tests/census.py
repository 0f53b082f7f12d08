"""Every model type of the installed transformers: its row, found by running a tiny model, and the methods that it takes.

`make census` writes src/unipelt/inject/architectures.json and docs/architectures.md. Results of single types are kept in
build/census, so that a census that was stopped goes on where it was.
"""

import ast
import hashlib
import json
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import shrink
import torch
import transformers as hf
from hand_written import HAND_WRITTEN
from torch import Tensor

import unipelt
from unipelt.errors import SiteError, UserError
from unipelt.inject import discover as discovery
from unipelt.inject.architectures import Stack, entries_to_json, flags_of
from unipelt.inject.state import attached_state
from unipelt.inject.verify import failed_checks

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "census"
TABLE = ROOT / "src" / "unipelt" / "inject" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
SECONDS = 300
"""of CPU time, for one type"""
METHODS = {
    "lora": "lora(r=2)", "adapter": "adapter(bottleneck=12)", "parallel-adapter": "parallel-adapter(bottleneck=12)",
    "bitfit": "bitfit", "houlsby": "houlsby(bottleneck=12)", "prefix": "prefix(length=3, mlp=0)",
    "mam": "mam(prefix=3, mlp=0, bottleneck=12)", "unipelt-apl": "unipelt-apl(bottleneck=12, prefix=3, mlp=0, r=2)",
}  # fmt: skip
WITH_PREFIX = ("prefix", "mam", "unipelt-apl")
NO_CHANGE_AT_ZERO = ("lora", "adapter", "parallel-adapter", "bitfit")
SEVERAL = "unipelt-apl"


def census(name: str) -> dict[str, Any]:
    """The row of one type and what it takes, or why it has none."""
    try:
        model = shrink.double(shrink.build(name))
    except shrink.CannotBuild as error:
        return {"why": f"no tiny model of it can be built here: {error}"}
    except Exception as error:  # whatever a random model of it does not take
        return {"why": f"its tiny model does not run: {type(error).__name__}: {str(error)[:120]}"}
    try:
        rows = row_of(name, model)
    except SiteError as error:
        return {"why": str(error).split("by running it: ")[-1].split(". Give attach(")[0]}
    laws, takes = Laws(model, rows), {}
    for method in METHODS:
        takes[method] = laws.broken(method, rows) or "yes"
    if all(row.attention.prefix for row in rows) and any(takes[method] != "yes" for method in WITH_PREFIX):
        rows = without_prefix(rows)
        broken = next(takes[method] for method in WITH_PREFIX if takes[method] != "yes")
        takes |= {method: f"with a prefix it fails: {broken}" for method in WITH_PREFIX if takes[method] == "yes"}
    if takes["lora"] != "yes":
        return {"why": f"it fails with lora: {takes['lora']}"}
    return {"entries": entries_to_json(rows), "flags": flags_of(model.base_model.config), "takes": takes}


def row_of(name: str, model: hf.PreTrainedModel) -> tuple[Stack, ...]:
    """The row, from one tiny model, or where a projection is fused from two with other numbers of heads."""
    if name in HAND_WRITTEN:
        if broken := next(failed_checks(model, HAND_WRITTEN[name]), None):
            raise SiteError(f"by running it: the row written by hand is not right ({broken})")
        return HAND_WRITTEN[name]
    rows = discovery.discover(model)
    if any(row.attention.groups != 1 or row.attention.shape for row in rows):
        try:
            other = shrink.build(name, **shrink.other_heads(name))
        except shrink.CannotBuild:
            return rows
        if entries_to_json(discovery.discover(other)) != entries_to_json(rows):
            raise SiteError(
                "by running it: with another number of heads its fused projection is laid out in another way"
            )
    return rows


def without_prefix(rows: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """The same rows, with attention that no prefix enters."""
    closed = {"prefix": False, "softmax": None}
    return tuple(row.with_attentions(lambda attention: replace(attention, **closed), keywords=True) for row in rows)


class Laws:
    """What must hold of a model with a method attached, as far as it holds of the plain model."""

    def __init__(self, model: hf.PreTrainedModel, rows: tuple[Stack, ...]):
        self.model, self.base = model, model.base_model
        self.exact = next(model.parameters()).dtype == torch.float64
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self.given = {n: t.to(dtype) if t.is_floating_point() else t for n, t in shrink.inputs(model).items()}
        self.text = "input_ids" in self.given
        self.causal = self.text and len(rows) == 1 and rows[0].causal
        self.plain, self.state = self.run(), {n: t.clone() for n, t in self.base.state_dict().items()}
        self.noise = far(self.run(), self.plain)
        laws = {"padding": self.padding, "later tokens": self.later, "cache": self.cache, "kernels": self.kernels}
        self.kept: dict[str, tuple[Callable[[], float | None], float]] = {}
        for name, law in laws.items():
            try:
                distance = law()
            except Exception:  # a law that the plain model itself cannot be asked for
                continue
            if distance is not None and distance < 1e-5:
                self.kept[name] = law, distance

    @torch.no_grad()
    def run(self, **given: Any) -> Tensor:
        return discovery_output(self.base(**(given or self.given)))

    def padding(self) -> float | None:
        if not self.text or self.causal:
            return None
        ids, mask = self.given["input_ids"], self.given["attention_mask"]
        more = torch.zeros(len(ids), 3, dtype=torch.long)
        padded = {"input_ids": torch.cat([ids, more + 7], 1), "attention_mask": torch.cat([mask, more], 1)}
        plain = self.run()
        return far(self.run(**self.given | padded)[:, : plain.shape[1]], plain)

    def later(self) -> float | None:
        if not self.causal:
            return None
        ids = self.given["input_ids"].clone()
        ids[:, -1] = (ids[:, -1] + 7) % 90 + 5
        return far(self.run(**self.given | {"input_ids": ids})[:, :-1], self.run()[:, :-1])

    def cache(self) -> float | None:
        if not self.causal:
            return None
        ids = self.given["input_ids"]
        whole = self.run(input_ids=ids, use_cache=False)
        with torch.no_grad():
            first = self.base(input_ids=ids[:, :5], use_cache=True)
            second = self.base(input_ids=ids[:, 5:6], past_key_values=first.past_key_values, use_cache=True)
            third = self.base(input_ids=ids[:, 6:7], past_key_values=second.past_key_values, use_cache=True)
        steps = zip((second, third), (5, 6))
        return max(far(discovery_output(step)[:, -1], whole[:, at]) for step, at in steps)

    def kernels(self) -> float | None:
        before, found = self.base.config._attn_implementation, []
        for name in ("eager", "sdpa"):
            try:
                self.model.set_attn_implementation(name)
                found.append(self.run())
            except (ValueError, ImportError):
                pass
        self.model.set_attn_implementation(before)
        return far(*found) if len(found) == 2 else None

    def broken(self, method: str, rows: tuple[Stack, ...]) -> str:
        """Why a method is refused, or which law it breaks; empty where all is well."""
        try:
            unipelt.attach(self.model, METHODS[method], stacks=rows, head="frozen")
        except UserError as error:
            return f"refused: {error}"
        try:
            return self.broken_attached(method, rows) or self.broken_detached()
        except UserError as error:
            return str(error)[:120]
        except Exception as error:
            where = [f for f in traceback.extract_tb(error.__traceback__) if "unipelt" in f.filename]
            at = f" in {Path(where[-1].filename).name}" if where else ""
            return f"{type(error).__name__}{at}: {str(error)[:120]}"
        finally:
            if hasattr(self.model, "unipelt"):
                unipelt.detach(self.model)
            self.model.zero_grad()

    def broken_attached(self, method: str, rows: tuple[Stack, ...]) -> str:
        trained = {n: p for n, p in attached_state(self.model).named_parameters() if p.requires_grad}
        if not trained:
            return "nothing trains"
        near = max(1e-6 if self.exact else 1e-5, self.noise)
        if method in NO_CHANGE_AT_ZERO:
            fill(trained.values(), 0.0)
            if (moved := far(self.run(), self.plain)) > near:
                return f"a change of zero moves the output by {moved:.0e}"
        fill(trained.values(), 0.2)
        changed = self.run()
        if not changed.isfinite().all() or far(changed, self.plain) < 1e-7:
            nothing = "refused: what reads a text has no biases" if method == "bitfit" else "it changes nothing"
            return nothing if changed.isfinite().all() else "the output is not finite"
        output = self.model(**self.given)
        logits = getattr(output, "logits", None)
        output = discovery_output(output) if logits is None else logits
        if method == "bitfit" and not output.requires_grad:
            return "refused: no token reaches its biases"
        (output * torch.randn_like(output)).sum().backward()
        lost = [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
        if lost and method != "bitfit":
            return f"{len(lost)} of {len(trained)} parameters have no gradient, such as {lost[0]}"
        for name, (law, plain) in self.kept.items():
            distance = law()
            limit = max(20 * plain, 1e-6 if self.exact else 2e-4, 1e-5 if name in ("kernels", "cache") else 0)
            if distance is not None and distance > limit:
                return f"{name}: {distance:.0e} where the plain model has {plain:.0e}"
        if method == "lora":
            unipelt.merge(self.model)
            if (moved := far(self.run(), changed)) > max(near, 1e-9 if self.exact else 2e-4):
                return f"merged, it differs by {moved:.0e}"
            with torch.no_grad():
                for n, p in self.base.named_parameters():
                    p.copy_(self.state[n])
            unipelt.attach(self.model, METHODS[method], stacks=rows, head="frozen")
        return ""

    def broken_detached(self) -> str:
        unipelt.detach(self.model)
        now = self.base.state_dict()
        if now.keys() != self.state.keys() or not all(torch.equal(now[n], t) for n, t in self.state.items()):
            return "detached, the base's weights differ"
        moved = far(self.run(), self.plain)
        return f"detached, the output differs by {moved:.0e}" if moved > max(self.noise, 1e-6) else ""


def discovery_output(output: Any) -> Tensor:
    """The last hidden states."""
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")


@torch.no_grad()
def fill(parameters: Any, size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    for p in parameters:
        p.copy_(size * torch.randn(p.shape, generator=generator))


def code_now() -> str:
    """A hash of the code that a result depends on, without its comments and docstrings."""
    watched = [ROOT / "src/unipelt/inject" / name for name in WATCHED]
    every = "".join(
        _without_prose(path)
        for path in (*watched, *(ROOT / "tests" / name for name in ("shrink.py", "hand_written.py", "census.py")))
    )
    return hashlib.sha256((every + hf.__version__).encode()).hexdigest()


def _without_prose(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    return ast.dump(tree)


def kept(name: str) -> dict[str, Any]:
    """The result of one type, from build/census where the code is the same."""
    code = code_now()
    path = KEPT / f"{name}.json"
    if path.exists() and (old := json.loads(path.read_text())).pop("code") == code:
        return old
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        found = census(name)
    except TimeoutError as error:
        found = {"why": str(error)}
    signal.setitimer(signal.ITIMER_PROF, 0)
    KEPT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found | {"code": code}, indent=1))
    return found


WATCHED = ("discover.py", "layer_entry.py", "layer_run.py", "own_softmax.py", "trace.py", "verify.py")
"""what a row depends on"""


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"its laws take longer than {SECONDS} s of CPU time")


def write(results: dict[str, dict[str, Any]]) -> None:
    """The table, each distinct row once: a type that has the rows of an earlier one names that type."""
    first: dict[str, str] = {}
    table: dict[str, Any] = {}
    for name, found in sorted(results.items()):
        if "entries" not in found:
            table[name] = {"why": found["why"]}
            continue
        rows = json.dumps(found["entries"])
        table[name] = {"entries": first[rows]} if rows in first else {"entries": found["entries"]}
        first.setdefault(rows, name)
        refused = {m: reason for m, reason in found["takes"].items() if reason != "yes"}
        table[name] |= {"flags": found["flags"]} | ({"refuses": refused} if refused else {})
    lines = [f"  {json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}" for name, entry in table.items()]
    head = f'{{\n "transformers": "{hf.__version__}",\n "types": {{\n'
    TABLE.write_text(head + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def page(results: dict[str, dict[str, Any]]) -> str:
    """docs/architectures.md."""
    rows = {name: found for name, found in sorted(results.items()) if "entries" in found}
    heads = " | ".join(METHODS)
    lines = [
        "# Model types", "",
        f"Every model type of transformers {hf.__version__} that has a language-modelling, classification or",
        "image-classification head. `make census` writes this page; do not edit it.", "",
        "A tiny random model of each type is run, its modules are found, and these properties are tested: no",
        "change at zero, gradients everywhere, padding changes nothing, no view of later tokens, generation with",
        "a cache = without, eager = SDPA, merge, detach, and the checks of `unipelt/inject/verify.py`. A type that",
        "is not here is run in the same way when you attach, or refused with the reason. `unipelt architectures",
        "NAME` prints what is known of a type.", "",
        "How to name a model's modules yourself: [how-to-new-architecture.md](how-to-new-architecture.md).", "",
        f"## {len(rows)} types that take methods", "",
        f"| type | {heads} |", f"|---|{'---|' * len(METHODS)}",
    ]  # fmt: skip
    reasons: dict[str, int] = {}
    for name, found in rows.items():
        marks = []
        for reason in found["takes"].values():
            said = reason.removeprefix("refused: ").replace(f"{name} ", "").split("; ")[0]
            said = said.removeprefix("bitfit: ")
            if "no prefix enters" in said:
                said = "no prefix enters its attention, which calls no attention function and takes no softmax of q kᵀ alone"
            elif said.endswith("has no biases to tune"):
                said = "has no biases to tune"
            marks.append("yes" if reason == "yes" else f"no [{reasons.setdefault(said, len(reasons) + 1)}]")
        lines.append(f"| {name} | {' | '.join(marks)} |")
    lines += ["", *(f"{number}. {said}" for said, number in reasons.items())]
    lines += ["", f"## {len(results) - len(rows)} types that take no method", ""]
    for name, found in sorted(results.items()):
        if "entries" not in found:
            lines.append(f"- **{name}**: {' '.join(found['why'].split())}")
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    logging.getLogger("unipelt").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results = {}
    for name in names or shrink.types():
        found = results[name] = kept(name)
        said = found.get("why") or ", ".join(f"{m} {r}" for m, r in found["takes"].items() if r != "yes") or "takes all"
        print(f"{name}: {said}", flush=True)
    for method in METHODS:
        print(method, sum(found.get("takes", {}).get(method) == "yes" for found in results.values()))
    if not names:
        write(results)
        PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
