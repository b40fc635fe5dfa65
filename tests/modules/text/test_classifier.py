"""TextClassifier compared with transformers: logits, losses, schedule, checkpoints, export."""

import ast
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
    dynamic_module_utils,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from slicefine_pl import SliceFineCallback
from slicefine_pl.data import TextDataModule
from slicefine_pl.data.text.tokenization import TextTokenizer
from slicefine_pl.inputs import TextInput
from slicefine_pl.modules import CausalLanguageModel, TextClassifier
from slicefine_pl.modules.text.mean_pooling import MeanPoolingConfig
from slicefine_pl.pretrained import locate

WORDS = ("film", "plot", "movie", "acting", "dull", "great")
TEXTS = ["a good film", "the plot was not very good", "dull", "i hated it but liked the acting"]


@pytest.fixture
def batch(tiny_bert):
    return {**AutoTokenizer.from_pretrained(tiny_bert)(TEXTS, padding=True, return_tensors="pt")}


def trainer(folder: Path, **settings) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**quiet, "enable_checkpointing": False, **settings})


def loader(batch, labels, size=2):
    rows = [{name: value[row] for name, value in {**batch, "labels": labels}.items()} for row in range(len(labels))]
    return DataLoader(rows, batch_size=size)


def test_mean_pooling_is_the_mean_over_real_tokens(tiny_bert, batch):
    """Padding must not count: the reference takes the texts one at a time, without any."""
    module = TextClassifier(str(tiny_bert), num_classes=3, pooling="mean").eval()
    encoder = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    means = torch.cat([encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1) for text in TEXTS])
    torch.testing.assert_close(module(batch), module.model.classifier(means))
    assert all(part.training for part in TextClassifier(str(tiny_bert), num_classes=3, pooling="mean").modules())
    assert not any("pooler" in name for name, _ in module.named_parameters())


@pytest.mark.parametrize("pooling", ["default", "mean"])
def test_loss_and_probabilities_are_those_of_transformers(tiny_bert, batch, pooling):
    module = TextClassifier(str(tiny_bert), num_classes=3, pooling=pooling).eval()
    labels = torch.tensor([0, 2, 1, 2])
    expected = module.model(**batch, labels=labels)
    module.log = lambda *_, **__: None
    torch.testing.assert_close(module.training_step({**batch, "labels": labels}, 0), expected.loss)
    torch.testing.assert_close(module.predict_step(batch, 0), F.softmax(expected.logits, -1))


@pytest.mark.parametrize("pooling", ["default", "mean"])
def test_regression_is_one_output_and_squared_error(tiny_bert, batch, pooling):
    module = TextClassifier(str(tiny_bert), num_classes=1, pooling=pooling).eval()
    labels = torch.tensor([0.5, -2.0, 1.0, 3.0])
    module.log = lambda *_, **__: None
    torch.testing.assert_close(
        module.training_step({**batch, "labels": labels}, 0), module.model(**batch, labels=labels).loss
    )
    assert module.predict_step(batch, 0).shape == (4,)
    assert module.label_names is None


