"""slicefine diagnose on a tiny encoder: numbers against numpy and scikit-learn, words, page, refusals."""

import html
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.words import WORDS
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel

from slicefine_pl.cli.diagnose import diagnosed_model, head, measurements
from slicefine_pl.cli.diagnose.config import DiagnoseConfig, model_kind
from slicefine_pl.cli.diagnose.diagnosed_model import load, without_pretraining
from slicefine_pl.cli.diagnose.report_html import TITLES
from slicefine_pl.cli.diagnose.report_text import conclusions
from slicefine_pl.cli.main import main, make_parser
from slicefine_pl.data import TextDataModule

pytestmark = pytest.mark.filterwarnings("ignore")
FLAGS = ["--rank", "3", "--groups", "4", "--candidates", "5", "--kernel-samples", "3", "--examples", "64"]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A CSV of 500 different texts; a text is positive if it names more good words than bad ones."""
    draw, texts = random.Random(0), {}
    while len(texts) < 500:
        words = draw.choices(WORDS, k=draw.randint(4, 12))
        score = sum(
            (word in ("good", "great", "liked")) - (word in ("bad", "awful", "dull", "hated")) for word in words
        )
        texts[" ".join(words)] = score
    table = pd.DataFrame({"text": texts.keys(), "label": ["pos" if s > 0 else "neg" for s in texts.values()]})
    table["score"] = [float(score) for score in texts.values()]
    table["one"] = 1.0
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    table.to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def report(tiny_bert, reviews, tmp_path_factory):
    """What one run wrote: numbers, page, and the flags that made them."""
    folder = tmp_path_factory.mktemp("out") / "diagnosis"
    flags = ["diagnose", "--model", str(tiny_bert), "--data", str(reviews), "--folder", str(folder), *FLAGS]
    assert main(flags) == 0
    return json.loads((folder / "report.json").read_text()), (folder / "report.html").read_text(), flags, folder


def config(tiny_bert, reviews):
    return DiagnoseConfig(model=str(tiny_bert), data=str(reviews), examples=64, rank=3)


def test_spectral_balance_is_that_of_the_weights_in_the_folder(report, tiny_bert):
    numbers, *_ = report
    net = AutoModel.from_pretrained(tiny_bert)
    name = "encoder.layer.1.intermediate.dense"
    weight = net.get_parameter(f"{name}.weight").detach().double().numpy()  # (24, 16)
    for line, lines in (("row", weight), ("column", weight.T)):
        means = [np.linalg.norm(group) ** 2 / min(group.shape) for group in np.split(lines, 4)]
        output = numbers["network"]["spectral_balance"]["controls"]["pretrained"][line]["matrices"][
            f"model.bert.{name}"
        ]
        assert output["spread_of_means"] == pytest.approx(np.std(means) / np.mean(means), rel=1e-6)


def test_task_energy_is_that_of_the_examples(report, tiny_bert, reviews):
    """The inputs of the first layer are the embeddings of all tokens of the first 64 texts."""
    numbers, *_ = report
    data = TextDataModule(str(reviews), tokenizer=str(tiny_bert))
    data.setup("fit")
    net = AutoModel.from_pretrained(tiny_bert).eval()
    loader, rows = iter(data.train_dataloader()), []
    for batch in (next(loader), next(loader)):
        with torch.no_grad():
            rows.append(net.embeddings(batch["input_ids"])[batch["attention_mask"] == 1].double().numpy())
    tokens = np.concatenate(rows)
    energies = np.linalg.svd(tokens - tokens.mean(0), compute_uv=False) ** 2
    curve = energies.cumsum() / energies.sum()
    output = numbers["network"]["task_energy"]["layers"][0]
    assert [name.rsplit(".", 1)[1] for name in output["names"]] == ["query", "key", "value"]
    assert output["samples"] == {"tokens": len(tokens), "examples": 64}
    assert output["tokens"]["k_task"] == {
        f"{tau:g}": int((curve < tau).sum()) + 1 for tau in (0.5, 0.8, 0.9, 0.95, 0.99)
    }
    assert output["tokens"]["cev_at_rank"] == pytest.approx(curve[2], rel=1e-5)


def test_everything_asked_for_is_measured_on_both_networks(report):
    numbers, *_ = report
    for network in (numbers["network"], numbers["without_pretraining"]):
        found = network["slice_gradients"]
        assert len(found["slices"]) == 5
        assert all(len(step["indices"]) == 3 for step in found["slices"])
        assert found["everything"]["predicted"] <= 0.100001 * found["loss"]
        assert found["everything"]["decrease"] > found["everything"]["predicted"] / 2
        assert sum(share["energy"] for share in found["shares"].values()) == pytest.approx(1, rel=1e-5)
        assert len(network["kernel"]["dense"]["eigenvalues"]) == 3 * 2
        sizes = [np.prod(shape) for shape in network["matrices"].values()]
        columns = [3 * shape[0] for shape in network["matrices"].values()]
        assert network["kernel"]["parameters"] == pytest.approx(sum(columns) / sum(sizes))
    assert numbers["without_pretraining"]["spectral_balance"]["controls"] == {}
    assert numbers["network"]["slice_gradients"]["loss"] != numbers["without_pretraining"]["slice_gradients"]["loss"]


def test_the_setup_tells_how_to_make_it_again(report):
    numbers, _, flags, folder = report
    setup = numbers["setup"]
    assert setup["model"] == flags[2]
    assert (setup["rank"], setup["seed"], setup["training_examples"], setup["outputs"]) == (3, 0, 64, 2)
    assert setup["versions"]["torch"] == torch.__version__.split("+")[0]
    assert setup["folder"] == str(folder)


def test_a_folder_that_cannot_be_written_is_refused_with_the_flag(tiny_bert, reviews, tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = ["--model", str(tiny_bert), "--data", str(reviews), "--folder", str(tmp_path / "file" / "new"), *FLAGS]
    assert main(["diagnose", *flags]) == 2
    assert capsys.readouterr().err.strip().endswith("set --folder to a writable folder.")


def test_each_measurement_is_announced_and_reports_its_progress(tiny_bert, reviews, monkeypatch):
    monkeypatch.setattr(measurements, "PROGRESS_SECONDS", 0.0)
    lines = []
    given = replace(config(tiny_bert, reviews), candidates=1, kernel_samples=2)
    measurements.measure_model(load(given), given, control=True, progress=lines.append)
    announced = [line for line in lines if not line.startswith(" ")]
    assert announced == ["1 of 3: task energy ...", "2 of 3: tangent kernel ...", "3 of 3: slice gradients ..."]
    assert all("  1 batches done" in lines[lines.index(line) :] for line in announced)


@pytest.mark.parametrize("written", ["title,body", "[title, body]"])
def test_columns_are_named_as_in_the_recipes_too(written):
    parsed = make_parser("diagnose").parse_args(["diagnose", "--text-columns", written])
    assert parsed.text_columns == ("title", "body")


def test_what_was_given_is_counted(report, reviews, tiny_bert):
    numbers, *_ = report
    data = TextDataModule(str(reviews), tokenizer=str(tiny_bert))
    data.setup("fit")
    counts = {"training": len(data._datasets["train"]), "validation": len(data._datasets["val"])}
    assert numbers["setup"]["given_examples"] == counts
    assert numbers["setup"]["validation_examples"] <= counts["validation"] < counts["training"] < 500


def test_the_page_needs_nothing_else_and_tells_everything(report):
    """No link leads out; every picture is inside, with its meaning, its theory and its measurement."""
    numbers, page, *_ = report
    assert not re.findall(r"""(?:href|src)=["'](?!data:image/png;base64,)""", page)
    assert "http" not in page
    assert page.count("data:image/png;base64,iVBOR") == len(TITLES) == 4
    text = html.unescape(page)
    for output in [
        *numbers["conclusions"].values(),
        *(each for kinds in numbers["captions"].values() for each in kinds.values()),
    ]:
        assert output in text


