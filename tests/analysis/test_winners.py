"""Steps on single slices are checked against dense gradients; weights stay bit-equal."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slicefine_pl.analysis.locations import SliceLocation, candidate_slices
from slicefine_pl.analysis.targets import target_matrices
from slicefine_pl.analysis.winners import winners, winning

I, H, C, R = 9, 7, 3, 2


class Net(nn.Module):
    """A grouped convolution, two linear layers and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 2, groups=2)
        self.hidden = nn.Linear(6, H)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(H, C)

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.hidden(self.conv(x).mean(-1)))))


@pytest.fixture
def net():
    return Net().double()


@pytest.fixture
def data():
    """Two batches for the gradient and one held-out batch, of different sizes."""
    return [(torch.randn(n, 4, 5, dtype=torch.float64), torch.randint(C, (n,))) for n in (5, 3, 6)]


def losses_of(net):
    return lambda batch: F.cross_entropy(net(batch[0]), batch[1], reduction="none")


def mean_loss(net, batches):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return F.cross_entropy(net(x), y)


def by_hand(net, batches, name, line, lines, lr):
    """Return a copy of the network after one step on these lines, from a dense backward pass."""
    stepped = copy.deepcopy(net).eval()
    weight = stepped.get_parameter(f"{name}.weight")
    mean_loss(stepped, batches).backward()
    mask = torch.zeros_like(weight)
    if line == "row":
        mask[list(lines)] = 1
    elif line == "column":
        mask[:, list(lines)] = 1
    else:
        mask[:] = 1
    with torch.no_grad():
        weight -= lr * mask * weight.grad
    return stepped, (mask * weight.grad).square().sum().item(), mask.sum().item()


def test_steps_agree_with_a_dense_backward_pass(net, data):
    matrices = target_matrices(net, ["conv", "hidden", "out"], R)
    places = candidate_slices(matrices, R, 12, seed=1)
    found = winners(net, losses_of(net), data[:2], data[2:], matrices, places, lr=0.3)
    plain = copy.deepcopy(net).eval()
    before, others_before = mean_loss(plain, data[:2]), mean_loss(plain, data[2:])
    assert found.loss == pytest.approx(before.item())
    assert found.held_out_loss == pytest.approx(others_before.item())
    weights = [plain.get_parameter(f"{name}.weight") for name in ("conv", "hidden", "out")]
    gradient = torch.autograd.grad(before, weights)
    total = sum(each.square().sum().item() for each in gradient)
    entries = sum(each.numel() for each in weights)
    assert {step.kind for step in found.slices} == {"row", "column"}
    assert {step.name for step in found.layers} == {"conv", "hidden", "out"}
    assert all(step.lr == 0.3 for step in [*found.slices, *found.layers])
    assert len(found.full) == 12
    for step in [*found.slices, *found.full, *found.layers]:
        stepped, energy, numbers = by_hand(net, data[:2], step.name, step.kind, step.indices, step.lr)
        assert step.predicted == pytest.approx(step.lr * energy)
        assert step.energy == pytest.approx(energy / total)
        assert step.parameters == pytest.approx(numbers / entries)
        assert step.decrease == pytest.approx((before - mean_loss(stepped, data[:2])).item(), abs=1e-12)
        assert step.held_out == pytest.approx((others_before - mean_loss(stepped, data[2:])).item(), abs=1e-12)
    assert all(step.predicted == pytest.approx(found.everything.predicted) for step in found.full)
    assert found.everything.energy == pytest.approx(1)
    for (name, share), own in zip(found.shares.items(), gradient, strict=True):
        assert name in ("conv", "hidden", "out")
        assert share == pytest.approx((own.square().sum().item() / total, own.numel() / entries))
    assert found.everything.parameters == 1
    without = winners(net, losses_of(net), data[:2], data[2:], matrices, places, lr=0.3, layers=False)
    assert without == replace(found, layers=[])
    others = torch.autograd.grad(others_before, weights)
    first = {step.name: step for step in reversed(found.slices)}
    assert found.together.energy == pytest.approx(sum(step.energy for step in first.values()))
    for name, step in first.items():  # one after the other, with the same gradient
        moved, _, _ = by_hand(net, data[:2], name, step.kind, step.indices, 0.3)
        with torch.no_grad():
            plain.get_parameter(f"{name}.weight").copy_(moved.get_parameter(f"{name}.weight"))
    assert found.together.decrease == pytest.approx((before - mean_loss(plain, data[:2])).item(), abs=1e-12)
    product = sum((one * other).sum().item() for one, other in zip(gradient, others, strict=True))
    assert found.everything.held_out_predicted == pytest.approx(0.3 * product)


