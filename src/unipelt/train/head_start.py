"""A head that starts as a linear model of what it reads, fitted to the training examples, instead of at random.

Probe, then tune: a random head moves the features at random until it is trained itself.   Kumar et al. 2022, arXiv:2202.10054
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.forms.routed import RoutedLinear
from unipelt.inject.heads import find_head, output_of
from unipelt.tasks.batches import Encoded
from unipelt.train.recipes import BALANCED
from unipelt.train.runs import Plan


@torch.no_grad()
def start_heads(
    model: PreTrainedModel, plans: Sequence[Plan], runs: Sequence[int], predict: Callable[[list[Encoded]], list[Tensor]]
) -> list[int]:
    """Set the last linear of each of these runs' heads to its plan's linear model of what it reads of the training examples:
    y = W x + b, in the unit in which it is trained. Returns the runs whose plans ask for it.

    plans: of all runs of the model. predict: gives the logits of every run for its own examples.
    """
    runs = [run for run in runs if plans[run].folds]
    if not runs:
        return []
    last_linear = [module for module in find_head(model).values() if isinstance(module, nn.Linear)][-1]
    handle = last_linear.register_forward_hook(lambda module, args, logits: args[0])
    try:
        features = predict([plan.train for plan in plans])
    finally:
        handle.remove()
    output = output_of(model)
    assert output is not None and output.bias is not None
    for run in runs:
        plan, inputs = plans[run], features[run].double().numpy()
        balanced = plan.recipe.class_weights == BALANCED
        linear = plan.task.fit_linear(inputs, plan.train.targets or [], plan.folds, balanced=balanced)
        mean, deviation = plan.task.target_scale
        index = run if isinstance(output, RoutedLinear) else slice(None)
        for parameter, values in ((output.weight, linear.weight), (output.bias, linear.bias - mean)):
            parameter[index][: len(values)].copy_(torch.from_numpy(np.asarray(values / deviation)))
    return runs
