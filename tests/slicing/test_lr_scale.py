"""Slices whose learning rate is scaled, against slices and dense networks whose optimizer is given the scaled rate."""

import copy

import pytest
import timm.optim
import torch
from helpers.copying import COPIERS, copied
from helpers.plain_loop import assert_same_weights, network, slice_trunk, train, trainable
from torch import nn, optim

from slicefine_pl.slicing import UpdateTracker, slice_model

R = 3
MATRICES = {"0": (10, 12), "2": (12, 9)}  # inputs, outputs


OPTIMIZERS = {
    "AdamW": lambda groups: optim.AdamW(groups, weight_decay=0.0),
    "Adam": lambda groups: optim.Adam(groups, amsgrad=True),
    "SGD": lambda groups: optim.SGD(groups),
    "SGD with momentum": lambda groups: optim.SGD(groups, momentum=0.9, nesterov=True),
    "Lion": lambda groups: timm.optim.Lion(groups, weight_decay=0.0),
    "RMSprop": lambda groups: optim.RMSprop(groups, momentum=0.5, centered=True),
    "NAdam": lambda groups: optim.NAdam(groups),
}


@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_scale_equals_a_learning_rate_of_its_own_for_each_slice(name, axis):
    """SGD included: the gradient is that of the lines, so the factor counts once and not twice."""
    lr, scaled, plain = 1e-3, network(), network()
    handle = slice_trunk(scaled, axis=axis)
    train(
        scaled,
        OPTIMIZERS[name]([{"params": trainable(scaled), "lr": lr}]),
        9,
        handle,
        4,
    )
    handle.close()
    handle = slice_trunk(plain, axis=axis, lr_scale=1)
    groups = [{"params": [view.parameter], "lr": lr * min(MATRICES[view.name]) / R} for view in handle]
    train(plain, OPTIMIZERS[name]([*groups, {"params": list(plain[4].parameters()), "lr": lr}]), 9, handle, 4)
    handle.close()
    for ours, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_slice_as_wide_as_the_weight_trains_like_full_fine_tuning():
    net, dense = network(), network()
    for name, parameter in dense.named_parameters():
        parameter.requires_grad_(name in ("0.weight", "4.weight", "4.bias"))
    handle = slice_trunk(net, rank=10, targets="^0$")
    assert [view.scale for view in handle] == [1.0]
    for model in (net, dense):
        train(model, optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01, weight_decay=0.0), 12)
    handle.close()
    for ours, theirs in zip(net.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_weight_decay_pulls_towards_the_values_at_the_start_of_the_visit():
    """Without gradients, the change of the lines shrinks by 1 - lr * weight_decay in each step."""
    net = network()
    before = net[0].weight.detach().clone()
    [view] = handle = slice_trunk(net, targets="^0$")
    optimizer = optim.AdamW([view.parameter], lr=0.1, weight_decay=0.5)
    with torch.no_grad():
        view.parameter.fill_(0.3)
    for _ in range(5):
        view.parameter.grad = torch.zeros_like(view.parameter)
        optimizer.step()
    handle.close()
    expected = before.clone()
    expected[:, view.indices] += 0.3 * 0.95**5 * 10 / R
    torch.testing.assert_close(net[0].weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lr_scale", ["auto", 0.37])
def test_weights_outside_the_slice_and_lines_without_change_are_bit_equal(lr_scale):
    """``base + scale * 0`` is ``base``, in each type."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        net = network(dtype)
        before = copy.deepcopy(net.state_dict())
        handle = slice_trunk(net, lr_scale=lr_scale, slice_dtype="float32")
        for _ in range(7):
            handle.move()
        handle.close()
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_factor_is_the_share_of_the_lines_that_are_trained():
    net = nn.ModuleDict({
        "linear": nn.Linear(12, 20),
        "narrowing": nn.Linear(40, 12),
        "convolution": nn.Conv2d(16, 10, 3),
        "groups": nn.Conv2d(16, 8, 3, groups=2),
        "attention": nn.MultiheadAttention(24, 2),
        "words": nn.Embedding(50, 40),
    })  # fmt: skip
    names = ["linear", "narrowing", "convolution", "groups", "in_proj_weight", "words"]
    factors = {}
    for axis in ("column", "row"):
        handle = slice_model(net, 4, axis, targets=names, also_train=[])
        factors[axis] = {view.name: view.scale for view in handle}
        handle.close()
    maps = {"linear": 3, "narrowing": 3, **dict.fromkeys([f"attention.in_proj_weight.{part}" for part in "qkv"], 6)}
    assert factors["column"] == {**maps, "convolution": 2, "groups": 2**0.5, "words": 10}
    assert factors["row"] == {**maps, "convolution": 2.5**0.5, "groups": 2**0.5, "words": 1}


def test_more_columns_than_rows_are_trained_at_the_optimizers_rate():
    [view] = slice_model(nn.Sequential(nn.Linear(12, 4)), 6, targets=".", also_train=[])
    assert view.scale == 1


def test_alternating_slices_change_their_factor_at_a_move():
    [view] = handle = slice_model(nn.Sequential(nn.Conv2d(16, 9, 1)), 4, "alternate", targets=".", also_train=[])
    assert view.scale == 2
    [view] = handle.move()
    assert view.scale == 1.5


def test_a_bfloat16_slice_keeps_updates_that_a_bfloat16_weight_would_lose():
    """The change begins at zero, where bfloat16 is fine; a weight of 1 rounds steps of 2^-11 away."""
    nets = [nn.Sequential(nn.Linear(8, 4, dtype=torch.bfloat16)) for _ in range(2)]
    for net, lr_scale in zip(nets, (1.0, 2.0), strict=True):
        nn.init.ones_(net[0].weight)
        [view] = handle = slice_model(net, 2, targets="0", also_train=[], lr_scale=lr_scale)
        optimizer = optim.SGD([view.parameter], lr=2.0**-12)
        for _ in range(64):
            view.parameter.grad = torch.full_like(view.parameter, -1.0)
            optimizer.step()
        handle.close()
    assert (nets[0][0].weight == 1).all()
    assert (nets[1][0].weight[:, view.indices] == 1 + 2.0**-5).all()


@pytest.mark.parametrize("copier", COPIERS)
def test_copies_continue_like_the_original(copier):
    net = network()
    slice_trunk(net)
    train(net, optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-3), 3)
    twin = copied(net, copier)
    for each in (net, twin):
        train(each, optim.AdamW([p for p in each.parameters() if p.requires_grad], 1e-3), 3)
    assert_same_weights(net, twin)


def test_loading_weights_while_slices_are_open_takes_them_exactly():
    net, other = network(torch.float32), network(torch.float32)
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    handle = slice_trunk(net)
    train(net, optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-3), 3)
    trained = copy.deepcopy(net.state_dict())
    net.load_state_dict(trained)  # the same weights: the slices keep their change
    assert all(view.parameter.count_nonzero() for view in handle)
    net.load_state_dict(other.state_dict())
    assert not any(view.parameter.count_nonzero() for view in handle)
    handle.close()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_saved_state_restores_slices_bit_for_bit():
    """The change cannot be read from the weight, where it is rounded."""
    net = network(torch.float32)
    handle = slice_trunk(net)
    train(net, optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-3), 5, handle, 2)
    state, weights = copy.deepcopy(handle.state_dict()), copy.deepcopy(net.state_dict())
    twin = network(torch.float32)
    twin.load_state_dict(weights)
    again = slice_trunk(twin)
    again.load_state_dict(state)
    for ours, theirs in zip(again, handle, strict=True):
        assert torch.equal(ours.parameter, theirs.parameter)
        assert torch.equal(ours.base, theirs.base)
    with pytest.raises(ValueError, match=r"lr_scale differ .*only saved: \['auto'\]"):
        slice_trunk(network(torch.float32), lr_scale=1).load_state_dict(state)


def test_the_tracker_of_updates_records_the_change_of_the_weight():
    net = network()
    before = net[0].weight.detach().clone()
    handle = slice_trunk(net, targets="^0$")
    tracker = UpdateTracker(handle)
    train(net, optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-3), 6, handle, 3)
    handle.close()
    [lines] = tracker.lines()
    change = (net[0].weight.detach() - before).square().mean(0).sqrt()
    torch.testing.assert_close(lines.rms_change[lines.visited], change[lines.visited], rtol=1e-9, atol=0)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "fast", None, True, [2.0]])
def test_bad_scales_are_refused(bad):
    with pytest.raises(ValueError, match=r"lr_scale=.* choose 'auto', 1 \(no scaling\), or another number"):
        slice_trunk(network(), lr_scale=bad)


def test_a_saved_state_keeps_its_factors(monkeypatch):
    """What was trained is stored without its factor, so another one would change the weights."""
    net = network()
    handle = slice_trunk(net)
    train(net, optim.AdamW(trainable(net), 0.01), 3)
    state, weights = handle.state_dict(), copy.deepcopy(net.state_dict())
    monkeypatch.setattr("slicefine_pl.slicing.cursor.lr_scale_at", lambda *_: 100.0)
    other = network()
    again = slice_trunk(other)
    other.load_state_dict(weights)
    again.load_state_dict(state)
    assert [view.scale for view in again] == [view.scale for view in handle]
    again.write()
    assert all(torch.equal(values, weights[name]) for name, values in other.state_dict().items())
    del state["slices"]["0"]["scale"]
    with pytest.raises(ValueError, match=r"lack the factors of their learning rates, because an earlier version"):
        again.load_state_dict(state)
