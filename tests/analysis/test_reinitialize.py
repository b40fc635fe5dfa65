"""A reinitialized copy is random, and the original is unchanged."""

import torch
from torch import nn

from slicefine_pl.analysis.reinitialize import reinitialize


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(40, 50) * 3)
        self.token = nn.Parameter(torch.full((1,), 5.0))
        self.norm = nn.LayerNorm(50)
        self.linear = nn.Linear(50, 60)


def test_every_weight_is_random_and_the_original_is_unchanged():
    net = Net()
    with torch.no_grad():
        net.norm.weight.fill_(7)
        net.linear.weight.fill_(9)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    made = reinitialize(net, seed=1)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(not torch.equal(value, before[name]) for name, value in made.state_dict().items() if name != "norm.bias")
    assert torch.equal(made.norm.weight, torch.ones(50))
    assert made.linear.weight.abs().max() <= 50**-0.5  # the bound of nn.Linear
    assert torch.isclose(made.places.std(), before["places"].std(), rtol=0.1)


def test_result_depends_on_the_seed():
    net = Net()
    one, same, other = (reinitialize(net, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["linear.weight"], other["linear.weight"])
