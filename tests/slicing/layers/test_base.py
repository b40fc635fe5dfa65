"""as_dense: sliced layers compute as dense ones inside the context, and are sliced again afterwards."""

import copy

import pytest
import torch
from torch import nn

from slicefine_pl.slicing import as_dense, slice_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv1d(3, 5, 3), nn.Linear(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.read = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        x = self.linear(self.conv(x).transpose(1, 2))
        return self.attention(x, x, x)[0] @ self.read


NAMES = ["conv.weight", "linear.weight", "attention.in_proj_weight", "attention.out_proj.weight", "read"]


def gradients(net, x):
    weights = [net.get_parameter(name).requires_grad_() for name in NAMES]
    return torch.autograd.grad(net(x).square().sum(), weights)


@pytest.mark.parametrize("manually", [True, False])
@pytest.mark.parametrize("backend", ["auto", "mask"])
def test_dense_weights_get_the_gradient_of_the_plain_network(backend, manually):
    net, x = Net(), torch.randn(2, 3, 6)
    plain = copy.deepcopy(net)
    handle = slice_model(net, rank=2, targets=["conv", "linear", "attention", "read"], also_train=[], backend=backend)
    with torch.no_grad():
        for view in handle:
            view.parameter.add_(0.1)
    if manually:
        handle.write_manually()
        handle.write()
    with as_dense(net):
        found = gradients(net, x)
    net.requires_grad_(False)
    plain.load_state_dict(net.state_dict())
    for ours, theirs in zip(found, gradients(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_layers_are_sliced_again_after_an_exception():
    net, x = Net(), torch.randn(2, 3, 6)
    handle = slice_model(net, rank=2, targets=["conv", "linear", "attention"], also_train=[])
    classes = [type(module) for module in net.modules()]

    def fail_inside():
        with as_dense(net):
            assert not any("Sliced" in type(module).__name__ for module in net.modules())
            raise OSError("inside")

    with pytest.raises(OSError, match="inside"):
        fail_inside()
    assert [type(module) for module in net.modules()] == classes
    net(x).sum().backward()
    assert handle.without_gradient() == []
