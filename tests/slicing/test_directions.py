"""Slices along directions of the input, against dense gradients, singular value decompositions and plain loops."""

import copy
import warnings

import pytest
import torch
import torch._dynamo.testing
from helpers.copying import COPIERS, copied
from helpers.plain_loop import (
    HIDDEN,
    INPUTS,
    assert_same_weights,
    batch,
    loss,
    network,
    slice_trunk,
    train,
    trainable,
)
from torch import nn, optim
from transformers.pytorch_utils import Conv1D

from slicefine_pl.slicing import slice_model
from slicefine_pl.slicing.distributed.saved_activations import count_activations

I, O, R = INPUTS, HIDDEN, 3
BASES = ["random", "gradient", "pca"]


def open_slices(net, basis="random", **settings):
    return slice_trunk(net, basis=basis, **settings)


def conv1d() -> nn.Module:
    layer = Conv1D(O, I)
    nn.init.normal_(layer.weight)
    return layer


LAYERS = {
    "linear": (lambda: nn.Linear(I, O), "^0$"),
    "Conv1D": (conv1d, "^0$"),
    "fused attention": (lambda: nn.MultiheadAttention(I, 2), "in_proj"),
    "attention": (lambda: nn.MultiheadAttention(I, 2, kdim=I, vdim=I + 2), "proj_weight"),
}


def outputs(layer, x):
    if not isinstance(layer, nn.MultiheadAttention):
        return layer(x)
    return layer(x, x, torch.cat([x, x], -1)[..., : layer.vdim])[0]


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_is_that_of_the_dense_weight_along_the_directions(name):
    make, targets = LAYERS[name]
    torch.manual_seed(1)
    net = nn.ModuleList([make()]).double()
    dense, x = copy.deepcopy(net), torch.randn(5, 7, I, dtype=torch.float64)
    outputs(dense[0], x).square().sum().backward()
    handle = slice_model(net, R, targets=targets, also_train=[], basis="random")
    outputs(net[0], x).square().sum().backward()
    slices = {id(slice_.trainable): slice_ for slice_ in net[0].slicefine_slices()}
    for view in handle:
        layout = slices[id(view.parameter)].layout
        gradient = layout.view(dense[0].get_parameter(layout.parameter).grad)
        torch.testing.assert_close(view.parameter.grad, view.directions.t() @ gradient.t(), rtol=1e-9, atol=1e-12)


