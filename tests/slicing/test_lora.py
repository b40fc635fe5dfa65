"""LoRA export against peft: the base with the adapter computes what was trained, and merges to its weights."""

import copy
import json
import re
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torchvision
import transformers
from helpers.lora import PIXELS, SIZES, TOLERANCE, WORDS, bert, check, error, gpt2, llama, made, outputs, trained
from huggingface_hub import ModelCard
from peft import AutoPeftModel, PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from slicefine_pl.slicing import SavedLines, SliceFile, SliceTasks, export_lora, slice_model
from slicefine_pl.slicing.low_rank import LineChanges

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def vit():
    config = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=3, **SIZES)
    return transformers.ViTForImageClassification(config), PIXELS, {"also_train": "classifier"}


def resnet():
    config = transformers.ResNetConfig(embedding_size=6, hidden_sizes=[6, 8], depths=[1, 1], layer_type="basic")
    return transformers.ResNetForImageClassification(config), PIXELS, {"also_train": "classifier"}


def clip():
    text = {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19, **SIZES}
    vision = {"image_size": 32, "patch_size": 16, **SIZES}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    return transformers.CLIPModel(config), WORDS | PIXELS, {"also_train": "projection"}


NETWORKS = [bert, gpt2, llama, vit, resnet, clip]
SETTINGS = {
    "stayed": {"interval": 0},
    "moved": {},
    "rows": {"axis": "row"},
    "alternate": {"axis": "alternate"},
    "everywhere": {"rank": 3, "axis": "alternate", "interval": 1, "steps": 9},
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("maker", NETWORKS)
def test_base_and_adapter_compute_what_was_trained(maker, settings, dtype, tmp_path):
    base, inputs, own = made(maker, dtype)
    net = trained(base, inputs, tmp_path / "a.safetensors", **own, **SETTINGS[settings])
    unchanged = copy.deepcopy(base.state_dict())
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert all(torch.equal(values, unchanged[name]) for name, values in base.state_dict().items())
    assert error(outputs(base, inputs), outputs(net, inputs)) > 1e-3  # training did something
    assert not export.left_out
    assert not export.lost
    check(net, base, inputs, tmp_path / "adapter", TOLERANCE[dtype])


@pytest.mark.parametrize("maker", NETWORKS)
def test_the_tensors_are_those_that_peft_writes(maker, tmp_path):
    base, inputs, own = made(maker)
    trained(base, inputs, tmp_path / "a.safetensors", **own)
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "ours")
    adapted = PeftModel.from_pretrained(base, tmp_path / "ours")
    adapted.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], values) for name, values in theirs.items())
    assert export.num_bytes == sum(each.nbytes for each in ours.values())


@pytest.mark.parametrize("maker", [bert, gpt2, resnet])
def test_two_tasks_are_switched_alike_as_slices_and_as_adapters(maker, tmp_path):
    base, inputs, own = made(maker)
    expected = {
        "reviews": outputs(trained(base, inputs, tmp_path / "reviews", **own), inputs),
        "tweets": outputs(trained(base, inputs, tmp_path / "tweets", rank=3, seed=1, **own), inputs),
    }
    assert error(expected["reviews"], expected["tweets"]) > 1e-3
    for task in expected:
        export_lora(tmp_path / task, base, tmp_path / f"{task}-lora")
    tasks = SliceTasks(copy.deepcopy(base), {task: tmp_path / task for task in expected})
    adapted = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "reviews-lora", adapter_name="reviews")
    adapted.load_adapter(tmp_path / "tweets-lora", "tweets")
    for task in ("reviews", "tweets", "reviews"):
        adapted.set_adapter(task)
        with tasks.using(task) as net:
            assert torch.equal(outputs(net, inputs), expected[task])
        assert error(outputs(adapted, inputs), expected[task]) < TOLERANCE[torch.float64]