def test_a_report_is_replaced_only_when_told_and_an_equal_seed_repeats_it(report, capsys):
    numbers, _, flags, folder = report
    assert main(flags) == 2
    assert "contains report.html already; give another --folder, or --overwrite" in capsys.readouterr().err
    assert main([*flags, "--overwrite", "--no-control"]) == 0
    again = json.loads((folder / "report.json").read_text())
    assert again["without_pretraining"] is None
    for each in (numbers, again):
        del each["network"]["seconds"]
    assert again["network"] == numbers["network"]


def test_the_fitted_head_is_the_one_scikit_learn_finds(tiny_bert, reviews, monkeypatch):
    """On standardised inputs, with the same penalty; the body stays bit-equal."""
    monkeypatch.setattr(diagnosed_model, "HEAD_EXAMPLES", 128)
    subject = load(config(tiny_bert, reviews))
    pretrained = AutoModel.from_pretrained(tiny_bert).eval()
    body = subject.module.model.bert.state_dict()
    assert all(torch.equal(body[name], value) for name, value in pretrained.state_dict().items() if name in body)
    count = sum(len(batch["labels"]) for batch in subject.head_examples)
    assert 128 <= count < 160  # whole batches
    assert subject.head == f"was fitted here to {count:,} examples"
    with torch.no_grad():
        rows = [
            subject.module.model.bert(b["input_ids"], attention_mask=b["attention_mask"]).pooler_output
            for b in subject.head_examples
        ]
        logits = torch.cat([subject.module(batch) for batch in subject.head_examples])
    features = torch.cat(rows).double().numpy()
    labels = torch.cat([batch["labels"] for batch in subject.head_examples]).numpy()
    scaled = (features - features.mean(0)) / (features.std(0, ddof=1) + 1e-6)
    # Two columns of weights ±w/2 pay half of the penalty of one vector w.
    reference = LogisticRegression(C=2 / (head.PENALTY * len(scaled)), tol=1e-10, max_iter=10_000).fit(scaled, labels)
    margin = (logits[:, 1] - logits[:, 0]).numpy()
    np.testing.assert_allclose(margin, reference.decision_function(scaled), atol=1e-3)


