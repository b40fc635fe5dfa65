"""LoRA export of slices along directions against peft: the factors of the file are those of the adapter."""

import copy

import pytest
import torch
from helpers.lora import TOLERANCE, bert, check, error, gpt2, llama, made, outputs, trained
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from slicefine_pl.slicing import SliceFile, export_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SETTINGS = {"stayed": {"interval": 0}, "moved": {"steps": 4}, "gradient": {"steps": 4, "basis": "gradient"}}


def llama_projections():
    net, inputs, _ = llama()
    return net, inputs, {"targets": ["q_proj", "o_proj", "gate_proj", "down_proj"]}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("maker", [bert, gpt2, llama_projections])
def test_base_and_adapter_compute_what_was_trained(maker, settings, dtype, tmp_path):
    base, inputs, own = made(maker, dtype)
    net = trained(base, inputs, tmp_path / "a.safetensors", **{"basis": "random", **own, **SETTINGS[settings]})
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert error(outputs(base, inputs), outputs(net, inputs)) > 1e-3  # training did something
    assert set(export.ranks.values()) == {2 if settings == "stayed" else 4}
    assert not export.lost
    check(net, base, inputs, tmp_path / "adapter", TOLERANCE[dtype])


@pytest.mark.parametrize("maker", [bert, gpt2])
def test_the_factors_are_those_of_the_file(maker, tmp_path):
    base, inputs, own = made(maker, torch.float32)
    trained(base, inputs, tmp_path / "a.safetensors", basis="random", interval=0, **own)
    export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for each in SliceFile.read(tmp_path / "a.safetensors").directions:
        name = f"base_model.model.{each.parameter.removesuffix('.weight')}"
        assert torch.equal(tensors[f"{name}.lora_A.weight"], each.directions.t())
        assert torch.equal(tensors[f"{name}.lora_B.weight"], each.change)


class Attention(nn.Module):
    """Queries, keys and values in one parameter, of which only some are sliced."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0])


@pytest.mark.parametrize("targets", [["in_proj"], [r"in_proj_weight\.k", r"in_proj_weight\.v"]], ids=str)
def test_parts_of_a_fused_parameter(targets, tmp_path):
    base, inputs, own = made(lambda: (Attention(), {"x": torch.randn(2, 5, 24)}, {"also_train": "head"}))
    net = trained(base, inputs, tmp_path / "a.safetensors", basis="random", targets=targets, **own)
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert export.ranks == {"attention": 6 * len(SliceFile.read(tmp_path / "a.safetensors").directions)}
    check(net, base, inputs, tmp_path / "adapter", 1e-12)


def test_matrices_that_are_stored_whole(tmp_path):
    """Three positions of two directions are more numbers than a matrix of 8 x 8 or 8 x 12 has."""
    base, inputs, own = made(bert)
    net = trained(base, inputs, tmp_path / "a.safetensors", basis="random", **own)
    file = SliceFile.read(tmp_path / "a.safetensors")
    assert file.lines
    assert not file.directions
    export_lora(file, base, tmp_path / "adapter")
    check(net, base, inputs, tmp_path / "adapter", TOLERANCE[torch.float64])


def test_modules_that_lora_cannot_express_are_stored_whole(tmp_path):
    base, inputs, _ = made(lambda: (Attention(), {"x": torch.randn(2, 5, 24)}, {}))
    settings = {"targets": ["out_proj", "head"], "also_train": [], "basis": "random"}
    net = trained(base, inputs, tmp_path / "a.safetensors", interval=0, **settings)
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter", store_whole=True)
    assert export.saved == ["attention"]
    check(net, base, inputs, tmp_path / "adapter", 1e-12)


def test_max_rank_gives_the_best_adapter(tmp_path):
    """The truncated singular value decomposition of the dense change is the best approximation (Eckart and Young)."""
    base, inputs, own = made(bert)
    net = trained(base, inputs, tmp_path / "a.safetensors", basis="random", steps=4, **own)
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter", max_rank=1)
    before = copy.deepcopy(base)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    change, found = ((each.get_parameter(name) - before.get_parameter(name)).detach() for each in (net, merged))
    u, values, v = torch.linalg.svd(change)
    torch.testing.assert_close(found, u[:, :1] * values[:1] @ v[:1], rtol=0, atol=1e-9)
    assert export.lost[name] == pytest.approx(float(values[1:].norm() / values.norm()), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, tmp_path):
    """The factors stay in float32, and peft's merge rounds once, as apply_slices does."""
    base, inputs, own = made(bert, dtype)
    settings = {"basis": "random", "slice_dtype": "float32", "steps": 4, **own}
    net = trained(base, inputs, tmp_path / "a.safetensors", **settings)
    export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {each.dtype for name, each in tensors.items() if "lora" in name} == {torch.float32}
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    for name, values in net.state_dict().items():
        if values.dim() == 2 and "encoder" in name:
            assert error(merged[name], values) < 2 * torch.finfo(dtype).eps, name