class Kinds(nn.Module):
    """A module of each kind that peft adapts, and names of which one is the end of another."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.one = nn.Conv1d(8, 8, 3, padding=1, stride=2)
        self.two = nn.Conv2d(4, 5, (3, 1), padding="same")
        self.three = nn.Conv3d(4, 5, (2, 1, 3), padding=(1, 0, 1))
        self.gpt = Conv1D(10, 8)
        self.fc = nn.Linear(10, 8)
        self.block = nn.ModuleDict({"fc": nn.Linear(8, 8), "my_fc": nn.Linear(8, 8)})
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)
        self.old_head = nn.Linear(8, 8)

    def forward(self, tokens):
        x = self.one(self.words(tokens).transpose(1, 2)).transpose(1, 2)
        wide = x[:, None] * torch.arange(1, 5).view(4, 1, 1)  # (B, 4, 3, 8)
        x = x + self.two(wide).mean(1) + self.three(wide[:, :, None])[:, :, 0, :3, :8].mean(1)
        x = torch.tanh(self.fc(torch.tanh(self.gpt(x.contiguous()))))
        x = self.block["my_fc"](self.block["fc"](x))
        x = x + self.attention(x, x, x)[0]
        return self.head(self.norm(self.old_head(x).mean(1)))


def kinds():
    targets = ["words", "one", "two", "three", "gpt", "^fc", "my_fc", "attention.in_proj"]
    return Kinds(), {"tokens": torch.arange(18).view(3, 6)}, {"also_train": ["^head"], "targets": targets}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")  # peft then corrects it, layer by layer
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_kind_of_layer(settings, tmp_path):
    base, inputs, own = made(kinds)
    net = trained(base, inputs, tmp_path / "a.safetensors", **{"backend": "mask", **own, **SETTINGS[settings]})
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert set(export.ranks) == {"words", "one", "two", "three", "gpt", "fc", "block.my_fc", "attention"}
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert re.fullmatch(config.exclude_modules, "block.fc")  # its name ends like that of fc
    assert export.saved == ["norm", "head", "old_head"]  # old_head ends like head
    check(net, base, inputs, tmp_path / "adapter", 1e-12)


class Grouped(nn.Module):
    """A convolution with groups between two layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.conv = nn.Conv1d(6, 4, 3, groups=2, padding=1)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.conv(self.first(x).transpose(1, 2)).transpose(1, 2))


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
@pytest.mark.parametrize("settings", ["stayed", "rows"])
def test_groups_of_a_convolution(settings, tmp_path):
    """peft applies them, and cannot merge them."""
    base, inputs, own = made(lambda: (Grouped(), {"x": torch.randn(2, 5, 6)}, {"also_train": "last"}))
    net = trained(base, inputs, tmp_path / "a.safetensors", **own, **SETTINGS[settings])
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert export.ranks["conv"] == 4  # two groups of two outputs
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert error(outputs(adapted, inputs), outputs(net, inputs)) < 1e-12
    with pytest.raises(ValueError, match="max_rank=1 is too small for conv: its 2 groups need a rank of at least 2"):
        export_lora(tmp_path / "a.safetensors", copy.deepcopy(adapted.unload()), tmp_path / "cut", max_rank=1)
    assert not (tmp_path / "cut").exists()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.experts = nn.Parameter(torch.randn(3, 8, 6))
        self.mlp = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.mlp(x + sum(x @ expert @ expert.t() for expert in self.experts) / 10)


@pytest.fixture
def attention(tmp_path):
    """A base whose attention, experts, norm and a bias were trained beside a linear layer."""
    base, inputs, own = made(lambda: (Attention(), {"x": torch.randn(2, 5, 8)}, {}))
    own = {"targets": ["attention", "experts", "mlp"], "also_train": ["norm", "mlp.bias"]}
    return base, inputs, trained(base, inputs, tmp_path / "a.safetensors", **own), tmp_path


def test_what_peft_cannot_express_is_refused(attention):
    base, _, _, folder = attention
    with pytest.raises(ValueError, match="peft's LoRA cannot express") as error:
        export_lora(folder / "a.safetensors", base, folder / "adapter")
    for part in (
        "experts (it is a parameter of Attention)",
        "attention.out_proj.weight (peft adds the change of out_proj of an nn.MultiheadAttention twice)",
        "mlp.bias (LoRA adapts the weight of its module, and nothing else in it)",
        "Pass store_whole=True to store such modules whole, or leave_out=True to export the rest.",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "adapter").exists()


