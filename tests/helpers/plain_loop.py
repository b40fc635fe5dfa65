"""A trunk of two linear maps and a head, and their training in a plain torch loop."""

from collections.abc import Iterable

import torch
from torch import nn, optim

from slicefine_pl.slicing import SliceHandle, slice_model

INPUTS, HIDDEN, CLASSES = 10, 12, 4


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    trunk = nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 9), nn.Tanh()
    return nn.Sequential(*trunk, nn.Linear(9, CLASSES)).to(dtype)


def slice_trunk(net: nn.Module, **settings) -> SliceHandle:
    return slice_model(net, **{"rank": 3, "targets": ["^0$", "^2$"], "also_train": "^4", **settings})


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, INPUTS, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(CLASSES, (16,), generator=generator)


def loss(net: nn.Sequential, step: int) -> torch.Tensor:
    x, y = batch(step, net[0].bias.dtype)
    return nn.functional.cross_entropy(net(x), y)


def trainable(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def train(
    net: nn.Sequential,
    optimizer: optim.Optimizer,
    steps: int | Iterable[int],
    handle: SliceHandle | None = None,
    interval: int = 0,
) -> None:
    """Train with the batches of these steps; slices move, and lose their optimizer state, after each interval."""
    for step in range(steps) if isinstance(steps, int) else steps:
        optimizer.zero_grad()
        loss(net, step).backward()
        optimizer.step()
        if handle is not None and interval and (step + 1) % interval == 0:
            for moved in handle.move():
                optimizer.state.pop(moved.parameter, None)


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """All values of two state dicts are equal, bit for bit."""
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
