"""Which layers are sliced and what is trained in full, on small models of the real libraries."""

import warnings

import pytest
import timm
import torchvision
import transformers
from torch import nn

from slicefine_pl.network.heads import find_heads
from slicefine_pl.slicing import slice_model

TEXT = {"vocab_size": 50, "num_labels": 3}


def bert(name: str) -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, **TEXT
    )
    return getattr(transformers, name)(config)


def gpt2(name: str) -> nn.Module:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, **TEXT)
    return getattr(transformers, name)(config)


def llama4() -> nn.Module:
    """A model whose backbone is not named as its class says."""
    config = transformers.Llama4TextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, intermediate_size_mlp=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_local_experts=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.Llama4ForCausalLM(config)


def pytorchvideo_mvit() -> nn.Module:
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    return create_multiscale_vision_transformers(
        spatial_size=32, temporal_size=4, depth=1, patch_embed_dim=16, head_num_classes=3, norm="layernorm"
    )


MODELS = {
    "bert": (lambda: bert("BertForSequenceClassification"), [("classifier", False)]),
    "bert backbone": (lambda: bert("BertModel"), []),
    "bert language model": (lambda: bert("BertForMaskedLM"), [("cls", True)]),
    "llama 4": (llama4, [("lm_head", True)]),
    "gpt2": (lambda: gpt2("GPT2ForSequenceClassification"), [("score", False)]),
    "gpt2 language model": (lambda: gpt2("GPT2LMHeadModel"), [("lm_head", True)]),
    "distilbert": (
        lambda: transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(dim=16, hidden_dim=24, n_layers=1, n_heads=2, **TEXT)
        ),
        [("pre_classifier", False), ("classifier", False)],
    ),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3), [("head", False)]),
    "timm without head": (lambda: timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0), []),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 24, num_classes=3),
        [("heads.head", False)],
    ),
    "torchvision resnet": (lambda: torchvision.models.resnet18(num_classes=3), [("fc", False)]),
    "torchvision vgg": (lambda: torchvision.models.vgg11(num_classes=3), [("classifier.6", False)]),
    "pytorchvideo mvit": (pytorchvideo_mvit, [("head.proj", False)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_heads_are_found(name):
    build, heads = MODELS[name]
    net = nn.ModuleDict({"model": build()})
    assert [(head.name, head.pretrained) for head in find_heads(net)] == [(f"model.{name}", new) for name, new in heads]


def test_by_default_all_supported_layers_but_the_head_are_sliced_and_the_head_is_trained():
    net = bert("BertForSequenceClassification")
    handle = slice_model(net, rank=2)
    linears = {name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    assert {view.name for view in handle} == linears - {"classifier"}
    assert list(handle.fully_trained) == ["classifier.weight", "classifier.bias"]
    assert handle.skipped["classifier"] == "trained in full"
    assert handle.skipped["bert.embeddings.word_embeddings"] == "not sliced by default"
    required = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert required == {f"{name}.slicefine.trainable" for name in linears - {"classifier"}} | set(handle.fully_trained)


def test_gpt2_slices_conv1d_and_not_the_tied_head():
    net = gpt2("GPT2LMHeadModel")
    handle = slice_model(net, rank=2)
    assert {view.name.split(".")[-1] for view in handle} == {"c_attn", "c_proj", "c_fc"}
    assert handle.skipped["lm_head"] == "its weight is tied"
    assert handle.fully_trained == {}


def test_a_pretrained_head_stays_frozen_unless_named():
    net = bert("BertForMaskedLM")
    assert "cls.predictions.transform.dense" not in {view.name for view in slice_model(net, rank=2)}
    handle = slice_model(bert("BertForMaskedLM"), rank=2, targets="transform")
    assert [view.name for view in handle] == ["cls.predictions.transform.dense"]


def test_without_a_head_a_warning_says_what_could_be_named():
    net = bert("BertModel")
    with pytest.warns(UserWarning, match=r"No new output head was found.*also_train='pooler.dense'") as notice:
        slice_model(net, rank=2)
    assert len(notice) == 1


def test_patterns_that_leave_the_head_frozen_warn():
    with pytest.warns(UserWarning, match="leaves the output head classifier frozen"):
        slice_model(bert("BertForSequenceClassification"), rank=2, also_train="LayerNorm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = slice_model(bert("BertForSequenceClassification"), rank=2, also_train=["LayerNorm", "^classifier"])
    assert "bert.embeddings.LayerNorm.weight" in handle.fully_trained


def test_a_head_that_is_trained_under_another_name_does_not_warn():
    net = bert("BertForMaskedLM")  # cls.predictions.decoder is tied to the embeddings
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = slice_model(net, rank=2, also_train="word_embeddings")
    assert handle.fully_trained["bert.embeddings.word_embeddings.weight"] is net.get_output_embeddings().weight


def test_targets_and_also_train_are_searched_as_regular_expressions():
    net = bert("BertForSequenceClassification")
    handle = slice_model(
        net, rank=2, targets=[r"attention\.self", r"output\.dense$"], also_train=["classifier", r"\.bias$"]
    )
    assert [view.name.split("layer.0.")[1] for view in handle] == [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "output.dense",
    ]
    assert "bert.encoder.layer.0.attention.self.query.bias" in handle.fully_trained


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"targets": "decoder"},
            r"targets='decoder' does not match any layer or parameter name; similar names: bert\.encoder\.layer\.0",
        ),
        (
            {"also_train": "clasifier"},
            r"also_train='clasifier' .*; similar names: classifier\.weight, classifier\.bias\.$",
        ),
        (
            {"also_train": "head"},
            r"the last names of this network: bert\.pooler\.dense\.bias, classifier\.weight, classifier\.bias\.$",
        ),
        ({"targets": ["attention", "decoder"]}, "targets='decoder' does not match"),
        ({"targets": "("}, r"targets='\(' is not a regular expression"),
        ({"targets": "LayerNorm"}, "targets='LayerNorm' does not match any layer or parameter name"),
        (
            {"targets": "embeddings", "backend": "compact"},
            r"word_embeddings \(no compact layer; these have one: ",
        ),
        ({"targets": "classifier"}, r"classifier \(trained in full\)"),
        ({"also_train": "lm_head"}, "also_train='lm_head' does not match any parameter name"),
    ],
)
def test_patterns_that_match_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        slice_model(bert("BertForSequenceClassification"), **({"rank": 2} | settings))


