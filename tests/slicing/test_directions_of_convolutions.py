"""Slices along directions of a convolution's input channels, against dense gradients and decompositions."""

import copy

import pytest
import torch
import torch._dynamo.testing
from helpers.copying import COPIERS, copied
from helpers.lora import TOLERANCE, check, error, made, outputs, trained
from helpers.slice_files import assert_same, read_as_documented
from peft import PeftModel
from torch import nn, optim

from slicefine_pl.slicing import SliceFile, apply_slices, export_lora, slice_model
from slicefine_pl.slicing.applied import take_out
from slicefine_pl.slicing.distributed.saved_activations import count_activations
from slicefine_pl.slicing.layout import flatten_kernel

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

R = 3
HALF = [torch.bfloat16, torch.float16]
CONVOLUTIONS = {
    "1 x 1": lambda: nn.Conv2d(8, 6, 1),
    "stride and padding": lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1),
    "groups": lambda: nn.Conv2d(8, 6, 3, groups=2, padding=1),
    "dilation": lambda: nn.Conv2d(8, 6, (1, 3), dilation=2),
    "circular": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
    "1-d, same": lambda: nn.Conv1d(8, 6, 4, padding="same"),
    "3-d": lambda: nn.Conv3d(8, 6, 2, bias=False),
    "channels last": lambda: nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last),
}


def inputs(conv, seed=0, batch=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 8, *[6, 5, 4][: len(conv.kernel_size)], generator=generator).to(conv.weight.dtype)


def layer(name, dtype=torch.float64):
    torch.manual_seed(1)
    return nn.ModuleList([CONVOLUTIONS[name]()]).to(dtype)


@pytest.fixture(params=CONVOLUTIONS)
def name(request):
    return request.param


