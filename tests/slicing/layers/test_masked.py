"""Masked layers, and weights that are read without calling their layer: the slice gets its part of the gradient."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from slicefine_pl.slicing import slice_model

R = 2


class Positions(nn.Module):
    """Raw parameters of two and of three dimensions, the latter with a batch dimension as in vision transformers."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 7))
        self.embedding = nn.Parameter(torch.randn(1, 4, 7))

    def forward(self, x):
        return x @ self.table + self.embedding[:, : x.shape[1]]


class Scaled(nn.Linear):
    """A linear layer that overrides forward."""

    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(), self.bias)


def hooked(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but many networks use them
        return getattr(nn.utils, name)(nn.Linear(5, 4))


def dense_modules() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Name of the sliced parameter, its module, and an input."""
    return {
        "embedding": (nn.Embedding(6, 5, padding_idx=0), torch.randint(6, (3, 4))),
        "sparse embedding": (nn.Embedding(6, 5, sparse=True), torch.randint(6, (3, 4))),
        "transposed convolution": (nn.ConvTranspose2d(4, 6, 2, stride=2), torch.randn(2, 4, 5, 5)),
        "own forward": (Scaled(5, 4), torch.randn(3, 5)),
        "raw table": (Positions(), torch.randn(2, 3, 5)),
        "recurrent": (nn.GRU(5, 4), torch.randn(3, 2, 5)),
        "LSTM": (nn.LSTM(5, 4, 2, bidirectional=True), torch.randn(3, 2, 5)),
        "RNN": (nn.RNN(5, 4), torch.randn(3, 2, 5)),
        "cell": (nn.LSTMCell(5, 4), torch.randn(3, 5)),
        "weight_norm": (parametrizations.weight_norm(nn.Linear(5, 4), dim=None), torch.randn(3, 5)),
        "weight_norm of a kernel": (parametrizations.weight_norm(nn.Conv1d(4, 3, 2), dim=None), torch.randn(2, 4, 6)),
        "spectral_norm": (parametrizations.spectral_norm(nn.Linear(5, 4)), torch.randn(3, 5)),
        "weight_norm, as a hook": (hooked("weight_norm"), torch.randn(3, 5)),
        "spectral_norm, as a hook": (hooked("spectral_norm"), torch.randn(3, 5)),
        "pruned": (prune.l1_unstructured(nn.Linear(5, 4), "weight", 0.5), torch.randn(3, 5)),
        "bilinear": (nn.Bilinear(3, 3, 4), torch.randn(2, 3)),
    }


MATRICES = {"weight_norm, as a hook": "weight_v"}  # its vector of lengths is too narrow


def run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.Bilinear):
        return module(x, x)
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


def block(parameter: torch.Tensor, view) -> torch.Tensor:
    """The lines of a slice in a dense tensor, without a leading dimension of size 1."""
    matrix = parameter[0] if parameter.ndim == 3 and len(parameter) == 1 else parameter
    lines = matrix.transpose(0, 1) if view.axis == "column" else matrix
    return lines[view.indices].flatten(1)


@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize("name", dense_modules())
def test_the_slice_of_any_parameter_gets_its_part_of_the_dense_gradient(name, axis):
    module, x = dense_modules()[name]
    dense, net = dense_modules()[name][0], nn.ModuleDict({"part": module})
    dense.load_state_dict(module.state_dict())
    classes = [type(each) for each in module.modules()]
    handle = slice_model(net, R, axis, targets=MATRICES.get(name, "part"), also_train=[])
    assert list(net.state_dict()) == [f"part.{key}" for key in dense.state_dict()]
    run(net["part"], x).square().sum().backward()
    run(dense, x).square().sum().backward()
    for view in handle:
        parameter = view.name.removeprefix("part").removeprefix(".") or "weight"
        gradient = dense.get_parameter(parameter).grad
        torch.testing.assert_close(view.parameter.grad, block(gradient.to_dense(), view))
    assert {row.backend for row in handle.summary() if row.shape} == {"mask"}
    handle.close()
    assert [type(each) for each in net["part"].modules()] == classes
    torch.testing.assert_close(run(net["part"].eval(), x), run(dense.eval(), x))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_entries_outside_the_visited_lines_stay_bit_equal(optimizer):
    """Under momentum and weight decay, through moves."""
    net = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(12, 3))
    before = net[0].weight.detach().clone()
    handle = slice_model(net, R, "row", targets="^0", also_train="^2")
    settings = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    optim = optimizer([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1, **settings)
    visited = torch.zeros(9, dtype=torch.bool)
    for step in range(6):
        (view,) = handle
        visited[view.indices] = True
        optim.zero_grad()
        net(torch.randint(9, (16, 2))).square().sum().backward()
        optim.step()
        if step % 2:
            handle.move()
    handle.close()
    assert torch.equal(net[0].weight[~visited], before[~visited])
    assert (net[0].weight[visited] != before[visited]).all()


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("closed", [True, False])
def test_a_recurrent_layer_that_was_trained_can_be_copied(closed, copier):
    """It keeps a list of the weights that it read last, which cannot be copied."""
    net, x = nn.ModuleDict({"part": nn.LSTM(5, 4)}), torch.randn(3, 2, 5)
    handle = slice_model(net, R, targets="part", also_train=[])
    run(net["part"], x).square().sum().backward()
    if closed:
        handle.close()
        assert all(isinstance(weight, nn.Parameter) for weight in net["part"]._flat_weights)
    torch.testing.assert_close(run(copier(net)["part"], x), run(net["part"], x))


class Reader(nn.Module):
    """Reads the weight of a layer, as torchvision's Swin does, and calls the layer as well."""

    def __init__(self, calls: bool):
        super().__init__()
        self.map = nn.Linear(6, 6)
        self.calls = calls

    def forward(self, x):
        y = F.linear(x, self.map.weight, self.map.bias)
        return self.map(torch.tanh(y)) if self.calls else y


@pytest.mark.parametrize("backend", ["auto", "mask"])
@pytest.mark.parametrize("calls", [True, False])
def test_a_weight_that_is_read_and_called_gets_both_gradients(calls, backend):
    net, x = Reader(calls).double(), torch.randn(4, 6, dtype=torch.float64)
    dense = copy.deepcopy(net)
    handle = slice_model(net, R, targets="map", also_train=[], backend=backend)
    (view,) = handle
    assert [row.backend for row in handle.summary() if row.name == "map"] == [
        "mask" if backend == "mask" else "compact"
    ]
    for model in (net, dense):
        model(x).square().sum().backward()
    torch.testing.assert_close(view.parameter.grad, block(dense.map.weight.grad, view))
    assert [row.backend for row in handle.summary() if row.name == "map"] == ["mask"]


def test_reading_sees_the_values_after_the_optimizer_step():
    net, x = Reader(calls=False), torch.randn(4, 6)
    handle = slice_model(net, R, targets="map", also_train=[], lr_scale=1)
    (view,) = handle
    with torch.no_grad():
        view.parameter.zero_()
    torch.testing.assert_close(net(x), F.linear(x, net.map.weight.detach(), net.map.bias))
    assert torch.count_nonzero(net.map.weight[:, view.indices]) == 0
    with torch.no_grad():
        view.parameter.fill_(2.0)
        assert isinstance(net.map.weight, nn.Parameter)
        assert (net.map.weight[:, view.indices] == 2).all()


@pytest.mark.parametrize("axis", ["column", "row"])
def test_scores_of_a_masked_parameter_are_the_norms_of_its_dense_gradient(axis):
    dense = nn.ConvTranspose2d(6, 8, 3)
    net = nn.ModuleDict({"part": copy.deepcopy(dense)})
    slice_model(net, R, targets="part", also_train=[])
    net["part"].slicefine.start_score(axis)
    x = torch.randn(2, 6, 5, 5)
    for model in (net["part"], dense):
        model(x).square().sum().backward()
    lines = dense.weight.grad.transpose(0, 1) if axis == "column" else dense.weight.grad
    torch.testing.assert_close(net["part"].slicefine.score, lines.flatten(1).norm(dim=1))


@pytest.mark.parametrize("backend", ["auto", "mask"])
def test_readers_compile_to_one_graph(backend):
    torch.compiler.reset()
    net, x = Reader(calls=True), torch.randn(4, 6)
    handle = slice_model(net, R, targets="map", also_train=[], backend=backend)
    (view,) = handle
    torch.compile(net, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    compiled, view.parameter.grad = view.parameter.grad, None
    net(x).square().sum().backward()
    torch.testing.assert_close(compiled, view.parameter.grad)


def test_an_embedding_that_rescales_itself_is_refused():
    net = nn.ModuleDict({"part": nn.Embedding(6, 5, max_norm=1.0)})
    with pytest.raises(ValueError, match="max_norm rescales the weight in the forward pass"):
        slice_model(net, R, targets="part", also_train=[])


def test_a_gradient_penalty_goes_through_the_masked_backend():
    dense = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    net, x = copy.deepcopy(dense), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    handle = slice_model(net, R, targets=["^0", "^2"], also_train=[], backend="mask")
    for model in (net, dense):
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()
    for view in handle:
        torch.testing.assert_close(view.parameter.grad, block(dense.get_submodule(view.name).weight.grad, view))


def test_changing_a_slice_between_a_read_and_backward_is_an_error():
    net = Reader(calls=False)
    (view,) = slice_model(net, R, targets="map", also_train=[])
    loss = net(torch.randn(4, 6)).sum()
    with torch.no_grad():
        view.parameter.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_attributes_of_the_network_are_not_hidden():
    """Names of a module's own attributes do not collide with those of a sliced layer."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix, self.stored = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(6, 5))
            self.slice, self.kind, self.blocks = nn.Linear(6, 6), "own", nn.Linear(6, 6)

        def write(self, x):
            return self.blocks(self.slice(x)) @ (self.matrix + self.stored)

        forward = write

    net, x = Named(), torch.randn(4, 6)
    dense = copy.deepcopy(net)
    handle = slice_model(net, R, targets=".", also_train=[])
    assert list(net.state_dict()) == list(dense.state_dict())
    for model in (net, dense):
        model(x).square().sum().backward()
    for view in handle:
        owner = dense.get_submodule(view.name).weight if view.name in ("slice", "blocks") else getattr(dense, view.name)
        torch.testing.assert_close(view.parameter.grad, block(owner.grad, view))
    copy.deepcopy(net), handle.summary()
    handle.close()
    assert list(dict(net.named_modules())) == list(dict(dense.named_modules()))
