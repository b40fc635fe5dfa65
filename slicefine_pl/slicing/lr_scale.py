"""How much faster a slice is trained than its layer would be in full fine-tuning.

With Adam, each trained number changes by about the learning rate in a step, whatever its gradient. A step of all I
columns therefore lowers the loss by about ``lr · Σ|g|`` over the whole matrix, to first order, and a step of R columns
by the share of these columns, about R / I. A slice learns as fast as its layer would in full fine-tuning if its own
learning rate is larger by the inverse of that share. The learning rate of full fine-tuning then suits every rank.

The share is one of lines that are linearly independent. A matrix with more inputs than outputs has only O of them, so
the factor is O / R there, also for columns: with I / R, its steps are too long. Rows are counted in the same way. So
are slices of other optimizers, such as SGD, where the argument holds with ``Σ g²``. Columns and AdamW were measured.

Convolutions are usually followed by a normalization over the batch, which makes the length of their weight irrelevant.
What counts is the length of a step relative to it, and the rates of full fine-tuning are so high that noise dominates
the step. Steps of R and of I columns have the same length if the factor is the root of I / R.

Shapes:  I inputs · O outputs · R lines of the slice
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd

from slicefine_pl.slicing.schedule import Axis

LRScale = float | Literal["auto"]
"""Factor of a slice's learning rate; ``"auto"`` computes it for each slice."""


def checked_lr_scale(lr_scale: LRScale) -> LRScale:
    """A valid ``lr_scale`` setting; numbers as floats.

    Raises:
        ValueError: It is neither ``"auto"`` nor a positive finite number.
    """
    number = isinstance(lr_scale, int | float) and not isinstance(lr_scale, bool)
    if lr_scale != "auto" and not (number and 0 < lr_scale < math.inf):
        raise ValueError(
            f"lr_scale={lr_scale!r} cannot scale a learning rate; choose 'auto', 1 (no scaling), or another number"
            " greater than 0."
        )
    return lr_scale if lr_scale == "auto" else float(lr_scale)


def lr_scale_at(lr_scale: LRScale, layer: nn.Module, axis: Axis, shape: Sequence[int], rank: int) -> float:
    """The factor of one slice at its present position.

    Args:
        lr_scale: The setting.
        layer: The layer that owns the matrix.
        axis: Columns or rows.
        shape: Shape of the matrix, ``(O, I, ...)``.
        rank: How many columns or rows are trained, R.

    Returns:
        For ``"auto"``, ``min(O, I) / rank``, but at least 1; the root of ``I / rank`` or ``O / rank`` for convolutions;
        1 for rows of an embedding, each of which is the vector of one token and learns at the speed of full
        fine-tuning without a factor.
    """
    if lr_scale != "auto":
        return lr_scale
    if axis == "row" and isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return 1.0
    if isinstance(layer, _ConvNd):
        return math.sqrt(shape[1 if axis == "column" else 0] / rank)
    return max(1.0, min(shape[:2]) / rank)
