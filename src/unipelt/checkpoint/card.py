"""The model card of a checkpoint: what it is, on which base, with what results, and how to use it."""

import hashlib
import json
import re
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.checkpoint.bases import MINILM, hub_name
from unipelt.checkpoint.description import Description, equations
from unipelt.checkpoint.disk import CARD, read_file

SIGNATURE = re.compile(r"<!-- written by unipelt, replaced by the next save unless edited: ([0-9a-f]{16}) -->\n\Z")


def card(description: Description, tensors: dict[str, Tensor], model: PreTrainedModel) -> str:
    """Markdown with the hub's front matter, signed with a hash so that a later save knows an edited card."""
    mixture, base, task = spec.Mixture.from_dict(description.mixture), description.base["name"], description.task
    count = sum(tensor.numel() for tensor in tensors.values())
    head = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("head."))
    public = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", hub_name(base))  # a path is not a name on the Hub
    lines = ["---", "library_name: unipelt", *([f"base_model: {public[0]}"] if public else [])]
    lines += ["tags:", "- unipelt", "- parameter-efficient", "---", ""]
    lines += [f"# {mixture.name} on {base or 'a base'}" + (f" for {task['name']}" if task.get("name") else ""), ""]
    lines += [f"{count:,} parameters, {head:,} of them in the head. The base is frozen and not in this folder."]
    lines += _table("| change | equation |", equations(mixture, description.base["model_type"]))
    numbers = {name: value for name, value in description.results.items() if isinstance(value, float)}
    lines += _table("| result | value |", {name: f"{value:.4f}" for name, value in numbers.items()})
    if task.get("labels"):
        lines += ["", "Labels: " + ", ".join(f"`{label}`" for label in task["labels"])]
    lines += ["", "```python", *_program(base, model), "```", ""]
    text = "\n".join(lines)
    return f"{text}<!-- written by unipelt, replaced by the next save unless edited: {_hash(text)} -->\n"


def _table(header: str, rows: dict[str, str]) -> list[str]:
    """A table of two columns; nothing without rows."""
    return ["", header, "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())] if rows else []


def card_file(folder: Path, text: str) -> dict[str, bytes]:
    """The card to write into a folder, by name; nothing where the folder has a README that a person wrote or edited."""
    try:
        old_text = read_file(folder / CARD).decode(errors="replace")
    except FileNotFoundError:
        return {CARD: text.encode()}
    except OSError:
        return {}
    signed = SIGNATURE.search(old_text)
    return {CARD: text.encode()} if signed and signed[1] == _hash(old_text[: signed.start()]) else {}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _program(base: str, model: PreTrainedModel) -> list[str]:
    """Python that loads the base, and this checkpoint into it, when it is run in the checkpoint's folder."""
    name, module, labels = type(model).__name__, type(model).__module__, model.config.num_labels
    package = "transformers" if module.startswith("transformers.") else module
    more = f", num_labels={labels}" if "Classification" in name else ""
    load = [f"from {package} import {name}", "", f"model = {name}.from_pretrained({json.dumps(base)}{more})"]
    if base == MINILM:
        load = [
            "from unipelt.checkpoint.bases import load_base",
            "",
            f'model = load_base("{MINILM}", outputs={labels})',
        ]
    return ["import unipelt", *load, 'unipelt.load(model, ".")  # this folder, or its repository on the hub']
