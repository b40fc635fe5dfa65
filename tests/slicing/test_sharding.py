"""Slices of networks that real processes share among them, against the same network in one process: bit for bit."""

import copy

import numpy
import processes
import pytest
import torch
from torch import nn

from slicefine_pl.slicing import slice_model
from slicefine_pl.slicing.sharding import find_blocks, shard_model, sharded_bytes


# Sizes that two or three processes do not share equally, and fewer rows than processes.
class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.stem = nn.Conv1d(3, 7, 3, padding=1)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 7)) for _ in range(2)])
        self.attention = nn.MultiheadAttention(7, 1, batch_first=True)
        self.place = nn.Parameter(torch.randn(1, 5, 7))
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        x = self.stem(x).transpose(1, 2) + self.place * self.scale
        for layer in self.layers:
            x = x + layer(x)
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


SETTINGS = {"rank": 2, "targets": ["stem", "layers", "attention", "place"], "also_train": "head"}


def train(axis, order, sharded, steps=7):
    """Three moves; returns all weights, the places, and what went into the checkpoint after step 5."""
    torch.manual_seed(3)
    net = Net()
    handle = slice_model(net, **SETTINGS, axis=axis, order=order)
    handle.trust_weights()
    if sharded:
        torch.distributed.init_process_group("gloo")
        shard_model(net)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    data = torch.randn(steps, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    places, middle = [], None
    for step in range(steps):
        net(data[step]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        handle.write()
        if step % 2:
            for moved in handle.move():
                optimizer.state.pop(moved.parameter, None)
        if step == 4:
            middle = whole(net)
        places.append([live.indices.tolist() for live in handle])
    handle.close()
    return whole(net), places, middle


def whole(net):
    values = {}
    for name, value in net.state_dict().items():
        value = value.detach()
        values[name] = (value.full_tensor() if hasattr(value, "full_tensor") else value).clone().numpy()
    return values


@pytest.mark.parametrize("axis", ["column", "row", "alternate"])
@pytest.mark.parametrize("count", [2, 3])
def test_a_shared_network_learns_what_a_whole_one_learns(axis, count):
    reference, places, middle = train(axis, "random", sharded=False)
    assert all(numpy.isfinite(value).all() for value in reference.values())
    for theirs, their_places, their_middle in processes.run(train, count, axis, "random", True):
        assert their_places == places
        for ours, others in ((reference, theirs), (middle, their_middle)):
            assert list(ours) == list(others)
            for name, value in ours.items():
                torch.testing.assert_close(torch.tensor(others[name]), torch.tensor(value), rtol=1e-6, atol=1e-6)