@pytest.mark.filterwarnings("ignore")
def test_metrics_are_those_of_sklearn(tiny_bert, batch, tmp_path):
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    module = TextClassifier(str(tiny_bert), num_classes=3)
    module.untrained_head = False  # random on purpose
    labels = torch.tensor([0, 2, 1, 2])
    [scores] = trainer(tmp_path).validate(module, loader(batch, labels), verbose=False)
    guess = module.eval()(batch).argmax(-1)
    assert scores["val/accuracy"] == pytest.approx(accuracy_score(labels, guess))
    assert scores["val/f1"] == pytest.approx(f1_score(labels, guess, average="macro"))
    assert scores["val/matthews"] == pytest.approx(matthews_corrcoef(labels, guess))

    module = TextClassifier(str(tiny_bert), num_classes=1)
    module.untrained_head = False
    values = torch.tensor([0.5, -2.0, 1.0, 3.0])
    [scores] = trainer(tmp_path).test(module, loader(batch, values), verbose=False)
    guess = module.eval()(batch)[:, 0].detach()
    assert scores["test/pearson"] == pytest.approx(pearsonr(guess, values).statistic, abs=1e-4)
    assert scores["test/spearman"] == pytest.approx(spearmanr(guess, values).statistic, abs=1e-4)
    assert scores["test/loss"] == pytest.approx(F.mse_loss(guess, values).item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [1 / 3, 2 / 3, *((1 + math.cos(math.pi * step / 8)) / 2 for step in range(8))]),
        ("constant", [1 / 3, 2 / 3, *[1] * 8]),
    ],
)
def test_rates_rise_over_the_warm_up_and_fall(tiny_bert, batch, tmp_path, decay, expected):
    """Ten steps, a fifth of them warm-up; the head has its own peak."""
    rates = []

    class Spy(TextClassifier):
        def on_before_optimizer_step(self, optimizer):
            rates.append([group["lr"] for group in optimizer.param_groups])

    module = Spy(str(tiny_bert), num_classes=2, lr=0.1, head_lr=0.5, warmup=0.2, decay=decay)
    trainer(tmp_path, max_epochs=5).fit(module, loader(batch, torch.tensor([0, 1, 0, 1])))
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected)[:, None] * torch.tensor([0.1, 0.5]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "epochs", "expected"),
    [
        ({}, 4, [4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),  # as if never stopped: eight steps, two up and six down
        ({}, 8, [12 / 12, 11 / 12, 10 / 12, 9 / 12, 8 / 12]),  # sixteen steps: four up and twelve down
        ({"lr": 0.3, "weight_decay": 0.2}, 4, [4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),  # new settings count from here on
    ],
)
def test_a_resumed_run_follows_its_own_schedule(tiny_bert, batch, tmp_path, settings, epochs, expected):
    """Stopped after four of eight steps, then gone on for the same or another total, with the same or another rate."""
    data = loader(batch, torch.tensor([0, 1, 0, 1]))
    common = {"num_classes": 2, "lr": 0.1, "head_lr": 0.5, "weight_decay": 0.1, "warmup": 0.25}

    class Spy(TextClassifier):
        def on_fit_start(self):
            self.seen = []

        def on_train_start(self):
            self.look()

        def on_train_batch_end(self, *_):
            self.look()
            if self.global_step == 4 and not self.trainer.ckpt_path:
                self.trainer.save_checkpoint(tmp_path / "half.ckpt")

        def look(self):  # at the settings of the next step
            self.seen.append([(group["lr"], group["weight_decay"]) for group in self.optimizers().param_groups])

    whole, resumed = Spy(str(tiny_bert), **common), Spy(str(tiny_bert), **{**common, **settings})
    trainer(tmp_path, max_epochs=4).fit(whole, data)
    trainer(tmp_path, max_epochs=epochs).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt")
    lr, decay = settings.get("lr", 0.1), settings.get("weight_decay", 0.1)
    wanted = torch.tensor([[(lr * factor, decay), (0.5 * factor, decay)] for factor in expected])
    torch.testing.assert_close(torch.tensor(resumed.seen[:5]), wanted)
    if not settings and epochs == 4:
        assert resumed.seen == whole.seen[4:]  # to the last bit


@pytest.mark.filterwarnings("ignore")
def test_only_what_requires_a_gradient_is_optimised(tiny_bert, batch, tmp_path):
    module = TextClassifier(str(tiny_bert), num_classes=2)
    module.model.bert.requires_grad_(False)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, loader(batch, torch.tensor([0, 1, 0, 1])))
    optimised = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.model.classifier.parameters()}


def test_head_is_what_is_not_the_encoder(tiny_bert):
    for pooling in ("default", "mean"):
        module = TextClassifier(str(tiny_bert), num_classes=2, pooling=pooling)
        assert {id(p) for p in module.head()} == {id(p) for p in module.model.classifier.parameters()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooling", ["default", "mean"])
def test_checkpoint_builds_the_module_anew(tiny_bert, batch, tmp_path, pooling):
    module = TextClassifier(str(tiny_bert), label_names=["no", "yes", "well"], pooling=pooling)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, loader(batch, torch.tensor([0, 1, 0, 2])))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = TextClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert (again.label_names, again.untrained_head) == (["no", "yes", "well"], False)
    assert torch.equal(again.eval()(batch), module.eval()(batch))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooling", ["default", "mean"])
