"""Slices along directions of bfloat16 and float16 weights, against float64 arithmetic on the same rounded numbers."""

import copy

import pytest
import torch
import torch._dynamo.testing
from helpers.copying import COPIERS, copied
from helpers.plain_loop import HIDDEN, INPUTS, assert_same_weights, batch, network, slice_trunk, train, trainable
from torch import nn, optim
from transformers.pytorch_utils import Conv1D

from slicefine_pl.slicing import as_dense, slice_model
from slicefine_pl.slicing.rounding import Remainder, subtract

I, O, R = INPUTS, HIDDEN, 3
HALF = [torch.bfloat16, torch.float16]


def conv1d() -> nn.Module:
    layer = Conv1D(O, I)
    nn.init.normal_(layer.weight)
    return layer


LAYERS = {"linear": lambda: nn.Linear(I, O), "Conv1D": conv1d, "attention": lambda: nn.MultiheadAttention(I, 2)}


def outputs(layer, x):
    return layer(x, x, x)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_are_those_of_the_weight_with_the_change(name, dtype):
    torch.manual_seed(1)
    net = nn.ModuleList([LAYERS[name]()]).to(dtype)
    targets = "in_proj" if name == "attention" else "^0$"
    handle = slice_model(net, R, targets=targets, also_train=[], basis="random", slice_dtype="float32")
    dense = LAYERS[name]().double()
    for parameter, stored in zip(dense.parameters(), net.state_dict().values(), strict=True):
        parameter.data.copy_(stored)
    layouts = {id(slice_.trainable): slice_.layout for slice_ in net[0].slicefine_slices()}
    for view in handle:
        view.parameter.data.normal_(0, 0.02)
        change = (view.scale * view.parameter.double()).t() @ view.directions.double().t()
        layout = layouts[id(view.parameter)]
        layout.view(dense.get_parameter(layout.parameter).data).add_(change)
    x = torch.randn(5, 7, I, dtype=dtype, requires_grad=True)
    reference = x.detach().double().requires_grad_()
    for layer, inputs in ((net[0], x), (dense, reference)):
        outputs(layer, inputs).square().sum().backward()
    close = {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(outputs(net[0], x).double(), outputs(dense, reference), **close)
    scale = reference.grad.abs().max()
    torch.testing.assert_close(x.grad.double() / scale, reference.grad / scale, **close)
    for view in handle:
        layout = layouts[id(view.parameter)]
        gradient = layout.view(dense.get_parameter(layout.parameter).grad)
        expected = view.directions.double().t() @ gradient.t()
        torch.testing.assert_close(
            view.parameter.grad.double() / expected.abs().max(), expected / expected.abs().max(), **close
        )


def test_small_steps_are_not_rounded_away():
    """After 300 steps that are each far below the spacing of bfloat16, the change is that of a float32 weight."""
    exact, half = network(torch.bfloat16).float(), network(torch.bfloat16)
    start = exact[0].weight.detach().clone()
    for net, settings in ((exact, {}), (half, {"slice_dtype": "float32"})):
        handle = slice_trunk(net, basis="random", targets="^0$", also_train=[], **settings)
        train(net, optim.AdamW(trainable(net), 1e-5, weight_decay=0), range(300))
        handle.close()
    expected, found = (net[0].weight.detach().float() - start for net in (exact, half))
    spacing = torch.finfo(torch.bfloat16).eps * start.abs()
    assert ((found - expected).abs() <= 0.55 * spacing + 0.05 * expected.abs().max()).all()
    assert found.count_nonzero() > 0.2 * found.numel()


@pytest.mark.parametrize("dtype", HALF)
def test_what_is_read_saved_and_left_is_the_weight_with_the_change(dtype):
    net = network(dtype)
    handle = slice_trunk(net, basis="random", slice_dtype="float32")
    stored = net[0].slicefine_stored("weight")
    before = stored.clone()
    train(net, optim.SGD(trainable(net), 0.02), range(5))
    handle.write()
    assert torch.equal(stored, before)
    saved = net.state_dict()
    [view] = [view for view in handle if view.name == "0"]
    change = (view.scale * view.parameter.detach().double()).t() @ view.directions.double().t()
    torch.testing.assert_close(saved["0.weight"].double(), before.double() + change, rtol=1e-2, atol=1e-7)
    assert (saved["0.weight"] != before).any()
    with torch.no_grad():
        assert torch.equal(net[0].weight, saved["0.weight"])
    with as_dense(net):
        assert torch.equal(net[0].weight, saved["0.weight"])
    assert net[0].slicefine_stored("weight") is stored
    handle.close()
    assert net[0].weight is stored
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("basis", ["random", "gradient"])
def test_a_resumed_run_equals_the_uninterrupted_run(basis, dtype):
    net, twin = network(dtype), network(dtype)
    handle, again = (slice_trunk(each, basis=basis, slice_dtype="float32") for each in (net, twin))
    optimizer, other = (optim.SGD(trainable(each), 0.02, momentum=0.9) for each in (net, twin))
    train(net, optimizer, range(5), handle, 2)
    saved = copy.deepcopy((net.state_dict(), handle.state_dict(), optimizer.state_dict()))
    for part, state in zip((twin, again, other), saved, strict=True):
        part.load_state_dict(state)
    assert torch.equal(net[0].slicefine_stored("weight"), twin[0].slicefine_stored("weight"))
    train(net, optimizer, range(5, 11), handle, 2)
    train(twin, other, range(5, 11), again, 2)
    assert_same_weights(net, twin)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.1, 10.0])