def test_the_control_is_random_and_has_a_head_of_its_own(tiny_bert, reviews):
    subject = load(replace(config(tiny_bert, reviews), task="regression", label_column="score"))
    assert subject.loss_name == "squared error"
    before = {name: value.clone() for name, value in subject.module.state_dict().items()}
    control = without_pretraining(subject, seed=3)
    assert all(torch.equal(value, before[name]) for name, value in subject.module.state_dict().items())
    name = "model.bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(control.module.get_parameter(name), subject.module.get_parameter(name))
    losses = torch.cat([control.losses(batch).detach() for batch in control.head_examples])
    labels = torch.cat([batch["labels"] for batch in control.head_examples])
    assert losses.mean() < labels.var()  # better than always telling the mean


def test_a_head_that_is_trained_already_is_kept(tiny_bert, reviews, tmp_path):
    subject = load(config(tiny_bert, reviews))
    folder = subject.module.export(tmp_path / "export")
    again = load(replace(config(tiny_bert, reviews), model=str(folder)))
    assert again.head == "came with the model"
    assert torch.equal(again.module.model.classifier.weight, subject.module.model.classifier.weight)


def test_images_too(tmp_path):
    """A tiny vision transformer with random weights, on the digits."""
    vit = {"model_type": "vit", "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(vit | {"hidden_size": 16, "intermediate_size": 24}))
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    out = tmp_path / "out"
    assert main(["diagnose", "--model", str(folder), "--size", "32", "--folder", str(out), *FLAGS]) == 0
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["setup"]["data"] == "digits"
    assert numbers["setup"]["outputs"] == 10
    first = next(each for each in numbers["network"]["task_energy"]["layers"] if "q_proj" in each["names"][0])
    assert first["samples"] == {"tokens": 64 * 17, "examples": 64}


@pytest.mark.slow
def test_the_control_normalises_by_its_own_statistics(tmp_path):
    """Those of the last layer with pretrained weights, and of the inputs that random ones make: as one pass sees it."""
    images = DiagnoseConfig(model="timm/resnet10t@random", size=32, examples=64, rank=3)
    control = without_pretraining(load(images), seed=1)
    norms = [layer for layer in control.module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    seen = {}
    for layer in norms:
        layer.register_forward_pre_hook(lambda layer, given: seen.update({layer: given[0].mean((0, 2, 3))}))
        layer.train()
        layer.momentum = 0.0
    means = [layer.running_mean.clone() for layer in norms]
    with torch.no_grad():
        inputs = []
        for batch in control.train:
            control.module(batch)
            inputs.append([seen[layer] for layer in norms])
    for mean, *own in zip(means, *inputs, strict=True):
        torch.testing.assert_close(mean, torch.stack(own).mean(0), rtol=1e-4, atol=1e-5)


def test_a_size_other_than_that_of_training_is_noted(monkeypatch, capsys):
    monkeypatch.setattr(diagnosed_model, "stored_input", lambda *_: SimpleNamespace(size=64))
    diagnosed_model._load_image(DiagnoseConfig(model="timm/resnet10t@random", size=32))
    assert "the model was trained on images of 64 pixels; --size 32 replaces that" in capsys.readouterr().out


def test_batches_are_taken_until_there_are_enough_examples():
    small = [{"labels": torch.zeros(10), "name": "n"} for _ in range(9)]
    assert [len(diagnosed_model._first(small, wanted)) for wanted in (1, 10, 64, 500)] == [1, 1, 7, 9]
    assert list(diagnosed_model._first(small, 1)[0]) == ["labels"]


@pytest.mark.parametrize(
    ("model", "given", "kind"),
    [
        ("timm/resnet18", None, "image"),
        ("torchvision/resnet18@random", None, "image"),
        ("bert-base-uncased", None, "text"),
        ("google/vit-base-patch16-224", "image", "image"),
    ],
)
def test_the_kind_is_reported_from_the_model(model, given, kind):
    assert model_kind(model, given) == kind


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rank", "0"], "rank=0 is too small; give --rank of at least 1"),
        (["--examples", "63"], "examples=63 is too small"),
        (["--kernel-samples", "65"], "kernel-samples=65 is more than examples=64"),
        (["--model", "package:no_such_package/model"], "needs the Python package 'no_such_package'"),
        (["--model", "pytorchvideo/x3d_xs"], "takes videos; diagnose measures models for texts and images"),
        (["--model", "recipes/configs/smoke/tiny_videomae"], "takes videos"),
        (["--model", "/no/such/folder"], "'/no/such/folder' is not a folder"),
        (["--data", "/no/such/file.csv"], "'/no/such/file.csv' is not a file or folder"),
        (["--rank", "17"], "17"),
        (["--targets", "nowhere"], "'nowhere' does not match"),
        (["--targets", "("], "targets='(' is not a regular expression"),
        (["--task", "regression", "--label-column", "one"], "have the label 1, so that there is nothing to learn"),
        (["--label-column", "stars"], "stars"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_in_one_sentence_before_a_head_is_fitted(
    flags, message, tiny_bert, reviews, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(diagnosed_model, "fit_head", lambda *_: pytest.fail("too late"))
    given = ["diagnose", "--model", str(tiny_bert), "--data", str(reviews), "--folder", str(tmp_path / "out"), *FLAGS]
    assert main([*given, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_too_few_examples_are_refused(tiny_bert, tmp_path, capsys):
    file = tmp_path / "few.csv"
    rows = [f"{a} {b} {c},{'pos' if a < b else 'neg'}" for a in WORDS[:4] for b in WORDS[4:8] for c in WORDS[8:11]]
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    assert (
        main(["diagnose", "--model", str(tiny_bert), "--data", str(file), "--folder", str(tmp_path / "o"), *FLAGS]) == 2
    )
    assert "examples are too few to measure anything" in capsys.readouterr().err


def test_words_follow_the_numbers(report):
    """A control that is alike, and one that is not; weights that are balanced, and some that are not."""
    numbers, *_ = report
    own, control, setup = (json.loads(json.dumps(numbers[key])) for key in ("network", "without_pretraining", "setup"))
    own_k = own["task_energy"]["summary"]["tokens"]["k_task"]["0.9"]
    control_k = control["task_energy"]["summary"]["tokens"]["k_task"]["0.9"]
    medians = {name: own["spectral_balance"]["controls"][name]["row"]["median"] for name in ("pretrained", "Gaussian")}
    medians["Gaussian"]["spread_of_means"] = 0.1
    for factor, alike, spread, balanced in ((1.1, True, 0.11, True), (3, False, 0.5, False)):
        control_k["median"] = factor * own_k["median"]
        medians["pretrained"]["spread_of_means"] = spread
        words = conclusions(own, control, setup)
        assert all(text.startswith("In short: ") for text in words.values())
        assert ("not the pretraining" in words["Which rank?"]) == alike
        assert ("as balanced as chance" in words["Is every slice a winner?"]) == balanced
        assert ("less balanced than chance" in words["Is every slice a winner?"]) != balanced
    own["slice_gradients"]["everything"]["decrease"] = -1.0
    assert "No step of all weights" in conclusions(own, None, setup)["How much to expect?"]
    assert "check your data" in conclusions(own, None, setup)["How much to expect?"]
    wanted = own["task_energy"]["summary"]["tokens"]["k_task"]["0.9"]["median"]
    for rank, meaning in ((wanted + 1, "you do not need a larger one"), (wanted - 1, "train with both")):
        assert meaning in conclusions(own, None, setup | {"rank": rank})["Which rank?"]
