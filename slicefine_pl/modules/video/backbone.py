"""A video network with all that is needed to feed, train and export it; and the published normalizations.

Shapes:  N clips · T frames · S edge of a frame, in pixels · C classes
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FACEBOOK = ((0.45,) * 3, (0.225,) * 3)
SYMMETRIC = ((0.5,) * 3, (0.5,) * 3)
Numbers = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Backbone:
    """A network with all that is needed to feed, train and export it.

    Attributes:
        model: Gives logits, shape ``(N, C)``, or an object that holds them as ``logits``.
        head: Its last linear layer.
        format_input: Brings clips of shape ``(N, 3, T, S, S)`` into the form that the model takes.
        normalization: Mean and standard deviation per colour, of values in [0, 1].
        config: What an export needs to build it again; ``None`` for models of transformers, which know themselves.
        new_head: Whether the head is new, and random.
        pretrained: Whether the rest is not.
        label_names: Of the classes, where the weights come with names.
    """

    model: nn.Module
    head: nn.Linear
    format_input: Callable[[Tensor], Any]
    normalization: Numbers
    config: dict[str, Any] | None
    new_head: bool
    pretrained: bool
    label_names: list[str] | None = None
