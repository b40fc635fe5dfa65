"""A small network of several kinds of layers, trained with open slices in a plain loop, and a comparison of two runs.

Shapes:  B batch · T = S² tokens · W width · S side of the tokens, seen as a picture
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.gpu.right.measured import Measured, differing, rounding_bound, unit_roundoff
from slicefine_pl.slicing import slice_model

WORDS, CLASSES, STEPS, INTERVAL = 40, 6, 6, 2
LAYERS = "attention|convolution|up|down"
ROUNDINGS = 40  # tensors that are stored in a step of the network, forward and backward

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
momentum: MakeOptimizer = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)


@dataclass(frozen=True)
class NetworkSize:
    """Sizes of the network and its batches; ``rank`` is the number of trained lines."""

    width: int
    side: int
    batch: int
    rank: int


def network_size(device: str) -> NetworkSize:
    """The size that suits a device."""
    return NetworkSize(256, 8, 16, 8) if device == "cuda" else NetworkSize(16, 3, 2, 3)


class Network(nn.Module):
    """An embedding, attention, a channels-last convolution, two linear layers and a head."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.side = size.side
        self.words = nn.Embedding(WORDS, size.width)
        self.attention = nn.MultiheadAttention(size.width, 4, batch_first=True)
        self.convolution = nn.Conv2d(size.width, size.width, 3, padding=1).to(memory_format=torch.channels_last)
        self.up, self.down = nn.Linear(size.width, 2 * size.width), nn.Linear(2 * size.width, size.width)
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        x: Tensor = self.words(words)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        picture = x.transpose(1, 2).view(*x.shape[::2], self.side, self.side)  # (B, W, S, S)
        x = x + self.convolution(picture).flatten(2).transpose(1, 2)
        x = x + self.down(torch.nn.functional.gelu(self.up(x)))
        y: Tensor = self.head(self.norm(x).mean(1))
        return y


class Training:
    """A network with open slices, its optimizer and its batches. Equal arguments give equal numbers.

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        make_optimizer: Makes the optimizer of the trained parameters.
        writes_manually: Whether slices are written after each step, rather than by the next forward pass.
        dtype: Type of the weights.
        prepare: What is done to the network after the slices are opened, before the optimizer is made.
        targets: Names of the sliced layers.
        slicing: Other settings of ``slice_model``.

    Attributes:
        net: The network.
        handle: Its open slices.
        optimizer: The optimizer.
        start: The weights before training.
        longest_sum: Products in the longest sum of a step: over the tokens of a batch, or over a line of the kernel.
    """

    def __init__(
        self,
        device: str,
        make_optimizer: MakeOptimizer = momentum,
        writes_manually: bool = False,
        dtype: torch.dtype = torch.float32,
        prepare: Callable[[nn.Module], object] = lambda net: None,
        targets: str = LAYERS,
        **slicing: Any,
    ) -> None:
        size = network_size(device)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net: nn.Module = Network(size)
            self._batches = torch.randint(WORDS, (STEPS, size.batch, size.side**2))
        self.longest_sum = max(size.batch * size.side**2, 9 * size.width)
        self.net.to(device, dtype)
        self._batches = self._batches.to(device)
        self.handle = slice_model(self.net, rank=size.rank, targets=targets, also_train="^head", **slicing)
        self._writes_manually = writes_manually
        if writes_manually:
            self.handle.write_manually()
        self.start = self.weights()
        prepare(self.net)
        self.optimizer = make_optimizer(p for p in self.net.parameters() if p.requires_grad)

    def batches(self) -> Iterator[Tensor]:
        """The inputs of all steps, each of shape ``(B, T)``, int64."""
        return iter(self._batches)

    def backward(self, words: Tensor) -> None:
        """Compute the gradients of one batch."""
        loss: Tensor = self.net(words).float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Take an optimizer step with these gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._writes_manually:
            self.handle.write()

    def step(self, words: Tensor) -> None:
        """Train on one batch."""
        self.backward(words)
        self.update()

    def move(self) -> None:
        """Move all slices. The optimizer's state is set to zero in place, because a CUDA graph may use its memory."""
        for moved in self.handle.move():
            for value in self.optimizer.state.get(moved.parameter, {}).values():
                value.zero_()

    def run(self) -> None:
        """Train on all batches, and move after every ``INTERVAL`` of them."""
        for number, words in enumerate(self.batches(), start=1):
            self.step(words)
            if number % INTERVAL == 0:
                self.move()

    def weights(self) -> dict[str, Tensor]:
        """Copies of all weights, with the trained lines, on the device that computes."""
        self.handle.write()
        return {name: _full(value).clone() for name, value in self.net.state_dict().items()}

    def positions(self) -> dict[str, list[int]]:
        """The trained lines of each matrix."""
        return {view.name: view.indices.tolist() for view in self.handle}


def _full(value: Tensor) -> Tensor:
    """A tensor, or all of one that FSDP2 has sharded."""
    if not isinstance(value, torch.distributed.tensor.DTensor):
        return value
    full: Tensor = value.to(value.device_mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    return full


def compare(measured: Measured, name: str, found: Training, expected: Training) -> None:
    """Record how much the weights and positions of two runs differ.

    A step changes a weight by a gradient, which has the relative error of ``rounding_bound``, and rounds the weight.
    The error of a weight is measured relative to its change in the run. What neither run changed must be bit-equal.
    """
    measured.at_most(f"{name}: other positions", found.positions() != expected.positions(), 0)
    ours, theirs = found.weights(), expected.weights()
    for weight, start in expected.start.items():
        change = float((theirs[weight].double() - start.double()).norm())
        if not change:
            measured.at_most(f"{name}: changed without reason", differing(ours[weight], start), 0, weight)
            continue
        error = float((ours[weight].double() - theirs[weight].double()).norm()) / change
        rounding = unit_roundoff(start.dtype) * float(start.norm()) / change
        bound = STEPS * (2 * rounding_bound(ROUNDINGS, expected.longest_sum, torch.float32) + rounding)
        measured.at_most(f"{name}: error of the change", error, bound, weight)
