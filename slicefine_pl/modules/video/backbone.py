"""A loaded video network, and the normalizations of published networks.

Shapes:  N clips · T frames · S height and width of a frame, in pixels · C classes
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn


class Normalization(NamedTuple):
    """Mean and standard deviation of each color channel, for values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FACEBOOK = Normalization((0.45,) * 3, (0.225,) * 3)
SYMMETRIC = Normalization((0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class VideoBackbone:
    """A video network with everything that is needed to train and export it.

    Attributes:
        model: Network that returns logits, shape ``(N, C)``, or an output with the attribute ``logits``.
        head: Its last linear layer.
        format_input: Converts clips of shape ``(N, 3, T, S, S)`` to the input of the network.
        normalization: Normalization of the clips.
        config: Settings from which an export builds the network; ``None`` for models of transformers, which have their
            own.
        new_head: Whether the head is new and random.
        pretrained: Whether the rest of the network has pretrained weights.
        label_names: Names of the classes, if the weights contain them.
    """

    model: nn.Module
    head: nn.Linear
    format_input: Callable[[Tensor], Any]
    normalization: Normalization
    config: dict[str, Any] | None
    new_head: bool
    pretrained: bool
    label_names: list[str] | None = None
