"""Settings of the task in a model's config, kept in a checkpoint and given to the base that loads it."""

import json

from transformers import GenerationConfig, PreTrainedModel

from unipelt.checkpoint.bases import name_classes
from unipelt.checkpoint.description import Description, TaskConfig
from unipelt.inject.attach import class_names
from unipelt.inject.state import attached_state


def task_config(model: PreTrainedModel) -> TaskConfig:
    """The model's class, class names, problem type and generation settings, as JSON."""
    config = model.config
    found: TaskConfig = {"architecture": type(model).__name__}
    names = getattr(config, "id2label", None) or {}
    if names and sorted(names) == list(range(len(names))):
        found["id2label"] = [str(names[index]) for index in range(len(names))]
    if problem := getattr(config, "problem_type", None):
        found["problem_type"] = problem
    if model.can_generate() and getattr(model, "generation_config", None) is not None:
        settings = model.generation_config.to_diff_dict()
        settings.pop("transformers_version", None)
        found["generation"] = json.loads(json.dumps(settings, default=str))
    return found


def restore_task_config(model: PreTrainedModel, description: Description) -> None:
    """Give an attached model the class names, problem type and generation settings of a checkpoint.

    `detach` gives back what the base had.
    """
    before, kept = attached_state(model).brought, description.config
    names = description.task.get("labels") or kept.get("id2label") or []
    before["config"] |= class_names(model)
    if len(names) == getattr(model.config, "num_labels", 0):
        name_classes(model, names)
    if "problem_type" in kept:
        before["config"]["problem_type"] = getattr(model.config, "problem_type", None)
        model.config.problem_type = kept["problem_type"]
    if "generation" in kept and model.can_generate():
        before["generation_config"] = model.generation_config
        model.generation_config = GenerationConfig.from_dict(kept["generation"])
