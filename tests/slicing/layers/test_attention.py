"""Sliced multi-head attention against torch's own."""

import copy

import pytest
import torch
from torch import nn

from slicefine_pl.slicing import slice_model
from slicefine_pl.slicing.layers.attention import SlicedMultiheadAttention

E, H, R, L, S, B = 12, 2, 3, 5, 7, 4
LETTERS = "qkv"

LAYERS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "other widths": {"kdim": 10, "vdim": 8},
    "no bias": {"bias": False},
    "learned and zero keys": {"add_bias_kv": True, "add_zero_attn": True},
    "dropout": {"dropout": 0.5},
}


def pair(settings: dict, axis: str = "column", backend: str = "auto"):
    """A dense attention layer, its sliced twin, and the handle."""
    dense = nn.MultiheadAttention(E, H, **settings).double()
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.3)
    net = nn.ModuleDict({"attention": copy.deepcopy(dense)})
    return (
        dense,
        net["attention"],
        slice_model(net, R, axis, targets="proj_weight|out_proj", also_train=[], backend=backend),
    )


def inputs(dense: nn.MultiheadAttention, batched: bool = True) -> list[torch.Tensor]:
    shapes = [(L, B, E), (S, B, dense.kdim), (S, B, dense.vdim)]
    if not batched:
        shapes = [(length, width) for length, _, width in shapes]
    elif dense.batch_first:
        shapes = [(batch, length, width) for length, batch, width in shapes]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def dense_block(dense: nn.MultiheadAttention, view) -> torch.Tensor:
    """The dense gradient of the lines of a slice."""
    name = view.name.removeprefix("attention.")
    if name.startswith("in_proj_weight"):
        place = LETTERS.index(name[-1])
        gradient = dense.in_proj_weight.grad[place * E : (place + 1) * E]
    else:
        gradient = dense.out_proj.weight.grad if name == "out_proj" else dense.get_parameter(name).grad
    return gradient[:, view.indices].t() if view.axis == "column" else gradient[view.indices]


def masks() -> dict[str, dict]:
    forbidden = torch.ones(L, S, dtype=torch.bool).triu(1)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1:, -2:] = True
    return {
        "none": {},
        "boolean": {"attn_mask": forbidden},
        "added": {"attn_mask": torch.randn(L, S, dtype=torch.float64)},
        "of every head": {"attn_mask": torch.randn(B * H, L, S, dtype=torch.float64)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": forbidden, "key_padding_mask": padding},
        "causal hint": {"attn_mask": forbidden, "is_causal": True},
        "causal hint and padding": {"attn_mask": forbidden, "is_causal": True, "key_padding_mask": padding},
    }


def compare(dense, layer, handle, batched=True, **arguments):
    """Same outputs, same weights, same gradients, as torch's class."""
    theirs = inputs(dense, batched)
    ours = [x.detach().clone().requires_grad_() for x in theirs]
    torch.manual_seed(3)
    expected, expected_weights = dense(*theirs, **arguments)
    torch.manual_seed(3)
    out, weights = layer(*ours, **arguments)
    torch.testing.assert_close(out, expected)
    assert (weights is None) == (expected_weights is None)
    if weights is not None:
        torch.testing.assert_close(weights, expected_weights)
    target = torch.randn_like(out)
    (out * target).sum().backward()
    (expected * target).sum().backward()
    for view in handle:
        torch.testing.assert_close(view.parameter.grad, dense_block(dense, view))
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_configuration_computes_and_learns_as_torch_does(name, axis, need_weights):
    dense, layer, handle = pair(LAYERS[name], axis)
    assert isinstance(layer, SlicedMultiheadAttention)
    assert len(handle) == 4
    assert list(layer.state_dict()) == list(dense.state_dict())
    compare(dense, layer, handle, need_weights=need_weights)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", masks())
def test_every_type_of_mask(mask, need_weights):
    compare(*pair({}), need_weights=need_weights, **masks()[mask])


@pytest.mark.parametrize("mask", ["none", "both"])
def test_masks_do_not_hide_appended_keys(mask):
    compare(*pair({"add_bias_kv": True, "add_zero_attn": True}), **masks()[mask])


def test_inputs_without_a_batch_and_weights_of_every_head():
    compare(*pair({}), batched=False)
    compare(*pair({}), average_attn_weights=False)


def test_a_causal_hint_without_a_mask_is_refused():
    _, layer, _ = pair({})
    with pytest.raises(RuntimeError, match="is_causal=True is a hint about attn_mask"):
        layer(*[torch.randn(3, 2, E, dtype=torch.float64)] * 3, is_causal=True)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"attn_mask": torch.zeros(1, S)}, r"attn_mask of shape \(1, 7\) does not fit 5 queries"),
        ({"attn_mask": torch.zeros(L, L)}, r"attn_mask of shape \(5, 5\) does not fit 7 keys"),
        (
            {"key_padding_mask": torch.zeros(B, S, dtype=torch.int64)},
            "_mask has dtype torch.int64; pass bool",
        ),
    ],
)
def test_masks_that_torch_refuses_are_refused(mask, message):
    dense, layer, _ = pair({})
    x = inputs(dense)
    with pytest.raises(RuntimeError, match=message):
        layer(*x, **mask)
    with pytest.raises((RuntimeError, AssertionError)):
        dense(*x, **mask)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_inside_torch_s_encoder_with_and_without_its_fast_path(training, recorded):
    """The encoder's fast path reads all weights without calling layers. It must see the trained values, or not run."""
    dense = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=True), 2)
    net = copy.deepcopy(dense)
    handle = slice_model(net, rank=R, also_train=[])
    with torch.no_grad():
        for view in handle:
            view.parameter.mul_(1.5)
    handle.close()
    changed = copy.deepcopy(net)  # a plain network with the trained values
    handle = slice_model(net, rank=R, also_train=[], seed=0)
    net.train(training), changed.train(training)
    x, padding = torch.randn(3, 5, E), torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
    with torch.set_grad_enabled(recorded):
        y = net(x, src_key_padding_mask=padding)
        torch.testing.assert_close(
            y[~padding], changed(x, src_key_padding_mask=padding)[~padding], rtol=1e-4, atol=1e-5
        )
    if recorded:
        y[~padding].square().sum().backward()
        assert handle.without_gradient() == []


def test_the_masked_backend_learns_the_same():
    dense, layer, handle = pair({}, backend="mask")
    assert not isinstance(layer, SlicedMultiheadAttention)
    compare(dense, layer, handle)
    assert {row.backend for row in handle.summary()} == {"mask"}


def test_one_projection_may_be_chosen():
    dense = nn.ModuleDict({"attention": nn.MultiheadAttention(E, H)})
    net = copy.deepcopy(dense)
    handle = slice_model(net, rank=R, targets=r"in_proj_weight\.v", also_train=[])
    assert [view.name for view in handle] == ["attention.in_proj_weight.v"]
    x = torch.randn(L, B, E)
    y = net["attention"](x, x, x)[0]
    torch.testing.assert_close(y, dense["attention"](x, x, x)[0])
    y.square().sum().backward()
    assert handle.without_gradient() == []
