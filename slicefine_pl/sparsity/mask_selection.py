"""Choose which weights to keep at a target sparsity, given a score per weight.

Shapes:  O outputs · I inputs · scores are (O, I, ...); a mask has the shape of its parameter and is true where a weight
         is kept
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from slicefine_pl.sparsity.patterns import Pattern, keep_best, kept_units
from slicefine_pl.sparsity.targets import PrunableWeight


def select_by_layer(
    prunable: Mapping[str, PrunableWeight], scores: Mapping[str, Tensor], target: float, pattern: Pattern
) -> dict[str, Tensor]:
    """Prune every matrix to the target sparsity, in a pattern.

    Args:
        prunable: Matrices by parameter name.
        scores: Scores of their weights, by the same names.
        target: Sparsity in [0, 1); see :meth:`slicefine_pl.sparsity.targets.PrunableWeight.sparsity` for embeddings.
        pattern: Arrangement of the pruned weights.

    Returns:
        Masks by parameter name.

    Raises:
        ValueError: A score is NaN.
    """
    masks = {}
    for name, each in prunable.items():
        units = pattern.units(scores[name])
        kept = keep_best(units, kept_units(len(units), each.sparsity(target)))
        masks[name] = each.matrix(pattern.expand(kept, tuple(scores[name].shape))).contiguous()
    return masks


def select_globally(
    prunable: Mapping[str, PrunableWeight], scores: Mapping[str, Tensor], target: float
) -> dict[str, Tensor]:
    """Rank the weights of all matrices together; every matrix keeps at least its best weight.

    Arguments, return value and errors are those of :func:`select_by_layer`, without a pattern.
    """
    flat = {name: values.flatten() for name, values in scores.items()}
    ranked = torch.cat([values.index_fill(0, values.argmax().view(1), torch.inf) for values in flat.values()])
    count = sum(kept_units(len(flat[name]), each.sparsity(target)) for name, each in prunable.items())
    parts = torch.split(keep_best(ranked, count), [len(values) for values in flat.values()])
    return {
        name: each.matrix(kept.view(scores[name].shape)).contiguous()
        for (name, each), kept in zip(prunable.items(), parts, strict=True)
    }