def test_what_is_left_out_is_reported(attention):
    base, inputs, net, folder = attention
    export = export_lora(folder / "a.safetensors", base, folder / "adapter", leave_out=True)
    assert set(export.left_out) == {"experts", "attention.out_proj.weight", "mlp.bias"}
    assert export.saved == ["norm"]
    expected = copy.deepcopy(net)
    with torch.no_grad():
        for name in export.left_out:
            expected.get_parameter(name).copy_(base.get_parameter(name))
    card = (folder / "adapter" / "README.md").read_text()
    assert "It does not contain all of the training." in card
    assert all(f"- `{name}`: {reason}" in card for name, reason in export.left_out.items())
    check(expected, base, inputs, folder / "adapter", 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_modules_that_lora_cannot_express_are_stored_whole(dtype, tmp_path):
    net = torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 12, num_classes=3)
    base, inputs, own = made(lambda: (net, {"x": PIXELS["pixel_values"]}, {"also_train": "heads"}), dtype)
    net = trained(base, inputs, tmp_path / "a.safetensors", **own)
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter", store_whole=True)
    layers = [f"encoder.layers.encoder_layer_{number}" for number in range(2)]
    assert set(export.ranks) == {"conv_proj", *(f"{layer}.mlp.{part}" for layer in layers for part in (0, 3))}
    assert export.saved == [*(f"{layer}.self_attention" for layer in layers), "heads.head"]
    assert not export.left_out
    check(net, base, inputs, tmp_path / "adapter", TOLERANCE[dtype])


def test_an_encoder_layer_of_torch_is_stored_whole(tmp_path):
    """In eval mode it reads the weights of its layers, and peft's LoRA has no effect."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False
            )
            self.head = nn.Linear(8, 8)

        def forward(self, x):
            return self.head(self.encoder(x))

    base, inputs, _ = made(lambda: (Encoder(), {"x": torch.randn(2, 5, 8)}, {}))
    net = trained(base, inputs, tmp_path / "a.safetensors", targets=["0.linear1", "head"], also_train="1.norm1")
    with pytest.raises(ValueError, match=r"an nn\.TransformerEncoderLayer evaluates without peft's layers"):
        export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter", store_whole=True)
    assert export.saved == ["encoder.layers.0", "encoder.layers.1"]
    assert not export.left_out
    check(net, base, inputs, tmp_path / "adapter", 1e-12)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")  # peft's merge unties them
def test_tied_weights_are_stored_for_each_module(tmp_path):
    base, inputs, _ = made(gpt2)
    net = trained(base, inputs, tmp_path / "a.safetensors", targets=["mlp"], also_train="wte")
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert export.saved == ["transformer.wte", "lm_head"]
    check(net, base, inputs, tmp_path / "adapter", 1e-12)


def test_a_layer_with_two_names_is_stored_whole(tmp_path):
    """peft would adapt it under one of them."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Linear(8, 8)
            self.head = nn.Linear(8, 8)

        def forward(self, x):
            return self.head(self.second(torch.tanh(self.first(x))))

    base, inputs, _ = made(lambda: (Shared(), {"x": torch.randn(2, 8)}, {}))
    net = trained(base, inputs, tmp_path / "a.safetensors", targets=["first", "head"], also_train=[])
    with pytest.raises(ValueError, match="first and second share it, and peft does not adapt them as one"):
        export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter", store_whole=True)
    assert export.saved == ["first", "second"]
    check(net, base, inputs, tmp_path / "adapter", 1e-12)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Doubled(8, 8), "Doubled computes something of its own"),
        (nn.Conv1d(8, 8, 3, dilation=2), "only convolutions without dilation"),
        (nn.Conv1d(8, 8, 3, padding_mode="circular"), "that are padded with zeros"),
        (nn.MultiheadAttention(8, 2, kdim=4, vdim=4), "it is a parameter of MultiheadAttention"),
        (nn.ParameterList([torch.zeros(8, 8)]), "it is a parameter of ParameterList"),
    ],
)
def test_layers_that_peft_does_not_adapt_exactly(layer, reason, tmp_path):
    base = nn.Sequential(layer, nn.Linear(8, 8))
    slice_model(copy.deepcopy(base), 2, targets=["^0", "^1"], also_train=[]).save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=reason):
        export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter", leave_out=True).ranks == {"1": 2}


