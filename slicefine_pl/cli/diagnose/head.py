"""The head of a diagnosed network: fitted by penalized regression on frozen features, and scored.

Shapes:  n examples · D inputs of the head · C classes (1 for regression)
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slicefine_pl.analysis import regression
from slicefine_pl.analysis.layer_inputs import record_inputs
from slicefine_pl.analysis.preserve_state import preserve_state
from slicefine_pl.cli.diagnose.config import BATCH
from slicefine_pl.network.heads import last_linear

if TYPE_CHECKING:
    from slicefine_pl.modules import ImageClassifier, TextClassifier

Batch = Mapping[str, Tensor]

PENALTY = 1e-2  # L2 penalty on standardized features; in the middle of the values that LinearProbe tries
HEAD_EXAMPLES = 2048  # most training examples that a head is fitted to, rounded up to whole batches
HELD_OUT = 256  # validation examples that are used


def count(batches: list[Batch]) -> int:
    """Return the number of examples in all batches."""
    return sum(len(batch["labels"]) for batch in batches)


def fit_head(module: "TextClassifier | ImageClassifier", batches: list[Batch]) -> None:
    """Set the last linear layer of the head to the solution of an L2-penalized regression on its inputs, in float64.

    Args:
        module: Network whose last linear layer has inputs of shape ``(B, D)`` and outputs of shape ``(B, C)``.
        batches: Examples with labels.

    Raises:
        ValueError: The head has no linear layer, or its inputs have more than two dimensions.
    """
    layer = last_linear(module)
    if layer is None:
        raise ValueError("This network has no linear head that could be fitted; give a model with a trained head.")
    with preserve_state(module), record_inputs(layer) as inputs:
        for batch in batches:
            module(batch)
    features, labels = torch.cat(inputs).double(), torch.cat([batch["labels"] for batch in batches])
    if features.ndim != 2:
        raise ValueError(
            f"The head of {type(module.model).__name__} takes inputs of {features.ndim} dimensions; diagnose can fit a "
            "head of inputs (B, D) only. Give a model with a trained head."
        )
    intercept = layer.bias is not None
    mean, scale = regression.scale_of(features)
    scaled = (features - mean * intercept) / scale  # a layer without a bias cannot represent the mean
    if module.num_classes == 1:
        weight, bias = regression.ridge(scaled, labels, PENALTY, intercept)
    else:
        weight, bias = regression.logistic(scaled, labels, module.num_classes, PENALTY, intercept=intercept)
    with torch.no_grad():
        layer.weight.copy_(weight / scale)
        if layer.bias is not None:
            layer.bias.copy_(bias - (weight / scale) @ mean)


def recalibrate_norms(module: nn.Module, batches: list[Batch]) -> None:
    """Recompute the running statistics of batch norms on these examples; those of other weights do not fit."""
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    momenta = [layer.momentum for layer in norms]
    with preserve_state(module):
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative mean over all batches
            layer.train()
        for batch in batches if norms else []:
            module(batch)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def score(module: "TextClassifier | ImageClassifier", batches: list[Batch]) -> float:
    """Return the accuracy, or the Pearson correlation of a regression, on at most ``HELD_OUT`` examples."""
    some = batches[: -(-HELD_OUT // BATCH)]
    with preserve_state(module):
        outputs = torch.cat([module(batch) for batch in some])
    labels = torch.cat([batch["labels"] for batch in some])
    if module.num_classes == 1:
        return float(torch.corrcoef(torch.stack([outputs.squeeze(1), labels]))[0, 1])
    return float((outputs.argmax(1) == labels).double().mean())