def test_naming_a_tied_weight_is_refused():
    with pytest.raises(ValueError, match=r"lm_head \(its weight is tied\)"):
        slice_model(gpt2("GPT2LMHeadModel"), rank=2, targets="lm_head")


def test_torch_attention_has_four_slices():
    handle = slice_model(MODELS["torchvision vit"][0](), rank=2, targets="self_attention")
    parts = ["in_proj_weight.q", "in_proj_weight.k", "in_proj_weight.v", "out_proj"]
    assert [view.name.split("self_attention.")[1] for view in handle] == parts


def test_too_few_rows_advise_columns():
    with pytest.warns(UserWarning, match=r"0: 38.3 %, 2 rows are fewer than rank=4\n.*axis='column'"):
        slice_model(nn.Sequential(nn.Linear(9, 2), nn.Linear(2, 9)), rank=4, axis="row")


def test_layers_narrower_than_the_rank_are_left_out_and_reported():
    net = torchvision.models.resnet18(num_classes=3)
    handle = slice_model(net, rank=4)  # less than 0.1 % of the parameters are worth no warning
    assert "conv1: less than 0.1 %, 3 columns are fewer than rank=4" in str(handle.frozen)
    convolutions = {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    assert {view.name for view in handle} == convolutions - {"conv1"}


def test_embeddings_and_raw_parameters_are_sliced_when_named():
    handle = slice_model(bert("BertForSequenceClassification"), rank=2, targets="word_embeddings")
    assert [view.name for view in handle] == ["bert.embeddings.word_embeddings"]
    handle = slice_model(MODELS["timm vit"][0](), rank=2, targets="pos_embed")
    assert [view.name for view in handle] == ["pos_embed"]


@pytest.mark.parametrize("targets", [None, r"layer\.\d+\.(attention|output)"])
def test_excluded_layers_stay_frozen_without_a_warning(targets):
    net = bert("BertForSequenceClassification")
    whole = slice_model(net, rank=2, targets=targets)
    others = {view.name for view in whole}
    whole.close()
    handle = slice_model(net, rank=2, targets=targets, exclude=[r"\.0\.attention", "query"])
    left_out = {name for name in others if ".0.attention" in name or "query" in name}
    assert left_out
    assert {view.name for view in handle} == others - left_out
    assert {handle.skipped[name] for name in left_out} == {"excluded"}
    with pytest.raises(ValueError, match="exclude='poolr' does not match any layer or parameter name; similar names"):
        slice_model(bert("BertForSequenceClassification"), rank=2, exclude="poolr")


def test_slicing_twice_is_refused():
    net = bert("BertForSequenceClassification")
    slice_model(net, rank=2)
    with pytest.raises(ValueError, match="already sliced"):
        slice_model(net, rank=2)
