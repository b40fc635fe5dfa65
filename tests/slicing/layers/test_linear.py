"""Sliced linear layers against dense linear algebra."""

import copy
import shutil

import pytest
import torch
from helpers.copying import COPIERS, copied
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from slicefine_pl.slicing.distributed.shards import LocalShard
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.linear import SCORE_TOKENS, sliced_linear
from slicefine_pl.slicing.layers.opening import add_slice, close_layer, open_layer
from slicefine_pl.slicing.layers.registry import compact_class
from slicefine_pl.slicing.layout import MatrixLayout
from slicefine_pl.slicing.slice import Slice

O, I, R = 5, 7, 2  # odd and unequal, so that a swapped axis cannot pass
COLUMNS, ROWS = [6, 0], [1, 4]  # the columns wrap


def dense_layer(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    layer = Conv1D(O, I) if kind == "Conv1D" else nn.Linear(I, O)
    nn.init.normal_(layer.bias)
    return layer.to(dtype)


def matrix_of(layer: nn.Module) -> torch.Tensor:
    """The weight as (O, I), however the layer stores it."""
    return layer.weight.t() if isinstance(layer, Conv1D) else layer.weight


def grad_of(layer: nn.Module) -> torch.Tensor:
    return layer.weight.grad.t() if isinstance(layer, Conv1D) else layer.weight.grad


def open_in_place(layer: nn.Module, axis: str, length: int, dtype: torch.dtype | None = None) -> SlicedLayer:
    kind = compact_class(layer)
    (block,) = kind.slicefine_layouts(layer)
    opened = open_layer(layer, kind, [block])
    slice_ = add_slice(opened, block, R, length, dtype)
    slice_.move_to(axis, COLUMNS if axis == "column" else ROWS, opened.slicefine_shard(slice_))
    return opened


def sliced(dense: nn.Module, axis: str) -> SlicedLayer:
    return open_in_place(copy.deepcopy(dense), axis, O if axis == "column" else I)


def block(matrix: torch.Tensor, axis: str) -> torch.Tensor:
    """The lines of the slice in an (O, I) matrix, one per row."""
    return matrix[:, COLUMNS].t() if axis == "column" else matrix[ROWS]


@pytest.fixture(params=["Linear", "Conv1D"])
def dense(request):
    return dense_layer(request.param)


@pytest.mark.parametrize("shape", [(3, I), (2, 3, I)])
def test_an_activation_may_overwrite_the_output(dense, shape):
    """``nn.ReLU(inplace=True)`` after a linear layer is common; torch refuses it for views made in custom functions."""
    layer = sliced(dense, "column")
    x = torch.randn(shape, dtype=torch.float64)
    torch.relu_(layer(x)).square().sum().backward()
    torch.relu_(dense(x)).square().sum().backward()
    torch.testing.assert_close(layer.slicefine.trainable.grad, block(grad_of(dense), "column"))


@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize("shape", [(I,), (3, I), (2, 3, I), (0, I)])
def test_the_slice_gets_exactly_the_dense_gradient(dense, axis, shape):
    """Slice, bias and input get the gradient that they get in the dense layer."""
    layer = sliced(dense, axis)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x_dense = x.detach().clone().requires_grad_()
    layer(x).square().sum().backward()
    dense(x_dense).square().sum().backward()
    torch.testing.assert_close(layer.slicefine.trainable.grad, block(grad_of(dense), axis))
    torch.testing.assert_close(x.grad, x_dense.grad)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    assert layer.slicefine_stored("weight").grad is None


@pytest.mark.parametrize("axis", ["column", "row"])
def test_gradcheck_against_a_joined_weight(axis):
    """The layer equals F.linear on a weight whose lines were replaced by the slice; numerically, in float64."""
    frozen = torch.randn(O, I, dtype=torch.float64)
    x = torch.randn(3, I, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(O, dtype=torch.float64, requires_grad=True)
    trainable = torch.randn(R, O if axis == "column" else I, dtype=torch.float64, requires_grad=True)
    slice_ = Slice(MatrixLayout(), *trainable.shape, frozen, None)
    slice_.move_to(axis, COLUMNS if axis == "column" else ROWS, LocalShard(frozen))
    del slice_._parameters["trainable"]  # gradcheck passes its own

    def joined(x, bias, trainable):
        weight = frozen.clone()
        slice_.trainable = trainable
        slice_.write(LocalShard(weight), trainable)
        return sliced_linear(x, weight, bias, slice_)

    assert torch.autograd.gradcheck(joined, (x, bias, trainable))


@pytest.mark.parametrize("axis", ["column", "row"])
def test_output_is_bit_equal_after_opening_and_follows_the_trained_values(dense, axis):
    layer, x = sliced(dense, axis), torch.randn(4, I, dtype=torch.float64)
    assert torch.equal(layer(x), dense(x))
    with torch.no_grad():
        layer.slicefine.trainable += 1.0
        if axis == "column":
            matrix_of(dense)[:, COLUMNS] += 1.0
        else:
            matrix_of(dense)[ROWS] += 1.0
    assert torch.equal(layer(x), dense(x))


def test_a_padded_slice_trains_only_its_own_length():
    """Where rows and columns alternate, shorter lines are padded. The padding has no gradient and no effect."""
    layer = open_in_place(nn.Linear(I, O), "column", I)
    x = torch.randn(4, I)
    before = layer(x)
    layer(x).sum().backward()
    assert layer.slicefine.trainable.shape == (R, I)
    assert torch.count_nonzero(layer.slicefine.trainable.grad[:, O:]) == 0
    with torch.no_grad():
        layer.slicefine.trainable[:, O:] = 99.0
    assert torch.equal(layer(x), before)


def saved_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Sizes of the tensors that autograd saves, without parameters."""
    own = {parameter.data_ptr() for parameter in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        if tensor.data_ptr() not in own and tensor.dtype.is_floating_point:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(kept.values())


def test_a_column_slice_saves_only_its_columns_of_the_input():
    x = torch.randn(64, I, dtype=torch.float64, requires_grad=True)
    dense = dense_layer("Linear")
    assert saved_bytes(sliced(dense, "column"), x) == 64 * R * 8
    assert saved_bytes(sliced(dense, "row"), x) == 64 * I * 8


def test_two_passes_before_one_backward_add_up(dense):
    """Shared layers, contrastive losses and gradient checkpointing call a layer twice before backward."""
    layer = sliced(dense, "column")
    a, b = torch.randn(2, 3, I, dtype=torch.float64)
    (layer(a).square().sum() + layer(b).square().sum()).backward()
    (dense(a).square().sum() + dense(b).square().sum()).backward()
    torch.testing.assert_close(layer.slicefine.trainable.grad, block(grad_of(dense), "column"))


def test_changing_the_slice_between_forward_and_backward_is_an_error():
    layer = sliced(dense_layer("Linear"), "column")
    y = layer(torch.randn(2, I, dtype=torch.float64)).sum()
    with torch.no_grad():
        layer.slicefine.trainable += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("axis", ["column", "row"])
def test_autocast_computes_in_the_low_precision_and_trains_in_the_high(axis):
    layer = sliced(dense_layer("Linear", torch.float32), axis)
    dense = nn.Linear(I, O)
    dense.load_state_dict(layer.state_dict())
    x = torch.randn(64, I)
    for net in (layer, dense):
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
    assert layer.slicefine.trainable.grad.dtype == torch.float32
    torch.testing.assert_close(layer.slicefine.trainable.grad, block(dense.weight.grad, axis), rtol=2e-2, atol=2e-1)


def test_a_float32_slice_in_a_bfloat16_layer_keeps_updates_that_bfloat16_would_lose():
    layer = open_in_place(nn.Linear(I, O).to(torch.bfloat16), "column", O, torch.float32)
    with torch.no_grad():
        layer.slicefine.trainable.fill_(1.0)
        for _ in range(32):
            layer.slicefine.trainable += 2.0**-11  # an eighth of half a unit in the last place of bfloat16 at 1
    layer.slicefine_write()
    assert layer.slicefine_stored("weight")[0, COLUMNS[0]] == 1.0 + 2.0**-6
    assert (
        layer.to(torch.bfloat16).slicefine.trainable.dtype == torch.float32
    )  # as Lightning's bf16-true does after setup
    layer(torch.randn(3, I, dtype=torch.bfloat16)).sum().backward()
    assert layer.slicefine.trainable.grad.dtype == torch.float32


def test_second_derivatives_are_refused_rather_than_wrong():
    layer = sliced(dense_layer("Linear"), "column")
    x = torch.randn(2, I, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="open them with backend='mask'"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


def test_state_dict_is_the_dense_one_and_loads_both_ways(dense):
    layer = sliced(dense, "row")
    with torch.no_grad():
        layer.slicefine.trainable.zero_()
    plain = copy.deepcopy(dense)
    plain.load_state_dict(layer.state_dict(), strict=True)
    assert torch.count_nonzero(matrix_of(plain)[ROWS]) == 0
    layer.load_state_dict(dense.state_dict(), strict=True)
    torch.testing.assert_close(
        layer.slicefine.trainable.detach(), block(matrix_of(dense).detach(), "row"), rtol=0, atol=0
    )
    with pytest.raises(RuntimeError, match="bias"):
        layer.load_state_dict({"weight": dense.weight}, strict=True)


@pytest.mark.parametrize("copier", COPIERS)
def test_copies_are_sliced_layers_with_their_own_slice(dense, copier):
    layer = sliced(dense, "column")
    twin = copied(layer, copier)
    assert type(twin) is type(layer)
    with torch.no_grad():
        twin.slicefine.trainable += 1
    x = torch.randn(2, I, dtype=torch.float64)
    assert torch.equal(layer(x), dense(x))
    assert not torch.equal(twin(x), dense(x))


def test_closing_gives_back_the_same_object_in_its_original_class(dense):
    layer = copy.deepcopy(dense)
    original, names = type(layer), set(vars(layer))
    opened = open_in_place(layer, "column", O)
    assert opened is layer
    assert isinstance(opened, original)
    with torch.no_grad():
        opened.slicefine.trainable.zero_()
    close_layer(opened)
    assert type(layer) is original
    assert set(vars(layer)) == names
    assert list(layer.state_dict()) == list(dense.state_dict())
    assert torch.count_nonzero(matrix_of(layer)[:, COLUMNS]) == 0


def test_eval_writes_the_slice_to_the_weight():
    """torch's fast paths read the weight of a layer in eval mode without calling the layer."""
    layer = sliced(dense_layer("Linear"), "column")
    with torch.no_grad():
        layer.slicefine.trainable.zero_()
    assert torch.count_nonzero(layer.eval().weight[:, COLUMNS]) == 0


@pytest.mark.parametrize("axis", ["column", "row"])
def test_scores_are_the_norms_of_the_dense_gradient(axis):
    """With fewer tokens than the sample size, the score is exact. It adds up over backward passes."""
    layer, dense = sliced(dense_layer("Linear", torch.float32), "column"), nn.Linear(I, O)
    dense.load_state_dict(layer.state_dict())
    layer.slicefine.start_score(axis)
    x = torch.randn(SCORE_TOKENS // 2, I)
    for _ in range(2):
        layer(x).square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.slicefine.score, 2 * dense.weight.grad.norm(dim=0 if axis == "column" else 1))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_layers_keep_scores_and_gradients(backend):
    torch.compiler.reset()
    layer = sliced(dense_layer("Linear", torch.float32), "column")
    layer.slicefine.start_score("column")
    twin, x = copy.deepcopy(layer), torch.randn(4, I)
    torch.compile(layer, backend=backend, fullgraph=True)(x).square().sum().backward()
    twin(x).square().sum().backward()
    torch.testing.assert_close(layer.slicefine.trainable.grad, twin.slicefine.trainable.grad)
    torch.testing.assert_close(layer.slicefine.score, twin.slicefine.score)
    assert layer.slicefine.score.sum() > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("axis", ["column", "row"])
def test_inductor_leaves_the_trained_values_out_of_the_gradient(axis):
    """With torch 2.11, it once added them: it ignored the factor 0 with which the backward pass uses them."""
    torch.compiler.reset()
    layer = sliced(dense_layer("Linear", torch.float32), axis)
    layer.slicefine_writes_manually = True  # as the callback does
    twin, x = copy.deepcopy(layer), torch.randn(9, I)
    torch.compile(layer)(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert layer.slicefine.trainable.abs().min() > 0
    torch.testing.assert_close(layer.slicefine.trainable.grad, twin.slicefine.trainable.grad)


class Operations(TorchDispatchMode):
    """Names of the operations that torch runs inside the context."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_the_gradient_of_a_permuted_output_is_multiplied_as_one_matrix(dense):
    layer = sliced(dense, "column")
    x = torch.randn(3, 4, I, dtype=torch.float64, requires_grad=True)
    grad_y = torch.randn(4, O, 3, dtype=torch.float64).permute(2, 0, 1)  # as attention heads return it
    (expected,) = torch.autograd.grad(dense(x), x, grad_y)
    y = layer(x)
    with Operations() as done:
        (grad_x,) = torch.autograd.grad(y, x, grad_y)
    torch.testing.assert_close(grad_x, expected)
    assert "mm" in done.names
    assert "bmm" not in done.names


def test_with_manual_writes_a_forward_pass_writes_only_what_changed():
    layer = sliced(dense_layer("Linear"), "column")
    layer.slicefine_writes_manually = True
    x = torch.randn(3, I, dtype=torch.float64)
    layer.slicefine_write()
    with Operations() as unchanged:
        layer(x)
    with torch.no_grad():
        layer.slicefine_slice("weight").trainable.add_(1)
    with Operations() as changed:
        layer(x)
    assert "index_copy_" not in unchanged.names
    assert "index_copy_" in changed.names


def test_a_copy_does_not_inherit_the_version_of_its_slice():
    layer = sliced(dense_layer("Linear"), "column")
    layer.slicefine_writes_manually = True
    with torch.no_grad():
        layer.slicefine_slice("weight").trainable.add_(1)
    layer.slicefine_write()
    twin = copy.deepcopy(layer)
    slice_ = twin.slicefine_slice("weight")
    while slice_.trainable._version < layer.slicefine_slice("weight").synced_version:
        with torch.no_grad():
            slice_.trainable.add_(1)
    twin(torch.randn(3, I, dtype=torch.float64))
    torch.testing.assert_close(block(matrix_of(twin), "column"), slice_.trainable, rtol=0, atol=0)