def test_small_steps_agree_with_the_first_order(net, data):
    """On both sets of examples the error shrinks with the step."""
    matrices = target_matrices(net, ["conv", "hidden", "out"], R)
    places = candidate_slices(matrices, R, 6, seed=0)
    found = winners(net, losses_of(net), data[:2], data[2:], matrices, places, lr=1e-5)
    for step in [*found.slices, found.everything]:
        assert step.decrease == pytest.approx(step.predicted, rel=1e-3)
        assert step.held_out == pytest.approx(step.held_out_predicted, rel=1e-2, abs=1e-10)
    assert winning(found.slices) == 1


def test_too_large_a_step_raises_the_loss(net, data):
    matrices = target_matrices(net, "hidden|out", R)
    found = winners(net, losses_of(net), data[:2], data[2:], matrices, candidate_slices(matrices, R, 8, 0), lr=1e4)
    assert winning(found.slices) == sum(step.decrease > 0 for step in found.slices) / 8 < 0.8
    assert winning(found.slices, held_out=True) == sum(step.held_out > 0 for step in found.slices) / 8
    assert found.everything.decrease < 0


def test_standard_error_of_the_held_out_decrease(net, data):
    matrices = target_matrices(net, "out", R)
    place = SliceLocation(matrices[0], "column", (0, 3))
    step = winners(net, losses_of(net), data[:2], data[2:], matrices, [place], lr=0.5).slices[0]
    stepped, _, _ = by_hand(net, data[:2], "out", "column", (0, 3), 0.5)
    with torch.no_grad():
        fall = losses_of(copy.deepcopy(net).eval())(data[2]) - losses_of(stepped)(data[2])
    assert step.held_out_error == pytest.approx((fall.std() / len(fall) ** 0.5).item())


@pytest.mark.parametrize("floor", [0, 30])
def test_default_learning_rate(net, data, floor):
    """A tenth of the loss to first order, halved until half of it is measured; a lower bound of the loss needs that."""
    matrices = target_matrices(net, "hidden|out", R)

    def losses(batch):
        return F.cross_entropy(net(batch[0]), batch[1], reduction="none") + floor

    found = winners(net, losses, data[:2], data[2:], matrices, candidate_slices(matrices, R, 2, 0))
    halvings = math.log2(0.1 * found.loss / found.everything.predicted)
    assert halvings == pytest.approx(round(halvings), abs=1e-9)
    assert (round(halvings) > 0) == (floor > 0)
    assert found.everything.decrease > found.everything.predicted / 2
    if halvings > 0.5:
        before = winners(net, losses, data[:2], data[2:], matrices, candidate_slices(matrices, R, 2, 0), 2 * found.lr)
        assert before.everything.decrease <= before.everything.predicted / 2


def test_resolution_is_the_rounding_error(net, data):
    """In float32 it is about the last digit of the loss; in float64 it is far smaller."""
    found = []
    for kind in (torch.float64, torch.float32):
        own, given = copy.deepcopy(net).to(kind), [(x.to(kind), y) for x, y in data]
        matrices = target_matrices(own, ["conv", "hidden", "out"], R)
        places = candidate_slices(matrices, R, 1, 0)
        found.append(winners(own, losses_of(own), given[:2], given[2:], matrices, places).resolution)
    assert 0 < found[0] < 1e-14
    assert 1e-9 < found[1] < 1e-6


def test_network_state_is_restored(data):
    """Weights are bit-equal in float32; gradients, random generators and modes are unchanged."""
    net = Net().train()
    small = [(x.float(), y) for x, y in data]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    matrices = target_matrices(net, ["conv", "hidden", "out"], R)
    winners(net, losses_of(net), small[:2], small[2:], matrices, candidate_slices(matrices, R, 9, 0), lr=3.0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert net.training
    assert torch.equal(torch.get_rng_state(), generator)


def test_weights_are_restored_after_an_error(net, data):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calls = []

    def losses(batch):
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("out of memory")
        return losses_of(net)(batch)

    matrices = target_matrices(net, "hidden", R)
    with pytest.raises(RuntimeError, match="out of memory"):
        winners(net, losses, data[:2], data[2:], matrices, candidate_slices(matrices, R, 2, 0))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_invalid_arguments_are_refused(net, data):
    matrices = target_matrices(net, "hidden", R)
    places = candidate_slices(matrices, R, 1, 0)
    with pytest.raises(ValueError, match="No candidate slices"):
        winners(net, losses_of(net), data[:2], data[2:], matrices, [])
    still = lambda batch: batch[0].sum((1, 2)).requires_grad_()
    with pytest.raises(ValueError, match="gradient of these layers is 0"):
        winners(net, still, data[:2], data[2:], matrices, places)
