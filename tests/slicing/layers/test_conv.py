"""Sliced convolutions against torch's own."""

import copy

import pytest
import torch
from torch import nn

from slicefine_pl.slicing import slice_model
from slicefine_pl.slicing.layers.conv import SlicedConv

I, O, R = 5, 6, 2
CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(I, O, 3, stride=2, padding=1), (3, I, 11)),
    "1d same, even kernel": (lambda: nn.Conv1d(I, O, 4, padding="same", dilation=2), (3, I, 11)),
    "2d": (lambda: nn.Conv2d(I, O, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(2, 1)), (3, I, 9, 7)),
    "2d valid, no bias": (lambda: nn.Conv2d(I, O, 2, padding="valid", bias=False), (3, I, 6, 5)),
    "2d circular": (lambda: nn.Conv2d(I, O, 3, padding=(2, 1), padding_mode="circular"), (3, I, 6, 5)),
    "2d reflect": (lambda: nn.Conv2d(I, O, 3, padding=1, padding_mode="reflect"), (3, I, 6, 5)),
    "2d pointwise": (lambda: nn.Conv2d(I, O, 1), (3, I, 6, 5)),
    "2d without batch": (lambda: nn.Conv2d(I, O, 3), (I, 6, 5)),
    "1d grouped": (lambda: nn.Conv1d(2 * 3, 2 * 4, 3, padding=1, groups=2), (3, 2 * 3, 11)),
    "2d grouped": (lambda: nn.Conv2d(3 * 4, 3 * 2, 3, stride=2, groups=3, dilation=(1, 2)), (3, 3 * 4, 9, 8)),
    "3d grouped, circular": (
        lambda: nn.Conv3d(2 * 3, 2 * 3, (3, 1, 1), padding=(1, 0, 0), padding_mode="circular", groups=2, bias=False),
        (2, 2 * 3, 4, 5, 5),
    ),
    "3d": (lambda: nn.Conv3d(I, O, (3, 2, 2), stride=(1, 2, 2), padding=(1, 0, 0)), (2, I, 4, 6, 6)),
}


def pair(name: str, axis: str, **settings):
    """A dense convolution, its sliced twin in a network, the handle, and an input."""
    build, shape = CONVOLUTIONS[name]
    dense = build().double()
    net = nn.ModuleDict({"conv": copy.deepcopy(dense)})
    handle = slice_model(net, rank=R, axis=axis, targets="conv", also_train="bias" if dense.bias is not None else [])
    return dense, net["conv"], handle, torch.randn(shape, dtype=torch.float64)


def block(gradient: torch.Tensor, view) -> torch.Tensor:
    """The lines of a slice in a dense gradient, one per row."""
    lines = gradient.transpose(0, 1) if view.axis == "column" else gradient
    return lines[view.indices].flatten(1)


@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_sliced_channels_get_exactly_the_dense_gradient(name, axis):
    dense, layer, handle, x = pair(name, axis)
    assert isinstance(layer, SlicedConv)
    (view,) = handle
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(ours)
    assert torch.equal(y, dense(theirs))
    target = torch.randn_like(y)
    (y * target).sum().backward()
    (dense(theirs) * target).sum().backward()
    torch.testing.assert_close(view.parameter.grad, block(dense.weight.grad, view))
    torch.testing.assert_close(ours.grad, theirs.grad)
    if dense.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("axis", ["column", "row", "alternate"])
def test_training_moving_channels_equals_dense_training_with_a_moving_mask(axis):
    """Momentum-free SGD on the dense weight, its gradient masked by hand."""
    dense, layer, handle, x = pair("2d", axis)
    optimizer = torch.optim.SGD([view.parameter for view in handle], lr=0.1)
    masked = torch.optim.SGD([dense.weight], lr=0.1)
    for _ in range(6):
        (view,) = handle
        for model, optim in ((layer, optimizer), (dense, masked)):
            optim.zero_grad()
            model(x).square().sum().backward()
        mask = torch.zeros_like(dense.weight)
        (mask.transpose(0, 1) if view.axis == "column" else mask)[view.indices] = view.scale
        dense.weight.grad *= mask
        optimizer.step()
        masked.step()
        handle.move()
    handle.close()
    assert type(layer) is nn.Conv2d
    torch.testing.assert_close(layer.weight, dense.weight)


@pytest.mark.parametrize(
    ("name", "column", "row"),
    [
        ("2d pointwise", 3 * R * 6 * 5, 3 * I * 6 * 5),
        ("2d grouped", 3 * (3 * R) * 9 * 8, 3 * (R * 4) * 9 * 8),  # two rows read the four channels of their groups
        ("1d grouped", 3 * (2 * R) * 11, 3 * (2 * 3) * 11),  # as many rows as groups: the whole input, once
    ],
)
def test_only_the_channels_that_the_slice_reads_are_saved(name, column, row):
    kept = {}
    for axis in ("column", "row"):
        _, layer, _, x = pair(name, axis)
        own = {parameter.data_ptr() for parameter in layer.parameters()}
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved, own=own, sizes=sizes: (
                sizes.append(saved.untyped_storage().nbytes())
                if saved.data_ptr() not in own and saved.is_floating_point()
                else None,
                saved,
            )[1],
            lambda saved: saved,
        ):
            layer(x.requires_grad_())
        kept[axis] = sum(sizes)
    assert kept == {"column": 8 * column, "row": 8 * row}


def test_autocast_computes_in_the_low_precision_and_trains_in_the_high():
    dense = nn.Conv2d(I, O, 3)
    net = nn.ModuleDict({"conv": copy.deepcopy(dense)})
    (view,) = slice_model(net, rank=R, targets="conv", also_train="bias")
    x = torch.randn(4, I, 8, 8)
    for layer in (net["conv"], dense):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
    assert view.parameter.grad.dtype == torch.float32
    torch.testing.assert_close(view.parameter.grad, block(dense.weight.grad, view), rtol=3e-2, atol=1.0)


@pytest.mark.parametrize("axis", ["column", "row"])
def test_scores_are_the_norms_of_the_first_example_s_gradient(axis):
    dense, layer, _, x = pair("2d", axis)
    slice_ = layer.slicefine
    slice_.start_score(axis)
    layer(x).square().sum().backward()
    dense(x[:1]).square().sum().backward()
    lines = dense.weight.grad.transpose(0, 1) if axis == "column" else dense.weight.grad
    torch.testing.assert_close(slice_.score, lines.flatten(1).norm(dim=1).float())


@pytest.mark.parametrize("axis", ["column", "row"])
def test_compiled_convolutions_are_one_graph_before_and_after_a_move(axis):
    torch.compiler.reset()
    dense, layer, handle, x = pair("2d", axis)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    compiled(x).square().sum().backward()
    twin(x).square().sum().backward()
    torch.testing.assert_close(layer.slicefine.trainable.grad, twin.slicefine.trainable.grad)
    handle.move()
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(compiled(x), dense(x))