def test_the_gradient_is_that_of_the_dense_weight_along_the_directions(name):
    net = layer(name)
    dense, x = copy.deepcopy(net), inputs(net[0])
    [view] = slice_model(net, R, targets="0", also_train=[], basis="random")
    references = [each.clone().requires_grad_() for each in (x, x)]
    for each, reference in zip((dense, net), references, strict=True):
        each[0](reference).square().sum().backward()
    expected = view.directions.t() @ flatten_kernel(dense[0].weight.grad).t()
    torch.testing.assert_close(view.parameter.grad, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(references[1].grad, references[0].grad, rtol=1e-9, atol=1e-12)
    assert view.scale == (net[0].in_channels / net[0].groups / R) ** 0.5


def test_training_equals_a_dense_loop_with_the_gradient_along_the_directions(name):
    """SGD in the dense layer, whose gradient is projected; with a move."""
    net = layer(name)
    dense = copy.deepcopy(net[0])
    handle = slice_model(net, R, targets="0", also_train=[], basis="random", lr_scale=2.0)
    for step in range(6):
        [view] = handle
        projection = view.directions @ view.directions.t()
        optimizer = optim.SGD([view.parameter], 0.01)
        for each in (net[0], dense):
            each.zero_grad()
            each(inputs(dense, step)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            step_along = (dense.weight.grad.movedim(1, -1) @ projection).movedim(-1, 1)
            dense.weight -= 0.01 * 2.0 * step_along
        if step == 2:
            handle.move()
    handle.close()
    torch.testing.assert_close(net[0].weight, dense.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("basis", ["gradient", "pca"])
def test_directions_are_those_of_a_singular_value_decomposition(name, basis):
    """The channels lie in a space of R dimensions, in each group the same, so that R directions are unique."""
    net = layer(name)
    conv = copy.deepcopy(net[0])
    size = 8 // conv.groups
    space = torch.linalg.qr(torch.randn(size, R, dtype=torch.float64)).Q
    handle = slice_model(net, R, targets="0", also_train=[], basis=basis)
    summed = 0
    for step in range(3):
        channels = inputs(conv, step).unflatten(1, (conv.groups, size))
        x = (space @ space.t() @ channels.flatten(3)).unflatten(3, channels.shape[3:]).flatten(1, 2)
        conv.zero_grad()
        for each in (net[0], conv):
            each(x).square().sum().backward()
        rows = x.unflatten(1, (conv.groups, size)).movedim(2, -1).reshape(-1, size)
        gradient = flatten_kernel(conv.weight.grad)
        summed = summed + (gradient.t() @ gradient if basis == "gradient" else rows.t() @ rows)
    leading = torch.linalg.svd(summed).U[:, :R]
    [view] = handle.move()
    torch.testing.assert_close(view.directions @ view.directions.t(), leading @ leading.t(), rtol=1e-4, atol=1e-5)
    assert view.scale == (size / R) ** 0.5


def test_a_sketch_finds_most_of_a_gradient_with_a_slow_decay():
    """From some examples of each batch; random directions would catch 6 / 40 of the whole."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(40, 30, 3, bias=False))
    spread, dense, total = torch.linspace(1, 0, 40)[:, None, None] ** 2, copy.deepcopy(net), 0
    handle = slice_model(net, 6, targets="0", also_train=[], basis="gradient")
    for _ in range(10):
        x, target = torch.randn(16, 40, 6, 6) * spread, torch.randn(16, 30, 4, 4)
        dense.zero_grad()
        for each in (net, dense):
            (each(x) - target).square().sum().backward()
        total = total + dense[0].weight.grad
    [view] = handle.move()
    gradient = flatten_kernel(total)
    best = torch.linalg.svdvals(gradient)[:6].square().sum()
    assert (gradient @ view.directions).square().sum() > 0.6 * best


def test_only_components_along_the_directions_are_saved():
    net = nn.Sequential(nn.Conv2d(64, 8, 3))
    slice_model(net, 4, targets="0", also_train=[], basis="random")
    x = torch.randn(2, 64, 10, 10, requires_grad=True)
    with count_activations() as activations:
        net(x)
    assert activations.bytes == 4 * (2 * 4 * 10 * 10 + 64 * 4)  # x P, and P itself


@pytest.mark.parametrize("basis", ["gradient", "pca"])
def test_a_sketch_saves_few_positions_of_a_large_image(basis):
    """Of one image with 6,400 positions, it saves fewer than a tenth."""
    net = nn.Sequential(nn.Conv2d(64, 8, 3))
    handle = slice_model(net, 4, targets="0", also_train=[], basis=basis)
    x = torch.randn(1, 64, 80, 80, requires_grad=True)
    with count_activations() as sketching:
        net(x)
    handle.stay()
    with count_activations() as staying:
        net(x)
    assert 0 < sketching.bytes - staying.bytes < x.nbytes / 10


@pytest.mark.parametrize("basis", ["gradient", "pca"])
def test_sampled_positions_of_a_large_image_find_the_space_of_its_channels(basis):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(32, 8, 3, padding=1))
    handle = slice_model(net, R, targets="0", also_train=[], basis=basis)
    space = torch.linalg.qr(torch.randn(32, R)).Q
    for _ in range(3):
        net((space @ torch.randn(1, R, 56 * 56)).view(1, 32, 56, 56)).square().sum().backward()
    [view] = handle.move()
    torch.testing.assert_close(view.directions @ view.directions.t(), space @ space.t(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", HALF)
def test_output_and_gradients_in_half_precision_are_those_of_the_weight_with_the_change(name, dtype):
    net, dense = layer(name, dtype), layer(name)[0]
    for parameter, stored in zip(dense.parameters(), net.state_dict().values(), strict=True):
        parameter.data.copy_(stored)
    handle = slice_model(net, R, targets="0", also_train=[], basis="random", slice_dtype="float32")
    [view] = handle
    view.parameter.data.normal_(0, 0.1)
    change = (view.scale * view.parameter.double()).t() @ view.directions.double().t()
    dense.weight.data += change.view(6, *dense.kernel_size, -1).movedim(-1, 1)
    x = inputs(net[0]).requires_grad_()
    reference = x.detach().double().requires_grad_()
    for each, given in ((net[0], x), (dense, reference)):
        each(given).square().sum().backward()
    expected = view.directions.double().t() @ flatten_kernel(dense.weight.grad).t()
    for found, wanted in ((net[0](x), dense(reference)), (x.grad, reference.grad), (view.parameter.grad, expected)):
        torch.testing.assert_close(found.double() / wanted.abs().max(), wanted / wanted.abs().max(), rtol=0, atol=0.02)
    handle.close()
    torch.testing.assert_close(net[0].weight.double(), dense.weight, rtol=0, atol=torch.finfo(dtype).eps)


class Net(nn.Module):
    """Convolutions with and without a kernel and groups, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 12, 1)
        self.second = nn.Conv2d(12, 12, 3, groups=2, padding=1)
        self.third = nn.Conv2d(12, 10, 3, stride=2)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        for conv in (self.first, self.second, self.third):
            x = torch.tanh(conv(x))
        return self.head(x.mean((2, 3)))


def train(net, handle, steps, optimizer=None, interval=2):
    optimizer = optimizer or optim.SGD([each for each in net.parameters() if each.requires_grad], 0.05)
    for step in steps:
        x = torch.randn(4, 8, 7, 7, generator=torch.Generator().manual_seed(step)).to(net.head.weight.dtype)
        optimizer.zero_grad()
        net(x).float().square().sum().sqrt().backward()
        optimizer.step()
        if (step + 1) % interval == 0:
            handle.move()


def opened(net, **settings):
    own = {"basis": "gradient", "also_train": "head", "targets": ["first", "second", "third"]}
    own |= {"slice_dtype": "float32"} if net.head.weight.dtype in HALF else {}
    return slice_model(net, 2, **own | settings)


@pytest.mark.parametrize("dtype", [torch.float64, *HALF], ids=str)
def test_a_resumed_run_equals_the_uninterrupted_run(dtype):
    torch.manual_seed(0)
    net = Net().to(dtype)
    twin = copy.deepcopy(net)
    handle, again = opened(net), opened(twin)
    train(net, handle, range(5))
    saved = copy.deepcopy((net.state_dict(), handle.state_dict()))
    twin.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(net, handle, range(5, 9))
    train(twin, again, range(5, 9))
    for each in (handle, again):
        each.close()
    assert_same(net, twin)


@pytest.mark.parametrize("copier", COPIERS)
def test_copies_continue_like_the_original(copier):
    net = Net()
    handle = opened(net)
    train(net, handle, range(3))
    twin = copied(net, copier)
    for each in (net, twin):
        train(each, handle, range(3, 6), interval=100)
    assert_same(net, twin)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_compiled_network_learns_the_same_and_is_not_compiled_again(dtype):
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch.manual_seed(0)
    net = Net().to(dtype)
    eager = copy.deepcopy(net)
    handles = [opened(each) for each in (net, eager)]
    for handle in handles:
        handle.write_manually()
    compiled = torch.compile(net, backend=counter)
    for step in range(4):
        for model, handle in zip((compiled, eager), handles, strict=True):
            train(model, handle, [step])
            handle.write()
        if step == 0:
            graphs = counter.frame_count
    assert counter.frame_count == graphs
    assert_close(net, eager, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
def test_the_base_with_the_file_is_the_trained_network_up_to_rounding(dtype, tmp_path):
    torch.manual_seed(0)
    base = Net().to(dtype)
    net = copy.deepcopy(base)
    handle = opened(net)
    train(net, handle, range(3))
    handle.save(tmp_path / "a.safetensors", base=base)
    handle.close()
    file, fresh = SliceFile.read(tmp_path / "a.safetensors"), copy.deepcopy(base)
    assert {each.parameter for each in file.directions} == {"first.weight", "second.weight", "third.weight"}
    applied = apply_slices(fresh, file)
    assert_close(fresh, net, dtype)
    assert not torch.equal(fresh.third.weight, base.third.weight)
    applied.remove()
    assert_same(fresh, base)
    apply_slices(fresh, file)
    take_out(fresh, file)
    assert_same(fresh, base)
    read_as_documented(fresh, tmp_path / "a.safetensors")
    assert_close(fresh, net, dtype)


def assert_close(ours, theirs, dtype):
    """Parameters differ by at most four roundings."""
    for (name, own), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        error = (own.double() - expected.double()).norm()
        assert error <= 4 * torch.finfo(dtype).eps * expected.double().norm(), name


@pytest.mark.parametrize("basis", ["random", "gradient"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_base_and_adapter_compute_what_was_trained(basis, dtype, tmp_path):
    """Each direction counts once for each entry of the kernel."""
    base, given, own = adapted(["first", "third"], dtype)
    net = trained(base, given, tmp_path / "a.safetensors", steps=4, basis=basis, rank=1, **own)
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert export.ranks == {"first": 2, "third": 10}  # 2 directions times 9, and at most the outputs
    check(net, base, given, tmp_path / "adapter", TOLERANCE[dtype])


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")  # peft cannot merge it
def test_groups_have_factors_of_their_own(tmp_path):
    base, given, own = adapted(["second"], torch.float64)
    net = trained(base, given, tmp_path / "a.safetensors", basis="random", interval=0, **own)
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert export.ranks == {"second": 2 * 6}  # at most the outputs of a group
    adapter = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert error(outputs(adapter, given), outputs(net, given)) < 1e-12


def adapted(targets, dtype):
    x = torch.randn(2, 8, 7, 7, generator=torch.Generator().manual_seed(1))
    return made(lambda: (Net(), {"x": x}, {"also_train": "head", "targets": targets}), dtype)
