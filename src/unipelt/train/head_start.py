"""A head that starts as a linear model of what it reads, fitted to the training examples, instead of at random.

Probe, then tune: a random head moves the features at random until it is trained itself.   Kumar et al. 2022, arXiv:2202.10054
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.forms.routed import RoutedLinear
from unipelt.inject.heads import find_head, output_of
from unipelt.tasks.batches import Encoded
from unipelt.train.recipes import BALANCED
from unipelt.train.runs import Plan


@contextmanager
def giving_features(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model's logits are what its head's last linear reads, `[batch, …, feature]`."""
    output = [module for module in find_head(model).values() if isinstance(module, nn.Linear)][-1]
    handle = output.register_forward_hook(lambda module, args, logits: args[0])
    try:
        yield
    finally:
        handle.remove()


def start_heads(
    model: PreTrainedModel, plans: Sequence[Plan], runs: Sequence[int], predict: Callable[[list[Encoded]], list[Tensor]]
) -> list[int]:
    """Start the heads of these runs as their plans say; those that start as a probe. plans: of all runs of the model. predict:
    gives the logits of every run for its own examples."""
    runs = [run for run in runs if plans[run].folds]
    if runs:
        with giving_features(model):
            features = predict([plan.train for plan in plans])
        for run in runs:
            start_head(model, run, plans[run], features[run])
    return runs


@torch.no_grad()
def start_head(model: PreTrainedModel, run: int, plan: Plan, features: Float[Tensor, "example feature"]) -> None:
    """Set the last linear of a run's head to the plan's linear model of these features: y = W x + b, in the unit in which it is
    trained. features: of its training examples."""
    balanced = plan.recipe.class_weights == BALANCED
    found = plan.task.fit_linear(features.double().numpy(), plan.train.targets or [], plan.folds, balanced=balanced)
    (mean, deviation), output = plan.task.target_scale, output_of(model)
    assert output is not None and output.bias is not None
    mine = run if isinstance(output, RoutedLinear) else slice(None)
    for parameter, values in ((output.weight, found.weight), (output.bias, found.bias - mean)):
        own = parameter[mine][: len(values)]
        own.copy_(torch.from_numpy(np.asarray(values / deviation)))
