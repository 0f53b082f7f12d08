"""The model card of a checkpoint: what it is, on which base, with what results, and how to use it."""

import json
import re

from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.checkpoint.bases import MINILM, hub_name
from unipelt.checkpoint.description import Description, equations


def card(description: Description, tensors: dict[str, Tensor], model: PreTrainedModel) -> str:
    """Markdown with the hub's front matter."""
    mixture, base, task = spec.Mixture.from_dict(description.mixture), description.base["name"], description.task
    count = sum(tensor.numel() for tensor in tensors.values())
    head = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("head."))
    public = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", hub_name(base))  # a path is no name on the hub
    lines = ["---", "library_name: unipelt", *([f"base_model: {public[0]}"] if public else [])]
    lines += ["tags:", "- unipelt", "- parameter-efficient", "---", ""]
    lines += [f"# {mixture.name} on {base}" + (f" for {task['name']}" if task.get("name") else ""), ""]
    lines += [
        f"{count:,} tuned parameters, {head:,} of them in the head. The base is frozen.",
    ]
    formulas = equations(mixture, description.base["model_type"])
    if formulas:  # a tuned head alone has none
        lines += ["", "| change | equation |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in formulas.items()]
    if description.results:
        lines += ["", "| result | value |", "|---|---|"]
        lines += [
            f"| {name} | {value:.4f} |" for name, value in description.results.items() if isinstance(value, float)
        ]
    if task.get("labels"):
        lines += ["", "Labels: " + ", ".join(f"`{label}`" for label in task["labels"])]
    lines += ["", "```python", *_program(base, model), "```", ""]
    return "\n".join(lines)


def _program(base: str, model: PreTrainedModel) -> list[str]:
    """Loads the base, and this checkpoint into it, where it is run in the checkpoint's folder."""
    name, room, labels = type(model).__name__, type(model).__module__, model.config.num_labels
    load = [
        f"from {'transformers' if room.startswith('transformers.') else room} import {name}",
        "",
        f"model = {name}.from_pretrained({json.dumps(base)}"
        + (f", num_labels={labels})" if "Classification" in name else ")"),
    ]
    if base == MINILM:
        load = [
            "from unipelt.checkpoint.bases import load_base",
            "",
            f'model = load_base("{MINILM}", classes={labels})',
        ]
    return ["import unipelt", *load, 'unipelt.load(model, ".")  # this folder, or its repository on the hub']
