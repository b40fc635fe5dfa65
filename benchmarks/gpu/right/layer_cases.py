"""The kinds of layers whose gradients are checked, each as a module of one input.

Sizes are unequal, so that a swapped axis cannot pass, and multiples of 8, as tensor cores want them.

Shapes:  B batch · T tokens · I inputs · O outputs · S side of a picture or clip · E experts · V words · G groups
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicefine_pl.slicing import Backend

EXPERTS, WORDS, HEADS, GROUPS = 4, 48, 4, 4


@dataclass(frozen=True)
class Size:
    """Sizes of layers and their inputs; ``rank`` is the number of trained lines."""

    rank: int
    batch: int
    tokens: int
    inputs: int
    outputs: int
    side: int


TOY = Size(rank=3, batch=2, tokens=5, inputs=16, outputs=24, side=5)
CARD = Size(rank=32, batch=8, tokens=128, inputs=512, outputs=640, side=14)


@dataclass(frozen=True)
class Precision:
    """The type in which weights are stored, and the type in which products are computed; autocast if they differ."""

    stored: torch.dtype
    computed: torch.dtype


PRECISIONS = {
    "float32": Precision(torch.float32, torch.float32),
    "bfloat16": Precision(torch.bfloat16, torch.bfloat16),
    "float16": Precision(torch.float16, torch.float16),
    "bfloat16 by autocast": Precision(torch.float32, torch.bfloat16),
    "float16 by autocast": Precision(torch.float32, torch.float16),
}


@dataclass(frozen=True)
class LayerCase:
    """A kind of layer.

    Attributes:
        build: Builds the module.
        shape: Shape of its input.
        roundings: Tensors that are stored between the input and the gradients; see ``measured.py``.
        features: Dimension of the output that counts features; the others count positions.
        backend: How the gradient of the slice is computed, as in ``slice_model``.
        memory_format: Order in which module and input are stored.
        words: Whether the input consists of indices instead of numbers.
        needs_cuda: Precisions that torch cannot compute on a CPU.
    """

    build: Callable[[Size], nn.Module]
    shape: Callable[[Size], tuple[int, ...]]
    roundings: int
    features: int = -1
    backend: Backend = "auto"
    memory_format: torch.memory_format = torch.preserve_format
    words: bool = False
    needs_cuda: tuple[str, ...] = ()

    def input(self, size: Size) -> Tensor:
        """An input, random but equal for equal seeds."""
        shape = self.shape(size)
        if self.words:
            return torch.randint(WORDS // 2, shape)  # half of the words do not occur
        return torch.randn(shape).to(memory_format=self.memory_format)


class Attention(nn.Module):
    """Self-attention with projections in one parameter; through the fused kernel, or with weights as a result."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=not self.fused)[0]
        return y


class Recurrent(nn.Module):
    """An LSTM without its final state."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, outputs, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0]
        return y


class RawParameters(nn.Module):
    """Two parameters that no layer owns: a matrix, and position embeddings with a batch dimension."""

    def __init__(self, tokens: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.positions = nn.Parameter(torch.randn(1, tokens, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.table + self.positions)


class ExpertStack(nn.Module):
    """Experts ``(E, O, I)``, which the tokens visit in turn."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(EXPERTS, outputs, inputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.experts.transpose(1, 2)


class RoutedExperts(nn.Module):
    """The experts of Mixtral, whose grouped product runs in one kernel; float64 has none, and loops."""

    def __init__(self, inputs: int, outputs: int) -> None:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        super().__init__()
        config = MixtralConfig(hidden_size=inputs, intermediate_size=outputs, num_local_experts=EXPERTS)
        self.experts = MixtralExperts(config)
        self.config = config
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        self.config._experts_implementation = "eager" if x.dtype == torch.float64 else "grouped_mm"
        first = torch.arange(len(tokens), device=x.device) % EXPERTS
        experts = torch.stack([first, (first + 1) % EXPERTS], dim=1)
        shares = torch.tensor([0.75, 0.25], device=x.device, dtype=x.dtype).expand(len(tokens), 2)
        y: Tensor = self.experts(tokens, experts, shares)
        return y


class OwnForward(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.5, self.bias)


def _conv1d(size: Size) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(size.outputs, size.inputs)  # type: ignore[no-untyped-call]


def _tokens(size: Size) -> tuple[int, ...]:
    return (size.batch, size.tokens, size.inputs)


def _signal(size: Size) -> tuple[int, ...]:
    return (size.batch, size.inputs, size.tokens)


def _picture(size: Size) -> tuple[int, ...]:
    return (size.batch, size.inputs, size.side, size.side)


def _clip(size: Size) -> tuple[int, ...]:
    return (size.batch, size.inputs, 3, size.side, size.side)


CASES = {
    "linear": LayerCase(lambda s: nn.Linear(s.inputs, s.outputs), _tokens, 1),
    "linear, masked": LayerCase(lambda s: nn.Linear(s.inputs, s.outputs), _tokens, 1, backend="mask"),
    "Conv1D of transformers": LayerCase(_conv1d, _tokens, 1),
    "convolution 1d, strided": LayerCase(
        lambda s: nn.Conv1d(s.inputs, s.outputs, 3, stride=2, padding=1), _signal, 2, features=1
    ),
    "convolution 2d": LayerCase(lambda s: nn.Conv2d(s.inputs, s.outputs, 3, padding=1), _picture, 2, features=1),
    "convolution 2d, channels last": LayerCase(
        lambda s: nn.Conv2d(s.inputs, s.outputs, 3, stride=2), _picture, 2, 1, memory_format=torch.channels_last
    ),
    "convolution 2d, grouped": LayerCase(
        lambda s: nn.Conv2d(s.inputs, s.outputs, 3, padding=1, groups=GROUPS), _picture, 2, features=1
    ),
    "convolution 3d": LayerCase(
        lambda s: nn.Conv3d(s.inputs, s.outputs, (3, 2, 2), stride=(1, 2, 2), padding=(1, 0, 0)), _clip, 2, features=1
    ),
    "convolution 3d, channels last": LayerCase(
        lambda s: nn.Conv3d(s.inputs, s.outputs, (1, 3, 3)), _clip, 2, 1, memory_format=torch.channels_last_3d
    ),
    "attention, fused kernel": LayerCase(lambda s: Attention(s.inputs, fused=True), _tokens, 12),
    "attention, with weights": LayerCase(lambda s: Attention(s.inputs, fused=False), _tokens, 12),
    "embedding": LayerCase(
        lambda s: nn.Embedding(WORDS, s.outputs), lambda s: (s.batch, s.tokens), 6, words=True
    ),
    "raw parameters": LayerCase(lambda s: RawParameters(s.tokens, s.inputs, s.outputs), _tokens, 6),
    "own forward": LayerCase(lambda s: OwnForward(s.inputs, s.outputs), _tokens, 3),
    "experts, stacked": LayerCase(
        lambda s: ExpertStack(s.inputs, s.outputs), lambda s: (EXPERTS, s.tokens, s.inputs), 2
    ),
    "experts of Mixtral": LayerCase(lambda s: RoutedExperts(s.inputs, s.outputs), _tokens, 12),
    "LSTM": LayerCase(
        lambda s: Recurrent(s.inputs, s.outputs),
        lambda s: (s.batch, 4, s.inputs),
        roundings=16,
        needs_cuda=("float16 by autocast",),
    ),
}  # fmt: skip