def test_a_head_whose_name_peft_cannot_tell_from_a_sliced_layer(tmp_path):
    base = nn.Sequential(OrderedDict(my_head=nn.Linear(8, 8), head=nn.Linear(8, 3)))
    handle = slice_model(copy.deepcopy(base), 2, targets="my_head", also_train="^head")
    handle.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="peft would store my_head as well, because its name ends alike"):
        export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")


def test_nothing_to_adapt(tmp_path):
    base, inputs, _ = made(lambda: (Attention(), {"x": torch.randn(2, 5, 8)}, {}))
    trained(base, inputs, tmp_path / "a.safetensors", targets=["out_proj"], also_train=[])
    with pytest.raises(ValueError, match="LoRA adapts none of the trained weights"):
        export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter", store_whole=True)


@pytest.mark.parametrize("settings", ["moved", "rows", "alternate"])
@pytest.mark.parametrize("rank", [1, 3])
def test_max_rank_gives_the_best_adapter(settings, rank, tmp_path):
    """The truncated singular value decomposition of the dense change is the best approximation (Eckart and Young)."""
    base, inputs, own = made(kinds)
    own["targets"] = ["words", "one", "two", "fc$", "attention.in_proj"]
    net = trained(base, inputs, tmp_path / "a.safetensors", **{**own, **SETTINGS[settings]})
    export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter", max_rank=rank)
    before = copy.deepcopy(base)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    missing = energy = 0.0
    for name in ("words.weight", "one.weight", "two.weight", "fc.weight", "attention.in_proj_weight"):
        change, found = (
            (each.get_parameter(name) - before.get_parameter(name)).detach().flatten(1) for each in (net, merged)
        )
        u, values, v = torch.linalg.svd(change, full_matrices=False)
        best = u[:, :rank] * values[:rank] @ v[:rank]
        torch.testing.assert_close(found, best, rtol=0, atol=1e-9)
        missing, energy = missing + float(values[rank:].square().sum()), energy + float(values.square().sum())
        lost = float(values[rank:].square().sum() / values.square().sum()) ** 0.5
        assert export.lost.get(name, 0.0) == pytest.approx(lost, abs=1e-9)
    assert set(export.ranks.values()) == {rank}
    assert f"relative error of {export.total_lost:.2g}" in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, tmp_path):
    """The change is rounded once, and peft's merge rounds once more: at most one unit in the last place each."""
    base, inputs, own = made(llama, dtype)
    net = trained(base, inputs, tmp_path / "a.safetensors", **own)
    export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    before = copy.deepcopy(base)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    eps = torch.finfo(dtype).eps
    for name, values in net.state_dict().items():
        start = before.state_dict()[name]
        assert merged.state_dict()[name].dtype == dtype
        distance = (merged.state_dict()[name].double() - values.double()).abs()
        assert (distance <= eps * ((values - start).double().abs() + values.double().abs()) + 1e-7).all(), name
    assert all(each.dtype == dtype for each in load_file(tmp_path / "adapter" / "adapter_model.safetensors").values())


def test_ranks(tmp_path):
    """The rank is that of a slice that stayed, and the number of visited lines of one that moved."""
    base, inputs, own = made(bert)
    for settings, expected in (("stayed", {2}), ("moved", {6}), ("alternate", {6})):
        trained(base, inputs, tmp_path / "a.safetensors", **{**own, **SETTINGS[settings]})
        export = export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
        assert set(export.ranks.values()) == expected
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == max(expected)


