"""Zeros under optimizers that scale by norms of a whole matrix: steps of Adafactor, in float64."""

import math

import pytest
import torch
from torch import nn

from slicefine_pl.sparsity import NetworkMasks, parse_pattern

O, I, LIVE = 16, 12, 4
DENSITY = LIVE / O


def problem():
    """Return a linear layer with some nonzero rows, the layer of these rows alone, and data for both."""
    whole = nn.Linear(I, O, bias=False, dtype=torch.float64)
    with torch.no_grad():
        whole.weight[LIVE:] = 0
    small = nn.Linear(I, LIVE, bias=False, dtype=torch.float64)
    small.weight.data.copy_(whole.weight[:LIVE])
    x, y = torch.randn(32, I, dtype=torch.float64), torch.randn(32, O, dtype=torch.float64)
    masks = NetworkMasks(whole, parse_pattern("row"), targets="weight")
    masks.keep_zeros()
    return whole, small, x, y, masks


def train(net, x, y, optimizer, steps, masks=None):
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - y[:, : net.out_features]).square().sum().backward()
        if masks is not None:
            masks.mask_gradients()
        optimizer.step()
        if masks is not None:
            masks.mask_trained_weights(optimizer)


@pytest.mark.parametrize(("spike", "about"), [(1, 0.55), (1.5, 0.8), (100, 1.0)])
def test_zero_rows_shorten_the_step_of_adafactor_by_the_root_of_the_density_unless_it_is_clipped(spike, about):
    """The closed form of docs/pruning.md: sqrt(d) max(1, R) / max(1, sqrt(d) R), R the RMS of the small update.

    Thirty gradients, the last one ``spike`` times as large: what Adafactor clips.
    """
    whole, small, _, _, masks = problem()
    start, gradient = small.weight.detach().clone(), torch.randn(O, I, dtype=torch.float64)
    optimizers = [torch.optim.Adafactor(net.parameters(), lr=0.01) for net in (whole, small)]
    for step in range(1, 31):
        with torch.no_grad():
            whole.weight[:LIVE], small.weight[:] = start, start
        whole.weight.grad = gradient * (spike if step == 30 else 1)
        masks.mask_gradients()
        small.weight.grad = whole.weight.grad[:LIVE].clone()
        for optimizer in optimizers:
            optimizer.step()
    alive = gradient[:LIVE]
    rows, columns = alive.square().mean(1, keepdim=True), alive.square().mean(0, keepdim=True)
    newest = 30**-0.8  # weight of the last square in Adafactor's average
    update = spike * alive / (rows * columns / rows.mean() * (1 - newest + newest * spike**2)).sqrt()
    R = update.square().mean().sqrt().item()
    expected = math.sqrt(DENSITY) * max(1, R) / max(1, math.sqrt(DENSITY) * R)
    ratio = (whole.weight.detach()[:LIVE] - start) / (small.weight.detach() - start)
    torch.testing.assert_close(ratio, torch.full_like(ratio, expected), rtol=1e-9, atol=0)
    assert expected == pytest.approx(about, abs=0.05)


def test_without_clipping_a_higher_rate_compensates_for_zero_rows():
    """lr / sqrt(d): thirty steps equal those of the small dense matrix."""
    whole, small, x, y, masks = problem()
    train(small, x, y, torch.optim.Adafactor(small.parameters(), lr=0.01, d=1e6), 30)
    train(whole, x, y, torch.optim.Adafactor(whole.parameters(), lr=0.01 / math.sqrt(DENSITY), d=1e6), 30, masks)
    torch.testing.assert_close(whole.weight[:LIVE], small.weight, rtol=1e-9, atol=1e-12)
    assert not whole.weight[LIVE:].any()


def test_with_clipping_only_the_clipped_part_differs():
    """At the default threshold of 1, the same correction is accurate to a few percent."""
    whole, small, x, y, masks = problem()
    start = small.weight.detach().clone()
    train(small, x, y, torch.optim.Adafactor(small.parameters(), lr=0.01), 30)
    train(whole, x, y, torch.optim.Adafactor(whole.parameters(), lr=0.01 / math.sqrt(DENSITY)), 30, masks)
    ours, theirs = (net.weight.detach()[:LIVE] - start for net in (whole, small))
    assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=0.1)


def relative_step(pattern, density):
    """Return the RMS of the step of nonzero weights relative to their RMS, for equal weights and gradients."""
    net = nn.Linear(512, 512, bias=False, dtype=torch.float64)
    nn.init.normal_(net.weight)
    masks = NetworkMasks(net, parse_pattern(pattern), criterion="random")
    if density < 1:
        masks.prune(1 - density)
    alive = masks["weight"]
    before = net.weight.detach().clone()
    net.weight.grad = torch.randn(512, 512, dtype=torch.float64)
    masks.mask_gradients()
    torch.optim.Adafactor(net.parameters(), lr=0.01).step()
    step = (net.weight.detach() - before)[alive]
    return (step.square().mean() / before[alive].square().mean()).sqrt().item()


@pytest.mark.parametrize("density", [0.5, 0.25, 0.1])
def test_scattered_zeros_have_no_effect_and_zero_rows_or_columns_have_one(density):
    dense = relative_step("unstructured", 1.0)
    assert dense == pytest.approx(0.01, rel=0.02)
    assert relative_step("unstructured", density) == pytest.approx(dense, rel=0.05)
    for pattern in ("row", "column"):
        assert relative_step(pattern, density) == pytest.approx(math.sqrt(density) * dense, rel=0.05)


def test_2_4_zeros_have_no_effect():
    assert relative_step("2:4", 0.5) == pytest.approx(relative_step("unstructured", 1.0), rel=0.02)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD], ids=lambda make: make.__name__)
def test_elementwise_optimizers_keep_zeros_by_themselves(make):
    """They also ignore them: nonzero rows train exactly like the small dense matrix."""
    whole, small, x, y, masks = problem()
    momentum = {"momentum": 0.9, "nesterov": True} if make is torch.optim.SGD else {}
    settings = {"lr": 1e-3, "weight_decay": 0.1} | momentum
    train(small, x, y, make(small.parameters(), **settings), 30)
    train(whole, x, y, make(whole.parameters(), **settings), 30, masks)
    torch.testing.assert_close(whole.weight[:LIVE], small.weight, rtol=1e-9, atol=1e-12)
    assert not whole.weight[LIVE:].any()


def test_zeros_hold_if_a_gradient_was_changed_after_masking():
    """The weights are masked after the optimizer's step then."""
    whole, _, x, y, masks = problem()
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.01)
    (whole(x) - y).square().sum().backward()
    masks.mask_gradients()
    whole.weight.grad.add_(1.0)  # such as the noise of differential privacy
    optimizer.step()
    assert whole.weight[LIVE:].all()
    masks.mask_trained_weights(optimizer)
    assert not whole.weight[LIVE:].any()


def test_zeros_hold_if_a_gradient_was_replaced_after_masking():
    whole, _, x, y, masks = problem()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.01)
    (whole(x) - y).square().sum().backward()
    masks.mask_gradients()
    whole.weight.grad = torch.ones_like(whole.weight)
    optimizer.step()
    masks.mask_trained_weights(optimizer)
    assert not whole.weight[LIVE:].any()
