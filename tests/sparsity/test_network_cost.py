"""The cost report is checked against torch's FLOP counter and against tensors stored in each format."""

import copy
import json
import math

import pytest
import scipy.sparse
import torch
from torch import nn
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel
from transformers.pytorch_utils import Conv1D

from slicefine_pl.sparsity import NetworkMasks, cost_report, parse_pattern
from slicefine_pl.sparsity.mask_tensors import pack_mask

SCORES = {"bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"}


def reference_flops(net, *inputs):
    """Return the FLOPs that torch counts in eval mode, without attention scores."""
    net = copy.deepcopy(net).eval()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs)
    torch.backends.mha.set_fastpath_enabled(True)
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for operation, flops in counts.items() if str(operation).removeprefix("aten.") not in SCORES)


class Attending(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True, **settings)
        self.sizes = settings.get("kdim", 32), settings.get("vdim", 32)

    def forward(self, query):
        key, value = (torch.randn(len(query), 5, size) for size in self.sizes)
        return self.attention(query, key, value=value, need_weights=False)[0]


class Shared(nn.Module):
    """One module called three times."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(16, 16)

    def forward(self, x):
        return self.map(self.map(self.map(x)))


CASES = {
    "linear": (nn.Linear(16, 24), (2, 7, 16)),
    "no batch": (nn.Linear(16, 24), (16,)),
    "conv1d": (nn.Conv1d(8, 12, 3, padding=1), (2, 8, 9)),
    "conv2d, stride, dilation": (nn.Conv2d(8, 12, (3, 5), stride=2, padding=4, dilation=2), (2, 8, 13, 17)),
    "groups": (nn.Conv2d(8, 12, 3, groups=4), (2, 8, 9, 9)),
    "depthwise": (nn.Conv1d(8, 16, 3, groups=8), (2, 8, 9)),
    "conv3d": (nn.Conv3d(4, 6, 3), (1, 4, 5, 6, 7)),
    "transposed": (nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1), (2, 8, 5, 6)),
    "transposed, groups": (nn.ConvTranspose1d(8, 12, 4, groups=2, stride=3), (2, 8, 5)),
    "Conv1D": (Conv1D(24, 16), (2, 7, 16)),
    "attention": (Attending(), (2, 7, 32)),
    "attention of several sizes": (Attending(kdim=24, vdim=40), (2, 7, 32)),
    "encoder": (nn.TransformerEncoderLayer(32, 2, 48, batch_first=True), (2, 7, 32)),
    "called three times": (Shared(), (2, 16)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_dense_flops_equal_torch_counts(case):
    net, shape = CASES[case]
    x = torch.randn(shape)
    assert cost_report(net, x).forward.dense == reference_flops(net, x) > 0
    assert not cost_report(net, x).unseen


def test_encoder_of_transformers():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    net = BertModel(BertConfig(vocab_size=50, **sizes))
    words = torch.randint(50, (3, 11))
    report = cost_report(net, {"input_ids": words})
    assert report.forward.dense == reference_flops(net, words)
    assert report.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert report.stored.dense == 4 * report.parameters
    body = 2 * (4 * 32 * 32 + 2 * 32 * 48)  # without an example: 2 FLOPs for each weight at each position
    assert cost_report(net, tokens=7).forward.dense == 2 * 7 * (body + 32 * 32)  # and the pooler


def test_ideal_flops_equal_those_of_a_smaller_network():
    """The reference is a network without the zero rows."""
    net = nn.Conv2d(8, 12, 3, bias=False)
    x = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        net.weight[3:] = 0
    assert cost_report(net, x).forward.ideal == reference_flops(nn.Conv2d(8, 3, 3, bias=False), x)
    attention = Attending()
    with torch.no_grad():
        attention.attention.in_proj_weight[32:] = 0  # only the queries are left: 7 of them, where keys are 5
    report = cost_report(attention, torch.randn(2, 7, 32))
    assert report.layers[0].forward.ideal == 2 * 2 * 7 * 32 * 32


def test_training_costs_three_forward_passes_of_which_two_four_halves_one():
    net, x = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 8)), torch.randn(6, 16, requires_grad=True)
    NetworkMasks(net, parse_pattern("2:4"), targets="weight").prune(0.5)
    report = cost_report(net, x)
    with FlopCounterMode(display=False) as counter:
        net(x).sum().backward()
    assert report.training.dense == counter.get_total_flops() == 3 * report.forward.dense
    assert report.forward.two_four == report.forward.ideal == report.forward.dense / 2
    assert report.training.ideal == 1.5 * report.forward.dense
    assert report.training.two_four == 2.5 * report.forward.dense


def test_two_four_halves_linear_layers_only():
    net = nn.Sequential(nn.Conv1d(16, 8, 3), nn.Flatten(1), nn.Linear(32, 8))
    NetworkMasks(net, parse_pattern("2:4"), targets="weight").prune(0.5)
    convolution, linear = cost_report(net, torch.randn(1, 16, 6)).layers[:2]
    assert (convolution.pattern, convolution.forward.two_four) == ("2:4", convolution.forward.dense)
    assert (linear.pattern, linear.forward.two_four) == ("2:4", linear.forward.dense // 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_equal_those_of_stored_tensors(dtype):
    net = nn.Linear(256, 64, bias=False).to(dtype)
    NetworkMasks(net, parse_pattern("unstructured")).prune(0.8)
    weight = net.weight.detach()
    values = weight[weight != 0]
    stored = cost_report(net).stored
    assert stored.dense == stored.two_four == weight.nbytes  # stored dense, because it is not 2:4
    assert stored.bitmask == values.nbytes + pack_mask(weight != 0).nbytes
    rows = scipy.sparse.csr_array(weight.double().numpy())
    pointers, columns = rows.indptr.astype("int32"), rows.indices.astype("uint16")
    assert stored.csr == values.nbytes + pointers.nbytes + columns.nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_four_bytes_equal_torch_compression(dtype):
    """The reference is torch's conversion, which runs on the CPU."""
    net = nn.Linear(256, 64, bias=False).to(dtype)
    NetworkMasks(net, parse_pattern("2:4")).prune(0.5)
    values, places = sparse_semi_structured_from_dense_cutlass(net.weight.detach())
    stored = cost_report(net).stored
    assert stored.two_four == values.nbytes + places.nbytes == 9 / 16 * stored.dense
    assert stored.bitmask == stored.two_four  # both: half of the values and one bit per weight