def lines(axis, index, values, rows=None):
    return SavedLines(parameter="w", rows=rows, order=(0, 1), axis=axis, index=index, values=values)


def test_crossing_entries_are_counted_once():
    """Columns and rows of one part of a weight, and columns of another part."""
    torch.manual_seed(0)
    base, net = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    saved = [
        lines("column", torch.tensor([1, 4]), net[:3, [1, 4]], (0, 3)),
        lines("row", torch.tensor([2]), net[[2]], (0, 3)),
        lines("row", torch.tensor([0]), net[[3]], (3, 3)),
    ]
    expected = base.clone()
    for each in saved:
        each.write(expected, each.values)
    found = LineChanges.of(base, saved).block(0, 6)
    assert found.rank == 4
    torch.testing.assert_close(base + found.left @ found.right, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_the_rank_is_at_most_that_of_the_matrix(shape):
    base, net = torch.zeros(shape), torch.randn(shape)
    every = [torch.arange(size) for size in shape]
    saved = [
        lines("column", every[1], net),
        lines("row", every[0], net),
    ]
    found = LineChanges.of(base, saved).block(0, shape[0]).at_most_full()
    assert found.rank == 3
    assert torch.equal(found.left @ found.right, net.double())


def test_another_base_is_refused(tmp_path):
    base, inputs, own = made(bert)
    trained(base, inputs, tmp_path / "a.safetensors", **own)
    base.bert.pooler.dense.bias.data += 1
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense\.bias has other values than the base model"):
        export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    base, *_ = made(bert)
    base.classifier = nn.Linear(8, 5).double()
    with pytest.raises(
        ValueError, match=r"classifier\.\w+ has the shape .* build the base with an output of that size"
    ):
        export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_rank_that_cannot_be_is_refused(rank, tmp_path):
    with pytest.raises(ValueError, match=r"max_rank=.* is not a number of ranks; choose an integer of at least 1, or"):
        export_lora(tmp_path / "a.safetensors", nn.Linear(2, 2), tmp_path / "adapter", max_rank=rank)


def test_a_folder_that_cannot_be_written_is_left_as_it_is(tmp_path):
    base, inputs, own = made(bert)
    trained(base, inputs, tmp_path / "a.safetensors", **own)
    (tmp_path / "file").write_text("content")
    with pytest.raises(OSError, match="file"):
        export_lora(tmp_path / "a.safetensors", base, tmp_path / "file" / "adapter")
    with pytest.raises(FileNotFoundError, match="none' does not exist"):
        export_lora(tmp_path / "none", base, tmp_path / "adapter")
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "file"}
    assert (tmp_path / "file").read_text() == "content"


def test_an_earlier_folder_is_replaced(tmp_path):
    base, inputs, own = made(bert)
    trained(base, inputs, tmp_path / "a.safetensors", **own)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old").write_text("old")
    export_lora(SliceFile.read(tmp_path / "a.safetensors"), base, tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_the_model_card(tmp_path):
    base, inputs, own = made(bert)
    trained(base, inputs, tmp_path / "a.safetensors", **own)
    export_lora(tmp_path / "a.safetensors", base, tmp_path / "adapter")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.to_dict() == {"base_model": "some/base", "library_name": "peft", "tags": ["lora", "slicefine"]}
    assert "computes what the trained model computes, up to rounding" in card.text
    assert "| `query` | 2 | 6 |" in card.text
    assert "Stored whole: `classifier`." in card.text


def test_peft_finds_the_base_model(tmp_path, monkeypatch):
    base, inputs, own = made(bert, torch.float32)
    base.save_pretrained(tmp_path / "base")
    net = trained(base, inputs, tmp_path / "a.safetensors", **own)
    file = replace(SliceFile.read(tmp_path / "a.safetensors"), base_model=str(tmp_path / "base"))
    export_lora(file, base, tmp_path / "adapter")
    monkeypatch.setattr("peft.auto.check_file_exists_on_hf_hub", lambda *_, **__: False)  # asks for a tokenizer
    found = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert error(outputs(found, inputs), outputs(net, inputs)) < 1e-5
