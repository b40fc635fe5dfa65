"""Choice of layers, errors and the report of the 2:4 export; the conversion itself on a GPU only."""

import copy

import pytest
import torch
from torch import nn
from torch.sparse import SparseSemiStructuredTensor

from slicefine_pl.slicing import slice_model
from slicefine_pl.sparsity import NetworkMasks, export_semi_structured, parse_pattern, semi_structured
from slicefine_pl.sparsity.semi_structured import SemiStructuredReport, Times


class Net(nn.Module):
    """A network with one layer per reason."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 48, bias=False)
        self.dense = nn.Linear(48, 64)
        self.odd = nn.Linear(64, 20)
        self.attention = nn.MultiheadAttention(64, 2)
        self.words = nn.Embedding(64, 64)
        self.tied = nn.Linear(64, 64)
        self.tied.weight = self.words.weight
        NetworkMasks(self, parse_pattern("2:4"), targets="first|second|odd|attention").prune(0.5)

    def forward(self, x):
        return {"out": self.odd(self.dense(self.second(self.first(x).relu()))), "words": torch.arange(3)}


def net() -> Net:
    return Net().to(torch.bfloat16)


REASONS = {
    "dense": "its zeros are not 2:4 along the inputs",
    "odd": "its shape (20, 64) is not divisible by (16, 16)",
    "attention.out_proj": "NonDynamicallyQuantizableLinear|torch's attention reads its weight without a call",
    "tied": "its weight is tied to another layer",
}


@pytest.fixture
def fake_conversion(monkeypatch):
    """Replace torch's conversion by one that records its weights and scales them by 1.01."""
    given = []

    def convert(weight):
        given.append(weight)
        return weight * 1.01

    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", convert)
    monkeypatch.setattr(semi_structured, "_device", lambda net: torch.device("cpu"))
    return given


def test_layers_are_chosen_by_torch_constraints(fake_conversion):
    model, x = net(), torch.randn(5, 64, dtype=torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    sparse, report = export_semi_structured(model, x, rounds=3)
    assert report.converted == ("first", "second")
    assert report.kept.keys() == REASONS.keys()
    assert all(reason in REASONS[name].split("|") for name, reason in report.kept.items())
    assert [tuple(weight.shape) for weight in fake_conversion] == [(64, 64), (48, 64)]
    assert torch.equal(sparse.first.weight, before["first.weight"] * 1.01)
    assert torch.equal(sparse.first.bias, before["first.bias"])
    assert not sparse.first.weight.requires_grad
    assert not sparse.training
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_report_compares_outputs_and_times(fake_conversion, monkeypatch):
    model, x = net(), torch.randn(5, 64, dtype=torch.bfloat16)
    clock = iter([float(value) for step in range(8) for value in (4 + step, 3 + step)])
    monkeypatch.setattr(semi_structured, "_ms", lambda *_: next(clock))
    sparse, report = export_semi_structured(model, (x,), rounds=3)
    assert report.dense.ms == pytest.approx((9, 10, 11))  # five rounds warm up
    assert report.sparse.ms == pytest.approx((8, 9, 10))
    assert report.ratio == pytest.approx(9 / 10)
    with torch.no_grad():
        ours, theirs = sparse(x)["out"].float(), model(x)["out"].float()
    assert report.difference == pytest.approx(float((ours - theirs).abs().max()))
    assert report.largest == pytest.approx(float(theirs.abs().max()))
    printed = str(report)
    assert "2 linear layers as 2:4 tensors, 4 dense" in printed
    assert (
        "3 alternating rounds on cpu: dense 10.000 ms (9.000-11.000), 2:4 9.000 ms (8.000-10.000), 2:4 / dense 0.900"
        in printed
    )


def test_slower_copy_is_reported():
    report = SemiStructuredReport(("a",), {}, Times((1.0, 2.0, 3.0)), Times((2.0, 2.0, 9.0)), 0.0, 1.0, "a card")
    assert report.ratio == 2.0
    assert "2:4 / dense 2.000" in str(report)


@pytest.mark.parametrize("cutlass", [False, True])
def test_size_constraints_follow_the_active_backend(monkeypatch, cutlass):
    """CUTLASS requires multiples of 32 rows and 64 columns, cuSPARSELt of 16 and 16."""
    monkeypatch.setattr(SparseSemiStructuredTensor, "_FORCE_CUTLASS", cutlass)
    rows, columns = (32, 64) if cutlass else (16, 16)
    for shape in [(rows, columns), (rows // 2, columns), (rows, columns // 2), (3 * rows, 5 * columns)]:
        layer = nn.Linear(shape[1], shape[0], dtype=torch.float16)
        NetworkMasks(layer, parse_pattern("2:4"), targets="weight").prune(0.5)
        reason = semi_structured.obstacle(layer, layer)
        assert (reason is None) is (shape[0] % rows == 0 and shape[1] % columns == 0), reason


def test_layers_that_stay_dense_for_their_type_or_class():
    layer = nn.Linear(64, 64)
    assert semi_structured.obstacle(layer, layer) == "its type is float32, not float16 or bfloat16"
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    handle = slice_model(model, rank=4, also_train="1.bias")
    assert "has its own forward()" in semi_structured.obstacle(model, model[0])
    handle.close()


def test_network_without_convertible_layers(fake_conversion):
    with pytest.raises(ValueError, match=r"no layer can be converted .* has 0 \(its type is float32"):
        export_semi_structured(nn.Sequential(nn.Linear(64, 64)), torch.randn(2, 64))
    with pytest.raises(ValueError, match="this network has no linear layer"):
        export_semi_structured(nn.Sequential(nn.Conv1d(4, 4, 1)), torch.randn(2, 4, 4))
    with pytest.raises(ValueError, match="rounds=0 is too small to measure"):
        export_semi_structured(net(), torch.randn(2, 64), rounds=0)


def test_error_on_other_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"capability 8.0 .* finds no CUDA device; .* use the plain model"):
        export_semi_structured(net(), torch.randn(2, 64))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="the network is on cpu; move it and the example to 'cuda'"):
        export_semi_structured(net(), torch.randn(2, 64))


def test_error_on_an_older_gpu(monkeypatch):
    class Old(nn.Linear):
        def parameters(self):
            return iter([type("Parameter", (), {"device": torch.device("cuda:0")})()])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(RuntimeError, match=r"Tesla T4 has 7\.5; use a newer GPU"):
        export_semi_structured(Old(64, 64), torch.randn(2, 64))


@pytest.mark.needs_cuda
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_converted_copy_computes_the_same_on_a_gpu():
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).to("cuda", torch.float16)
    NetworkMasks(model, parse_pattern("2:4")).prune(0.5)
    x = torch.randn(32, 7, 256, device="cuda", dtype=torch.float16)
    sparse, report = export_semi_structured(model, x, rounds=5)
    assert report.converted == ("0", "2")
    assert isinstance(sparse[0].weight, SparseSemiStructuredTensor)
    torch.testing.assert_close(sparse(x), model(x), rtol=1e-2, atol=1e-2)
    assert report.difference <= 0.01 * report.largest + 0.01
    assert all(time > 0 for time in report.dense.ms + report.sparse.ms)