def test_gradient_checkpointing_changes_memory_not_gradients(tiny_bert, batch, pooling):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        module = TextClassifier(str(tiny_bert), num_classes=2, pooling=pooling, gradient_checkpointing=checkpointing)
        torch.manual_seed(1)
        module(batch).square().sum().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert module.model.is_gradient_checkpointing
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooling", ["default", "mean"])
@pytest.mark.parametrize("labels", [["down", "up"], None], ids=["classes", "regression"])
def test_the_three_lines_of_transformers_agree_with_the_module(tiny_bert, tmp_path, monkeypatch, pooling, labels):
    """As in a process without this package: there the mean-pooled model comes from the code inside the export."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "code"))
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, MeanPoolingConfig.model_type)
    module = TextClassifier(str(tiny_bert), 2 if labels else 1, labels, pooling).eval()
    folder = module.export(tmp_path / "export")
    lines = module.example(folder).splitlines()
    assert len(lines) == 3
    names, printed = {}, []
    exec("\n".join(lines), {"print": printed.append}, names)
    assert type(names["classify"].model).__module__.startswith(("transformers.", "transformers_modules."))
    tokens = AutoTokenizer.from_pretrained(tiny_bert)("what a wonderful film", return_tensors="pt")
    output = module.predict_step(dict(tokens), 0)[0]
    [[answer]] = printed
    assert answer["score"] == pytest.approx(output.max().item(), abs=1e-5)
    assert labels is None or answer["label"] == labels[int(output.argmax())]


def pairs(tiny_bert, folder, **settings):
    """A data module of pairs of texts, whether both say the same."""
    words = ("good", "bad")
    path = folder / "pairs.jsonl"
    rows = [
        {"title": f"a {one} film {word}", "body": f"it was {two} very", "label": "same" if one == two else "other"}
        for one in words for two in words for word in WORDS
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return TextDataModule(str(path), tokenizer=str(tiny_bert), batch_size=8, **settings)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooling", ["default", "mean"])
def test_a_model_of_pairs_predicts_pairs_from_everywhere(tiny_bert, tmp_path, monkeypatch, pooling):
    """From the module, its checkpoint, its export and the printed lines: the same, cut where training cut."""
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "code"))
    data = pairs(tiny_bert, tmp_path, text_columns=["title", "body"], max_length=9)
    module = TextClassifier(str(tiny_bert), label_names=data.label_names, pooling=pooling, lr=0.01)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    folder = module.export(tmp_path / "export")
    assert module.input == TextInput(("title", "body"), max_length=9, limit=32)

    two = ("what a wonderful film", "i liked it")
    tokens = AutoTokenizer.from_pretrained(tiny_bert)(*two, truncation=True, max_length=9, return_tensors="pt")
    assert tokens["input_ids"].shape == (1, 9)
    expected = module.eval().predict_step(tokens, 0)

    def predict(given, tokenizer, **settings):
        asked = TextDataModule(tokenizer=str(tokenizer), predict_text=two[0], **settings)
        return torch.cat(trainer(tmp_path).predict(given, asked))

    pair = {"predict_text_pair": two[1]}
    for given, tokenizer in (
        (module, tiny_bert),
        (TextClassifier.load_from_checkpoint(tmp_path / "a.ckpt"), tiny_bert),
        (TextClassifier(str(folder)), folder),
    ):
        torch.testing.assert_close(predict(given, tokenizer, **pair), expected)
        with pytest.raises(ValueError, match=r"trained on pairs of texts \(title, body\), and these are single texts"):
            predict(given, tokenizer)
        with pytest.raises(
            ValueError, match=r"max_length=12 contradicts the trained network, which saw data.max_length=9"
        ):
            predict(given, tokenizer, max_length=12, **pair)

    printed = []
    exec(module.example(folder), {"print": printed.append})
    assert module.example(folder).endswith("# text is 'title', text_pair is 'body'")
    assert printed[0]["label"] == module.label_names[int(expected.argmax())]
    assert printed[0]["score"] == pytest.approx(expected.max().item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_decides_how_texts_are_cut(tiny_bert, tmp_path, monkeypatch):
    """The trainer loads it after the data were read; another length is refused, a missing one is filled in."""
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))
    data = pairs(tiny_bert, tmp_path, text_columns=["title", "body"], max_length=9)
    module = TextClassifier(str(tiny_bert), label_names=data.label_names)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    [expected] = run.test(module, data, verbose=False)

    def test(**settings):
        fresh = TextClassifier(str(tiny_bert), label_names=data.label_names)
        served = pairs(tiny_bert, tmp_path, **settings)
        return trainer(tmp_path).test(fresh, served, ckpt_path=tmp_path / "a.ckpt", verbose=False)

    assert test(text_columns=["title", "body"]) == [expected]
    with pytest.raises(ValueError, match=r"max_length=12 contradicts the trained network, which saw data.max_length=9"):
        test(text_columns=["title", "body"], max_length=12)
    with pytest.raises(ValueError, match=r"trained on pairs of texts .*, and these are single texts; give as many"):
        test(text_columns=["title"], max_length=9)


def test_training_goes_on_from_an_export_with_longer_texts(tiny_bert, tmp_path):
    module = TextClassifier(str(tiny_bert), num_classes=2)
    module.input = TextInput(("text",), max_length=9, limit=32)
    folder = str(module.export(tmp_path / "export"))
    assert (TextTokenizer(folder, None).max_length, TextTokenizer(folder, 32).max_length) == (9, 32)
    with pytest.raises(ValueError, match=r"max_length=33 is out of range; .* allows 3 to 32 tokens"):
        TextTokenizer(folder, 33)


@pytest.mark.parametrize(
    "changes", [{"truncation_side": "left"}, {"do_lower_case": False}, {"model_input_names": ["input_ids"]}], ids=str
)
def test_an_export_carries_the_tokenizer_of_training(tiny_bert, tmp_path, monkeypatch, changes):
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))
    backbone = tmp_path / "backbone"
    shutil.copytree(tiny_bert, backbone)
    settings = backbone / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    folder = TextClassifier(str(backbone), num_classes=2).export(tmp_path / "export")
    with pytest.warns(UserWarning, match="max_length=6"):
        one, other = (
            TextTokenizer(str(place), 6).encode([["A good film with a plot"], ["Dull"]]) for place in (backbone, folder)
        )
    assert one == other


def test_exported_code_stands_on_torch_and_transformers_alone(tiny_bert, tmp_path):
    folder = TextClassifier(str(tiny_bert), num_classes=2, pooling="mean").export(tmp_path / "export")
    tree = ast.parse((folder / "mean_pooling.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {module.split(".")[0] for module in modules} == {"torch", "transformers", "inspect", "typing"}


@pytest.mark.parametrize("pooling", ["default", "mean"])
def test_an_export_is_a_backbone_with_a_trained_head(tiny_bert, batch, tmp_path, pooling):
    module = TextClassifier(str(tiny_bert), label_names=["down", "up", "flat"], pooling=pooling).eval()
    folder = module.export(tmp_path / "export")
    assert (folder / "model.safetensors").is_file()
    again = TextClassifier(str(folder))
    assert (again.label_names, again.untrained_head) == (["down", "up", "flat"], False)
    assert torch.equal(again.eval()(batch), module(batch))


def test_default_export_is_a_plain_model(tiny_bert, tmp_path):
    folder = TextClassifier(str(tiny_bert), num_classes=2).export(tmp_path / "export")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".json", ".safetensors"]


def test_export_replaces_an_export_but_no_other_folder(tiny_bert, tmp_path):
    module = TextClassifier(str(tiny_bert), num_classes=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"mine' contains other files; give a new or an empty folder"):
        module.export(tmp_path / "mine")
    for _ in range(2):
        module.export(tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "mine"]


def test_failed_export_leaves_nothing(tiny_bert, tmp_path, monkeypatch):
    module = TextClassifier(str(tiny_bert), num_classes=2)

    def full(folder):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.model, "save_pretrained", full)
    with pytest.raises(OSError, match=r"export to .* failed: .*No space left on device; give a folder on a writable"):
        module.export(tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_random_head_does_not_predict(tiny_bert, batch, tmp_path):
    module = TextClassifier(str(tiny_bert), num_classes=2)
    with pytest.raises(ValueError, match="has no trained head, so predictions would be random; give a checkpoint"):
        trainer(tmp_path).predict(module, DataLoader([batch], batch_size=None))
    trainer(tmp_path, max_steps=1).fit(module, loader(batch, torch.tensor([0, 1, 0, 1])))
    assert len(trainer(tmp_path).predict(module, DataLoader([batch], batch_size=None))) == 1


def test_decoder_without_padding_token(tmp_path):
    """GPT-2 finds a text's last token by its padding, and has no padding token of its own."""
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2, eos_token_id=19, bos_token_id=19)
    GPT2Model(config).save_pretrained(tmp_path)
    module = TextClassifier(str(tmp_path), num_classes=2).eval()
    alone = module({"input_ids": torch.tensor([[1, 2]])})
    padded = module(
        {"input_ids": torch.tensor([[1, 2, 19], [3, 4, 5]]), "attention_mask": torch.tensor([[1, 1, 0], [1] * 3])}
    )
    torch.testing.assert_close(padded[:1], alone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "num_classes=0 is too small"),
        ({"num_classes": 3, "label_names": ["a", "b"]}, r"num_classes=3 differs from the 2 label_names=\['a', 'b'\]"),
        ({"label_names": [False, "yes"]}, r"label_names=\[False, 'yes'\] has False, which is not a text"),
        ({"warmup": 1.0}, r"warmup=1.0 is not a fraction of the steps; choose 0 <= warmup < 1"),
        ({"pooling": "max"}, "pooling='max' is unknown; choose 'default' or 'mean'"),
    ],
)
def test_wrong_settings_are_refused(tiny_bert, settings, message):
    with pytest.raises(ValueError, match=message):
        TextClassifier(str(tiny_bert), **settings)


