"""The report of frozen matrices: names, shares of the parameters, and the patterns that would slice them."""

import re
import warnings

import pytest
import torch
import torchvision
import transformers
from torch import nn
from torch.nn.utils import parametrizations, prune

from slicefine_pl.slicing import SliceHandle, slice_model

WIDTH, RANK = 16, 2


class Raw(nn.Module):
    """Raw parameters: a fused projection, a stack of experts, a stack of stacks."""

    def __init__(self):
        super().__init__()
        self.qkv_weight = nn.Parameter(torch.randn(3 * WIDTH, WIDTH))
        self.experts = nn.Parameter(torch.randn(4, WIDTH, WIDTH))
        self.kernels = nn.Parameter(torch.randn(WIDTH, WIDTH, 3, 3))


class Quantized(nn.Module):
    """As in GPTQ: one number packs eight weights of four bits."""

    def __init__(self):
        super().__init__()
        self.in_features = self.out_features = WIDTH
        self.register_buffer("qweight", torch.zeros(WIDTH // 8, WIDTH, dtype=torch.int32))
        self.register_buffer("zeros", torch.zeros(4, WIDTH // 8, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(1, WIDTH))


class FourBits(nn.Linear):
    """As in bitsandbytes: one byte packs two weights of four bits, in one column."""

    def __init__(self):
        super().__init__(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.zeros(WIDTH * WIDTH // 2, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return x


class Wrapped(torch.Tensor):
    """As in torchao: a tensor whose dtype is float32, and which dispatches its own operations."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        assert function is torch.ops.aten.detach.default
        return cls(args[0].codes)


def wrapped() -> nn.Linear:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight = nn.Parameter(Wrapped(torch.zeros(WIDTH, WIDTH, dtype=torch.int8)), requires_grad=False)
    return layer


def dynamic(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated
        types = {nn.Linear, nn.LSTM}
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), types, dtype=torch.qint8)[0]


def old_style(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but many networks use them
        return getattr(nn.utils, name)(nn.Linear(WIDTH, WIDTH))


def complex_matrix() -> nn.Module:
    holder = nn.Module()
    holder.spectrum = nn.Parameter(torch.zeros(WIDTH, WIDTH, dtype=torch.complex64))
    return holder


SQUARE = WIDTH * WIDTH
# What the default selection leaves out: how to build it, entries of its matrices, whether a pattern slices them.
SILENT = {
    "LSTM": (lambda: nn.LSTM(WIDTH, WIDTH, 2), 16 * SQUARE, True),
    "GRU, both ways": (lambda: nn.GRU(WIDTH, WIDTH, bidirectional=True), 12 * SQUARE, True),
    "RNN": (lambda: nn.RNN(WIDTH, WIDTH), 2 * SQUARE, True),
    "LSTMCell": (lambda: nn.LSTMCell(WIDTH, WIDTH), 8 * SQUARE, True),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), SQUARE + WIDTH, True),
    "weight_norm of a convolution": (
        lambda: parametrizations.weight_norm(nn.Conv1d(WIDTH, WIDTH, 3)), 3 * SQUARE + WIDTH, True,
    ),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)), SQUARE, True),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)), SQUARE, True),
    "weight_norm, as a hook": (lambda: old_style("weight_norm"), SQUARE + WIDTH, True),
    "spectral_norm, as a hook": (lambda: old_style("spectral_norm"), SQUARE, True),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(WIDTH, WIDTH), "weight", 0.5), SQUARE, True),
    "Bilinear": (lambda: nn.Bilinear(WIDTH, WIDTH, WIDTH), WIDTH * SQUARE, True),
    "raw parameters": (Raw, (3 + 4 + 9) * SQUARE, True),
    "complex numbers": (complex_matrix, SQUARE, False),
    "integer buffers": (Quantized, SQUARE + 8, False),
    "four bits": (FourBits, SQUARE, False),
    "tensor of its own class": (wrapped, SQUARE, False),
    "eight bits": (lambda: nn.Linear(WIDTH, WIDTH).to(torch.float8_e4m3fn), SQUARE, False),
    "dynamically quantised": (lambda: dynamic(nn.Linear(WIDTH, WIDTH)), SQUARE, False),
    "dynamically quantised LSTM": (lambda: dynamic(nn.LSTM(WIDTH, WIDTH)), 8 * SQUARE, False),
    "compiled script": (lambda: torch.jit.script(nn.Linear(WIDTH, WIDTH)), SQUARE, False),
}  # fmt: skip


def network(layer: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"first": nn.Linear(WIDTH, WIDTH), "odd": layer, "head": nn.Linear(WIDTH, 3)})


def open_slices(net: nn.Module, **settings) -> tuple[SliceHandle, str]:
    """The handle, and the text of the warning."""
    with warnings.catch_warnings(record=True) as notice:
        warnings.simplefilter("always")
        handle = slice_model(net, **{"rank": RANK, "also_train": "head"} | settings)
    assert len(notice) < 2
    return handle, "".join(str(each.message) for each in notice)


@pytest.mark.filterwarnings("ignore:.*torch.ao.*deprecated", "ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", SILENT)
def test_frozen_matrices_are_reported_with_their_share(name):
    build, size, sliceable = SILENT[name]
    net = network(build())
    handle, notice = open_slices(net)
    assert [view.name for view in handle] == ["first"]
    assert notice.startswith("Left frozen: ")
    others = WIDTH * WIDTH + WIDTH + 3 * WIDTH + 3 + sum(p.numel() for p in net["odd"].parameters() if p.ndim < 2)
    assert sum(matrix.size for matrix in handle.frozen.matrices) == size
    assert f"Left frozen: {100 * size / (size + others):.1f} % of all parameters" in notice
    shares = [line for line in notice.splitlines() if line.startswith("  odd")]
    assert shares
    assert all("cannot be trained" in line or "torch.jit" in line for line in shares) != sliceable
    assert ("targets=" in notice) == sliceable


@pytest.mark.parametrize("name", [name for name, (_, _, sliceable) in SILENT.items() if sliceable])
def test_the_printed_pattern_slices_exactly_its_group(name):
    net = network(SILENT[name][0]())
    handle, notice = open_slices(net)
    wanted = {matrix.name for matrix in handle.frozen.matrices if matrix.sliceable}
    handle.close()
    patterns = re.findall(r"targets=r'(.+?)'", notice)
    handle, _ = open_slices(net, targets=patterns)
    assert {view.name for view in handle} == wanted
    assert all(view.name.startswith("odd") for view in handle)


def test_a_huge_network_gets_a_short_notice():
    layers = nn.ModuleList(nn.ModuleDict({"experts": Raw(), "attention": nn.Linear(16, 16)}) for _ in range(60))
    net = nn.ModuleDict({"layers": layers, "head": nn.Linear(16, 3)})
    handle, notice = open_slices(net)
    assert len(handle) == 60
    assert len(notice.splitlines()) < 8
    assert "layers.*.experts.qkv_weight (60 x): 17.6 %" in notice
    pattern = re.search(r"qkv_weight .* targets=r'(.+?)'", notice)[1]
    handle.close()
    assert len(open_slices(net, targets=pattern)[0]) == 60


def test_patterns_list_numbers_where_names_do_not_suffice():
    """If some layers of equal names are too narrow, the pattern matches only those that can be sliced."""
    sizes = [9, 9, 1, 9]
    tables = [nn.Module() for _ in sizes]
    for table, size in zip(tables, sizes, strict=True):
        table.raw = nn.Parameter(torch.randn(9, size))
    net = nn.ModuleDict({"tables": nn.ModuleList(tables), "first": nn.Linear(9, 9), "head": nn.Linear(9, 3)})
    handle, notice = open_slices(net)
    handle.close()
    (pattern,) = re.findall(r"targets=r'(.+?)'", notice)
    assert {view.name for view in open_slices(net, targets=pattern)[0]} == {f"tables.{n}.raw" for n in (0, 1, 3)}


def tiny_bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    return transformers.BertForSequenceClassification(config)


def test_embeddings_are_counted_without_a_warning():
    """Users expect embeddings to stay frozen. The handle still reports their share and their pattern."""
    net = tiny_bert()
    total = sum(parameter.numel() for parameter in net.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = slice_model(net, rank=RANK)
    words = 100 * net.bert.embeddings.word_embeddings.weight.numel() / total
    assert f"word_embeddings: {words:.1f} %" in str(handle.frozen)
    assert r"not sliced by default; add it with targets=r'\.word_embeddings$'" in str(handle.frozen)


def test_position_embeddings_and_class_tokens_do_not_warn():
    net = torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 24, num_classes=3)
    handle, notice = open_slices(net, also_train=None)
    assert notice == ""
    assert {matrix.name for matrix in handle.frozen.matrices} == {"class_token", "encoder.pos_embedding"}
    assert len(open_slices(torchvision.models.swin_t(num_classes=3), also_train=None)[1]) == 0


@pytest.mark.parametrize("head", [True, False])
def test_tied_weights_count_once_and_warn_where_they_are_layers(head):
    """A head tied to its embedding is common. Two layers that share a weight are not."""
    first, second = nn.Embedding(20, WIDTH) if head else nn.Linear(WIDTH, 20), nn.Linear(WIDTH, 20)
    second.weight = first.weight
    net = nn.ModuleDict({"first": first, "second": second, "middle": nn.Linear(WIDTH, WIDTH), "head": nn.Linear(16, 3)})
    handle, notice = open_slices(net)
    assert [(matrix.name, matrix.size) for matrix in handle.frozen.matrices] == [("first", 20 * WIDTH)]
    assert handle.frozen.matrices[0].reason == "its weight is tied"
    assert bool(notice) != head


def test_named_targets_need_no_notice():
    assert open_slices(network(nn.LSTM(WIDTH, WIDTH)), targets="first")[1] == ""


def test_layers_frozen_by_the_user_are_counted_without_a_warning():
    net = network(nn.Linear(WIDTH, WIDTH).requires_grad_(False))
    handle, notice = open_slices(net)
    assert notice == ""
    assert r"odd: 43.0 %, frozen already; add it with targets=r'^odd$'" in str(handle.frozen)


def test_the_report_says_if_nothing_is_frozen():
    handle, notice = open_slices(network(nn.Identity()))
    assert (notice, str(handle.frozen)) == ("", "Left frozen: no matrix.")


def test_a_network_without_a_layer_to_slice_gets_the_pattern_in_the_error():
    with pytest.raises(ValueError, match=r"selects nothing that can be sliced(.|\n)*targets=r'\^weight_hh_l0\$'"):
        slice_model(nn.LSTM(WIDTH, WIDTH), RANK, also_train="bias")


def test_a_compiled_script_that_is_trained_in_full_is_not_frozen():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated
        net = network(torch.jit.script(nn.Linear(WIDTH, WIDTH)))
    handle, notice = open_slices(net, also_train=["head", "odd"])
    assert (notice, handle.frozen.matrices) == ("", [])


def test_a_weight_that_is_a_buffer_is_reported():
    layer = nn.Module()
    layer.register_buffer("weight", torch.zeros(WIDTH, WIDTH))
    assert "odd.weight: 44.2 %, a buffer cannot be trained" in open_slices(network(layer))[1]