def test_training_equals_a_plain_loop_with_a_matrix_beside_each_weight():
    """AdamW with weight decay and a move; the gradient of A is without the scale."""
    net, plain = network(), network()
    handle = open_slices(net)
    optimizer = optim.AdamW(trainable(net), 1e-3, weight_decay=0.1)
    weights = {name: plain.get_parameter(f"{name}.weight").detach().clone() for name in ("0", "2")}
    whole = optim.AdamW(plain[4].parameters(), 1e-3, weight_decay=0.1)
    for visit in range(2):
        directions = {view.name: view.directions.clone() for view in handle}
        scales = {view.name: view.scale for view in handle}
        assert scales == {name: min(weight.shape) / R for name, weight in weights.items()}
        added = {
            name: torch.zeros(R, len(weight), dtype=torch.float64, requires_grad=True)
            for name, weight in weights.items()
        }
        reference = optim.AdamW(added.values(), 1e-3, weight_decay=0.1)
        for step in range(3 * visit, 3 * visit + 3):
            train(net, optimizer, [step])
            values = {
                f"{name}.weight": weights[name]
                + (scales[name] * each.detach() + (each - each.detach())).t() @ directions[name].t()
                for name, each in added.items()
            }
            x, y = batch(step)
            nn.functional.cross_entropy(torch.func.functional_call(plain, values, (x,)), y).backward()
            for each in (reference, whole):
                each.step()
                each.zero_grad()
        for name, each in added.items():
            weights[name] += scales[name] * each.detach().t() @ directions[name].t()
        for moved in handle.move():
            optimizer.state.pop(moved.parameter)
    handle.close()
    for name, weight in weights.items():
        torch.testing.assert_close(net.get_parameter(f"{name}.weight").detach(), weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(net[4].weight, plain[4].weight, rtol=1e-9, atol=1e-12)


def test_as_many_directions_as_inputs_train_like_full_fine_tuning():
    """Under SGD, which does not depend on the basis."""
    net, dense = network(), network()
    for name, parameter in dense.named_parameters():
        parameter.requires_grad_(name in ("0.weight", "4.weight", "4.bias"))
    handle = open_slices(net, rank=I, targets="^0$")
    for model in (net, dense):
        train(model, optim.SGD(trainable(model), 0.1, momentum=0.9), range(12))
    handle.close()
    for ours, theirs in zip(net.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("basis", ["gradient", "pca"])
def test_directions_are_those_of_a_singular_value_decomposition(basis):
    """Inputs lie in a space of R dimensions, so that R directions are unique as a space: that of the summed matrix."""
    net = network()
    space = torch.linalg.qr(torch.randn(I, R, dtype=torch.float64)).Q
    dense = copy.deepcopy(net)
    [view] = handle = open_slices(net, basis, targets="^0$")
    inputs, gradients = [], []

    def keep(module, args, out):
        out.register_hook(lambda gradient: gradients.append(gradient) or None)

    dense[0].register_forward_hook(keep)
    for step in range(4):
        x, y = batch(step)
        x = x @ space @ space.t()
        inputs.append(x)
        for model in (net, dense):
            nn.functional.cross_entropy(model(x), y).backward()
    summed = sum(x.t() @ (g if basis == "gradient" else x) for x, g in zip(inputs, gradients, strict=True))
    leading = torch.linalg.svd(summed).U[:, :R]
    [view] = handle.move()
    torch.testing.assert_close(view.directions @ view.directions.t(), leading @ leading.t(), rtol=1e-4, atol=1e-5)
    assert view.scale == pytest.approx(
        float(inputs[-1].abs().sum() / (inputs[-1] @ view.directions).abs().sum()), rel=1e-5
    )


@pytest.mark.parametrize("outputs", [4, 16, 40])
def test_measured_factors_count_the_smaller_size_of_the_matrix(outputs):
    """As those of columns do."""
    net = nn.Sequential(nn.Linear(16, outputs)).double()
    [view] = handle = slice_model(net, 2, targets=".", also_train=[], basis="gradient")
    x = torch.randn(12, 16, dtype=torch.float64)
    net(x).square().sum().backward()
    [view] = handle.move()
    measured = float(x.abs().sum() / (x @ view.directions).abs().sum())
    assert view.scale == pytest.approx(min(1, outputs / 16) * measured, rel=1e-5)


def test_a_sketch_finds_most_of_a_gradient_with_a_slow_decay():
    """At least three quarters of what the best directions catch; random ones catch 8 / 60 of the whole."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(60, 40, bias=False)).double()
    x = torch.randn(64, 60, dtype=torch.float64) * torch.linspace(1, 0, 60, dtype=torch.float64) ** 2
    target = torch.randn(64, 40, dtype=torch.float64)
    gradient = torch.autograd.grad((net(x) - target).square().sum(), net[0].weight)[0]
    handle = slice_model(net, 8, targets=".", also_train=[], basis="gradient")
    (net(x) - target).square().sum().backward()
    [view] = handle.move()
    best = torch.linalg.svdvals(gradient)[:8].square().sum()
    assert (gradient @ view.directions).square().sum() > 0.75 * best


@pytest.mark.parametrize("basis", BASES)
def test_a_move_changes_no_output_and_closing_leaves_the_dense_network(basis):
    net = network()
    untouched = {name: value.clone() for name, value in net.state_dict().items() if name in ("0.bias", "2.bias")}
    handle = open_slices(net, basis)
    train(net, optim.SGD(trainable(net), 0.5), range(5))
    before = loss(net, 0).item()
    for _ in range(3):
        train(net, optim.SGD(trainable(net), 0.0), range(2))  # new batches for the sketch
        handle.move()
        assert loss(net, 0).item() == before
    handle.close()
    assert type(net[0]) is nn.Linear
    assert loss(net, 0).item() == before
    assert all(torch.equal(net.state_dict()[name], value) for name, value in untouched.items())


def test_only_components_along_the_directions_are_saved():
    net, tokens = nn.Sequential(nn.Linear(64, 8)), 50
    slice_model(net, 4, targets="0", also_train=[], basis="random")
    x = torch.randn(tokens, 64, requires_grad=True)
    with count_activations() as activations:
        net(x)
    assert activations.bytes == tokens * 4 * 4 + 64 * 4 * 4  # x P, and P itself


@pytest.mark.parametrize("settings", [{"basis": "gradient"}, {"basis": "pca"}, {"order": "importance"}], ids=str)
def test_a_sample_of_tokens_does_not_keep_the_whole_input(settings):
    net, tokens = nn.Sequential(nn.Linear(64, 8)), 10_000
    slice_model(net, 4, targets="0", also_train=[], **settings)
    x = torch.randn(tokens, 64, requires_grad=True)
    with count_activations() as activations:
        net(x)
    assert activations.bytes < 0.2 * x.nbytes


@pytest.mark.parametrize("settings", [{"basis": "gradient"}, {"basis": "pca"}, {"order": "importance"}], ids=str)
@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 8), lambda: nn.Conv1d(64, 8, 1)], ids=["linear", "convolution"])
def test_slices_that_stay_save_and_add_up_nothing_for_the_next_move(settings, make):
    net = nn.Sequential(make())
    handle = slice_model(net, 4, targets="0", also_train=[], **settings)
    x = torch.randn(50, 64, 1) if isinstance(net[0], nn.Conv1d) else torch.randn(50, 64)

    def step():
        with count_activations() as activations:
            y = net(x.requires_grad_())
        y.square().sum().backward()
        return activations.bytes

    saved = step()
    handle.move()
    handle.stay()
    assert step() < saved
    assert not any(view.score.any() for view in net[0].slicefine_slices())
    handle.move()
    assert step() == saved
    assert all(view.score.any() for view in net[0].slicefine_slices())


@pytest.mark.parametrize("shape", [(0, I), (3, 0, I)])
def test_an_expert_that_sees_no_token_trains_nothing(shape):
    net = nn.Sequential(nn.Linear(I, O))
    [view] = slice_model(net, R, targets="0", also_train=[], basis="gradient")
    y = net(torch.randn(shape))
    y.sum().backward()
    assert y.shape == (*shape[:-1], O)
    assert not view.parameter.grad.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("settings", [{"basis": "gradient"}, {"order": "importance"}], ids=str)
def test_a_move_after_staying_takes_random_places_also_in_a_resumed_run(settings):
    net = network()
    handle = slice_trunk(net, **settings)
    loss(net, 0).backward()
    handle.move()
    handle.stay()
    loss(net, 1).backward()
    again = slice_trunk(network(), **settings)
    again.load_state_dict(copy.deepcopy(handle.state_dict()))
    for each in (handle, again):
        before = [copy.deepcopy((view.indices, view.directions)) for view in each]
        each.move()
        for view, (indices, directions) in zip(each, before, strict=True):
            assert not torch.equal(view.indices, indices) or not torch.equal(view.directions, directions)
    for ours, theirs in zip(handle, again, strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        assert ours.directions is None or torch.equal(ours.directions, theirs.directions)


@pytest.mark.parametrize("basis", BASES)
def test_a_resumed_run_equals_the_uninterrupted_run(basis):
    net = network()
    handle = open_slices(net, basis)
    optimizer = optim.AdamW(trainable(net), 1e-2)
    train(net, optimizer, range(5), handle, 2)
    saved = copy.deepcopy((net.state_dict(), handle.state_dict(), optimizer.state_dict()))
    twin = network()
    again = open_slices(twin, basis)
    other = optim.AdamW(trainable(twin), 1e-2)
    twin.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    train(net, optimizer, range(5, 11), handle, 2)
    train(twin, other, range(5, 11), again, 2)
    assert_same_weights(net, twin)
    with pytest.raises(ValueError, match="basis differ"):
        open_slices(network(), "standard").load_state_dict(saved[1])
    del saved[1]["basis"]
    with pytest.raises(ValueError, match=r"lack 'basis', because an earlier version"):
        open_slices(network(), basis).load_state_dict(saved[1])


@pytest.mark.parametrize("copier", COPIERS)
def test_copies_continue_like_the_original(copier):
    net = network()
    open_slices(net, "gradient")
    train(net, optim.AdamW(trainable(net), 1e-3), range(3))
    twin = copied(net, copier)
    for each in (net, twin):
        train(each, optim.AdamW(trainable(each), 1e-3), range(3))
    assert_same_weights(net, twin)


def test_loading_weights_while_slices_are_open_takes_them_exactly():
    net, other = network(), network()
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    handle = open_slices(net)
    train(net, optim.AdamW(trainable(net), 1e-3), range(3))
    net.load_state_dict(other.state_dict())
    assert not any(view.parameter.count_nonzero() for view in handle)  # A belonged to the old weights
    handle.close()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("order", ["handle first", "network first"])
def test_the_order_of_saving_does_not_matter(order):
    """In a plain loop the last change is written when the network is saved."""
    net, twin = network(), network()
    handle = open_slices(net)
    train(net, optim.AdamW(trainable(net), 1e-2), range(3))
    if order == "handle first":
        state = copy.deepcopy(handle.state_dict())
    weights = copy.deepcopy(net.state_dict())
    if order == "network first":
        state = copy.deepcopy(handle.state_dict())
    again = open_slices(twin)
    twin.load_state_dict(weights)
    again.load_state_dict(state)
    for each in (handle, again):
        each.close()
    assert_same_weights(net, twin)


def test_nothing_counts_before_it_was_trained():
    net = network()
    handle = open_slices(net)
    assert handle.counts().coverage == 0.0
    train(net, optim.SGD(trainable(net), 0.1), range(1))
    handle.write()
    assert handle.counts().coverage == 1.0


def test_a_network_cast_before_anything_changed_can_be_closed():
    net = network()
    handle = open_slices(net)
    net.bfloat16()
    handle.close()
    assert type(net[0]) is nn.Linear


def test_a_move_does_not_compile_again():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    net, eager = network(), network()
    handles = [open_slices(each, "gradient") for each in (net, eager)]
    for handle in handles:
        handle.write_manually()
    compiled = torch.compile(net, backend=counter)
    for step in range(5):
        x, y = batch(step)
        for model, handle in zip((compiled, eager), handles, strict=True):
            nn.functional.cross_entropy(model(x), y).backward()
            optim.SGD(trainable(model), 0.1).step()
            handle.write()
            model.zero_grad()
            if step % 2:
                handle.move()
            if step == 3:
                handle.stay()
        if step == 0:
            graphs = counter.frame_count
    assert counter.frame_count == graphs
    for ours, theirs in zip(net.state_dict().values(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"basis": "fourier"}, "basis='fourier' is unknown; choose one of 'standard', 'random', 'gradient', 'pca'"),
        ({"axis": "row"}, "axis='row' is for single columns or rows.*choose axis='column', or basis='standard'"),
        ({"axis": "alternate"}, "axis='alternate'"),
        ({"order": "sweep"}, "order='sweep'"),
        ({"rank": 13}, "10 columns are fewer than rank=13"),
        ({"targets": "words"}, "directions need a linear map or convolution whose inputs are seen"),
        ({"targets": "conv"}, "directions need a linear map"),
        ({"backend": "mask"}, "directions need a linear map"),
    ],
)
def test_what_directions_cannot_do_is_refused(settings, message):
    net = nn.ModuleDict({
        "0": nn.Linear(I, O), "words": nn.Embedding(50, 20), "conv": nn.ConvTranspose2d(16, 16, 3),
    })  # fmt: skip
    with pytest.raises(ValueError, match=message):
        slice_model(net, **{"rank": R, "targets": "^0$", "also_train": [], "basis": "random", **settings})


@pytest.mark.parametrize("basis", ["gradient", "pca"])
def test_too_few_directions_are_completed_by_random_ones_with_one_warning(basis):
    net = network()
    handle = open_slices(net, basis, targets="^0$")
    with pytest.warns(UserWarning, match=rf"showed 0 directions since the last move, fewer than rank={R}: the"):
        [view] = handle.move()
    assert view.scale == min(I, O) / R
    space = torch.randn(I, 1, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(2):
            net(batch(step)[0] @ space @ space.t()).square().sum().backward()
        [view] = handle.move()
    torch.testing.assert_close(view.directions.t() @ view.directions, torch.eye(R, dtype=torch.float64))
    along = (view.directions.t() @ space).norm() / space.norm()
    assert along == pytest.approx(1, abs=1e-5)


@pytest.mark.filterwarnings("error")
def test_a_gradient_has_no_more_directions_than_outputs():
    net = nn.Sequential(nn.Linear(16, 3))
    handle = slice_model(net, 8, targets="0", also_train=[], basis="gradient")
    net(torch.randn(20, 16)).square().sum().backward()
    [view] = handle.move()
    torch.testing.assert_close(view.directions.t() @ view.directions, torch.eye(8))


def test_large_features_do_not_hide_the_others():
    net = nn.Sequential(nn.Linear(64, 32)).double()
    [view] = handle = slice_model(net, 8, targets=".", also_train=[], basis="pca")
    x = torch.randn(256, 64, dtype=torch.float64)
    x[:, 5] *= 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(x).square().sum().backward()
        [view] = handle.move()
    assert view.directions[5].norm() == pytest.approx(1, abs=1e-3)


def test_a_weight_that_is_read_without_its_layer_trains():
    net = nn.Sequential(nn.Linear(I, O)).double()
    [view] = handle = slice_model(net, R, targets=".", also_train=[], basis="gradient")
    x = torch.randn(20, I, dtype=torch.float64)
    nn.functional.linear(x, net[0].weight).square().sum().backward()
    [view] = handle.move()
    assert view.scale == min(I, O) / R
    assert handle.counts().coverage == 1.0


def test_slices_along_directions_have_no_lines():
    with pytest.raises(ValueError, match=r"The slice of 0 lies along directions.*so it has no lines"):
        next(iter(open_slices(network()))).lines()