def test_missing_backbones(tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r"needs the Python package 'no_such'; run: pip install no-such"):
        TextClassifier("package:no_such/model")
    with pytest.raises(FileNotFoundError, match=r"is not a folder or file of 'slicefine_pl'; it contains .*'data'"):
        TextClassifier("package:slicefine_pl/model")
    with pytest.raises(FileNotFoundError, match="'runs/text/version_9/export' is not a folder"):
        locate("runs/text/version_9/export")
    assert locate("owner/name") == "owner/name"
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        TextClassifier(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"could not be loaded .*; give a hub name, a folder with config\.json"):
        TextClassifier(str(tmp_path))
    assert locate("bert-base-uncased") == "bert-base-uncased"
    assert Path(locate("package:slicefine_pl/data")).is_dir()


def test_a_slice_file_builds_the_trained_module(tiny_bert, batch, tmp_path):
    names = ["no", "maybe", "yes"]
    module = TextClassifier(str(tiny_bert), label_names=names, pooling="mean", lr=0.01)
    module.input = TextInput(columns=("text",), max_length=9)
    slices = SliceFineCallback(rank=2, interval=1)
    trainer(tmp_path, callbacks=[slices], max_epochs=1).fit(module, loader(batch, torch.tensor([0, 1, 2, 0])))
    slices.save(tmp_path / "a.safetensors")
    twin = TextClassifier.from_slices(tmp_path / "a.safetensors")
    assert twin.label_names == names
    assert twin.input == module.input
    assert not twin.untrained_head
    assert twin.lr == 0.01
    for name, value in module.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
    assert TextClassifier.from_slices(tmp_path / "a.safetensors", lr=0.5).lr == 0.5
    with pytest.raises(ValueError, match="was trained with TextClassifier, and this is CausalLanguageModel"):
        CausalLanguageModel.from_slices(tmp_path / "a.safetensors")
    other = TextClassifier(str(tiny_bert), label_names=["a", "b", "c"], pooling="mean")
    with pytest.raises(ValueError, match="the first that differs is 'no' there and 'a' here"):
        other.take_slices(tmp_path / "a.safetensors")
