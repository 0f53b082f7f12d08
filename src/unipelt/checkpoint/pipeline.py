"""A saved run as a transformers pipeline."""

import os
from typing import Any

from unipelt.checkpoint.bases import load_both, run_tokenizer
from unipelt.checkpoint.description import Description, describe
from unipelt.checkpoint.disk import resolve
from unipelt.checkpoint.loading import load
from unipelt.errors import CheckpointError
from unipelt.inject.heads import rescale_outputs
from unipelt.inject.merge import merge
from unipelt.inject.shapes import most_tokens

TASKS = {
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "ForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "LMHeadModel": ("text-generation", "AutoModelForCausalLM"),
}
"""by the end of a model's class: its pipeline and the class that loads it"""


def pipeline(folder: str | os.PathLike, *, base: str | None = None, **options: Any) -> Any:
    """A transformers pipeline of a saved run: its base, its tokenizer and its class names. What is linear is merged.

    base: where the base is, the name that the run gives if none is given. options: as `transformers.pipeline` takes them,
    such as `device`. Texts are cut to the length of the training. Raises CheckpointError where the run does not say what is
    needed.
    """
    import torch
    import transformers

    path = resolve(folder)
    description = describe(path)
    name = base or description.base["name"]
    if not name:
        raise CheckpointError(f"{folder}: does not say where its base is; expected base=, its folder or Hub name")
    task, auto = _task(description, folder)
    labels = description.task.get("labels") or description.config.get("id2label") or []
    outputs = None if task == "text-generation" else len(labels) or 1
    kind = description.config.get("problem_type")
    model, tokenizer = load_both(name, outputs=outputs, auto=auto, problem_type=kind)
    if task == "text-classification" and not description.task.get("labels", labels):
        options = {"function_to_apply": "none", **options}  # a regression: the value itself
    tokenizer = run_tokenizer(path, tokenizer)
    model = merge(load(model, path, tokenizer=tokenizer), unmergeable="keep").eval()
    with torch.no_grad():  # logits / temperature, as `unipelt predict` has it
        rescale_outputs(model, [(0.0, 1.0 / description.task.get("temperature", 1.0))], trained=False)
    if isinstance(template := description.task.get("template"), str):
        tokenizer.chat_template = template  # that of the training
    longest = description.recipe.get("max_length")
    if longest is not None and task == "text-classification":  # as `unipelt predict` cuts them
        longest = min(most_tokens(model, longest), tokenizer.model_max_length)
        options = {"truncation": True, "max_length": longest, **options}
    make: Any = transformers.pipeline
    return make(task, model=model, tokenizer=tokenizer, **options)


def _task(description: Description, folder: str | os.PathLike) -> tuple[str, str]:
    kind = description.config.get("architecture", "")
    for end, task_and_class in TASKS.items():
        if kind.endswith(end):
            return task_and_class
    raise CheckpointError(f"{folder}: there is no pipeline for a {kind or 'model of unknown class'}; expected one that ends "
                          f"in {', '.join(TASKS)}")  # fmt: skip