def test_a_change_is_taken_out_bit_for_bit(size, dtype):
    """Also if the product that is subtracted differs by what another order of its sums would change."""
    generator = torch.Generator().manual_seed(3)
    matrix = (0.1 * torch.randn(80, 60, generator=generator)).to(dtype)
    change, directions = torch.randn(8, 80, generator=generator), torch.randn(60, 8, generator=generator)
    change *= size
    product = change.t() @ directions.t()
    merged = (matrix.float() + product).to(dtype)
    remainder = Remainder.of(matrix, merged, change, directions)
    for error in (-1e-6, 0.0, 1e-6):
        restored = merged.clone()
        subtract(restored, product * (1 + error), remainder)
        assert torch.equal(restored, matrix)
    if size <= 1e-3:
        assert len(remainder.values) < 0.1 * matrix.numel()
    for offset in (0, 30):  # in two parts, split along each dimension
        for dim in (0, 1):
            part = merged.narrow(dim, offset, 30).clone()
            subtract(part, product.narrow(dim, offset, 30), remainder.within(part.shape, dim, offset))
            assert torch.equal(part, matrix.narrow(dim, offset, 30))


@pytest.mark.parametrize("copier", COPIERS)
def test_copies_continue_like_the_original(copier):
    net = network(torch.bfloat16)
    slice_trunk(net, basis="gradient")
    train(net, optim.AdamW(trainable(net), 1e-3), range(3))
    twin = copied(net, copier)
    for each in (net, twin):
        train(each, optim.AdamW(trainable(each), 1e-3), range(3))
    assert_same_weights(net, twin)


def test_a_cast_while_slices_are_open():
    """As Lightning's bf16-true casts after setup: what was trained stays."""
    net = network(torch.float32)
    handle = slice_trunk(net, basis="random")
    train(net, optim.AdamW(trainable(net), 1e-2), range(3))
    handle.write()
    expected = net.state_dict()["0.weight"].bfloat16()
    net.bfloat16()
    assert torch.equal(net.state_dict()["0.weight"], expected)
    train(net, optim.AdamW(trainable(net), 1e-2), range(3))
    stored = net[0].slicefine_stored("weight")
    assert torch.equal(stored, expected)
    handle.close()
    assert not torch.equal(stored, expected)


def test_a_move_does_not_compile_again():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    net = network(torch.bfloat16)
    handle = slice_trunk(net, basis="gradient")
    handle.write_manually()
    compiled = torch.compile(net, backend=counter)
    for step in range(4):
        x, y = batch(step, torch.bfloat16)
        nn.functional.cross_entropy(compiled(x), y).backward()
        optim.SGD(trainable(net), 0.1).step()
        handle.write()
        if step % 2:
            handle.move()
        if step == 0:
            graphs = counter.frame_count
    assert counter.frame_count == graphs
    torch.testing.assert_close(compiled(x), net(x), rtol=0.02, atol=0.02)


def test_a_state_without_its_weights_is_refused():
    """The change would be taken out of weights that do not contain it."""
    net, twin = network(torch.bfloat16), network(torch.bfloat16)
    handle, again = (slice_trunk(each, basis="random", slice_dtype="float32") for each in (net, twin))
    train(net, optim.SGD(trainable(net), 0.02), range(3))
    weights, saved = copy.deepcopy((net.state_dict(), handle.state_dict()))
    twin.load_state_dict(weights)
    again.load_state_dict(saved)
    for opened, own in ((again, twin), (handle, net)):  # a second time, and without the network's state
        with pytest.raises(ValueError, match="is not the one with which the slices were saved"):
            opened.load_state_dict(saved)
        assert all(torch.equal(value, weights[name]) for name, value in own.state_dict().items())


def test_a_change_that_closing_would_lose_is_reported():
    net = network(torch.bfloat16)
    handle = slice_trunk(net, basis="random", slice_dtype="float32")
    handle.write_manually()
    train(net, optim.SGD(trainable(net), 0.02), range(3))
    net[0]._is_fsdp_managed_module = True  # FSDP2 marks modules in this way
    with pytest.warns(UserWarning, match=r"What 0 learned since the last move is lost: .* call handle\.merge\(\)"):
        handle.close()
