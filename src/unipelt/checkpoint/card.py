"""The model card of a checkpoint: what it is, on which base, with what results, and how to use it."""

from typing import Any

from torch import Tensor

from unipelt import spec


def card(description: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Markdown with the hub's front matter."""
    mixture, base, task = (
        spec.Mixture.from_dict(description["mixture"]),
        description["base"]["name"],
        description["task"],
    )
    count = sum(tensor.numel() for tensor in tensors.values())
    head = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("head."))
    lines = [
        "---",
        "library_name: unipelt",
        f"base_model: {base}",
        "tags:",
        "- unipelt",
        "- parameter-efficient",
        "---",
        "",
    ]
    lines += [f"# {mixture.name} on {base}" + (f" for {task['name']}" if task.get("name") else ""), ""]
    lines += [
        f"{count:,} tuned parameters, {head:,} of them in the head. The base is frozen.",
        "",
        "| change | equation |",
        "|---|---|",
    ]
    for name, change in mixture.named():
        lines.append(f"| {name} | {spec.equation(change.form, change.sites[0], change.reads, change.weight)} |")
    if description["results"]:
        lines += ["", "| result | value |", "|---|---|"]
        lines += [
            f"| {name} | {value:.4f} |" for name, value in description["results"].items() if isinstance(value, float)
        ]
    if task.get("labels"):
        lines += ["", "Labels: " + ", ".join(f"`{label}`" for label in task["labels"])]
    classes = len(task.get("labels") or ()) or 1
    lines += [
        "",
        "```python",
        "import unipelt",
        "from transformers import AutoModelForSequenceClassification",
        "",
        f'model = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={classes})',
        'unipelt.load(model, "THIS FOLDER OR REPOSITORY")',
        "```",
        "",
    ]
    return "\n".join(lines)