def test_csr_index_width_and_dense_fallback():
    net = nn.Linear(65_540, 4, bias=False)
    with torch.no_grad():
        net.weight[:, 1::4] = 0
        assert cost_report(net).stored.csr == net.weight.nbytes
        net.weight[:, 2::4] = 0
        net.weight[:, 3::4] = 0
    assert cost_report(net).stored.csr == 4 * 16_385 * (4 + 4) + 5 * 4


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight, self.second.weight = self.words.weight, self.first.weight

    def forward(self, words):
        return self.head(self.second(self.first(self.words(words))))


def test_tied_weights_count_bytes_once_and_flops_at_every_use():
    net, words = Tied(), torch.randint(50, (2, 7))
    report = cost_report(net, words)
    assert report.forward.dense == reference_flops(net, words)
    assert report.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert report.stored.dense == 4 * report.parameters
    assert {each.name: each.tied_to for each in report.layers if each.tied_to} == {
        "head.weight": "words.weight",
        "second.weight": "first.weight",
    }
    assert report.layers[0].forward.dense == 0  # looked up


def test_network_state_is_restored():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    net[2].eval()
    before = copy.deepcopy(net.state_dict())
    random = torch.get_rng_state()
    cost_report(net, torch.randn(4, 8, generator=torch.Generator()))
    assert [module.training for module in net.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not net[0]._forward_hooks
    with pytest.raises(RuntimeError):
        cost_report(net, torch.randn(4, 9))
    assert net.training
    assert not net[0]._forward_hooks


def test_weights_read_without_a_call_are_listed_as_unseen():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.read = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return nn.functional.linear(self.used(x), self.read.weight)

    assert cost_report(Reads(), torch.randn(2, 8)).unseen == ("read.weight",)
    assert "do not count 1 matrix that the example did not use" in cost_report(Reads(), torch.randn(2, 8)).summary()


def test_summary():
    net = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False)).half()
    assert cost_report(net).summary() == "nothing is pruned: 0.3 MB of parameters, all multiplied."
    NetworkMasks(net, parse_pattern("2:4")).prune(0.5)
    assert cost_report(net).summary() == (
        "pruned 50.0 % (2:4; 65,536 of 131,072 weights in 2 matrices are zero): stored 0.3 MB dense, 0.1 MB as 2:4;"
        " FLOPs 100 % on hardware without sparse units, 50 % on 2:4 tensor cores, 50 % ideal. A plain checkpoint is as"
        " large and as fast as before."
    )
    NetworkMasks(net, parse_pattern("unstructured"), targets="0").prune(0.9)
    assert "pruned 70.0 % (2:4 and unstructured" in cost_report(net).summary()
    assert "MB as a bitmask" in cost_report(net).summary()


def test_table_and_json_agree():
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(40)))
    NetworkMasks(net, parse_pattern("2:4")).prune(0.5)
    report = cost_report(net, torch.randn(5, 64))
    content = json.loads(report.to_json())
    assert content["total"]["stored"]["bitmask"] == sum(each["stored"]["bitmask"] for each in content["layers"])
    assert content["total"]["forward"]["ideal"] == 40 * 5 * 64 * 64
    assert len(content["layers"]) == 41
    printed = str(report)
    assert "64 x 64 (40 times)" in printed
    assert "163,840" in printed
    assert "as large and as fast as before" in printed
    assert str(cost_report(nn.Linear(4, 4))).count("\n") < 12


def test_long_tables_are_shortened():
    net = nn.Sequential(*(nn.Linear(size, size) for size in range(4, 44)))
    assert math.isclose(str(cost_report(net)).count(" x "), 29, abs_tol=1)
    assert "and 11 smaller ones" in str(cost_report(net))


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (nn.Linear(4, 4), {"tokens": 0}, "tokens=0 is not a number of tokens; choose at least 1"),
        (nn.Linear(4, 4), {"tokens": 1.5}, r"tokens=1\.5"),
        (nn.Linear(4, 4, device="meta"), {}, "weight has no values yet"),
        (nn.LazyLinear(4), {}, "weight has no values yet"),
        (nn.ReLU(), {}, "has no parameters to count"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_networks_that_cannot_be_counted(net, settings, message):
    with pytest.raises(ValueError, match=message):
        cost_report(net, **settings)
