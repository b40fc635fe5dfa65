"""TextDataModule: sources, splits, labels, and settings that are refused."""

import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from transformers import AutoTokenizer

from slicefine_pl.data import TextDataModule
from slicefine_pl.data.tables.table import Table
from slicefine_pl.data.text import demo
from slicefine_pl.data.text.glue import TASKS
from slicefine_pl.inputs import TextInput

SENTENCES = [
    f"the {noun} {verb} {word}" for noun in ("film", "plot") for verb in ("is", "was") for word in ("good", "bad")
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A folder of three splits, each with both classes by name."""
    target = tmp_path / "own"
    target.mkdir()
    for name in ("train", "validation", "test"):
        rows = [f"{text},{'up' if 'good' in text else 'down'}" for text in SENTENCES]
        (target / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    return target


def module(tiny_bert, source, **settings):
    return TextDataModule(str(source), tokenizer=str(tiny_bert), max_length=None, batch_size=3, **settings)


def test_folder_of_splits(tiny_bert, folder):
    data = module(tiny_bert, folder)
    assert (data.label_names, data.num_classes) == (["down", "up"], 2)
    data.prepare_data()
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        assert [len(batch["labels"]) for batch in batches].count(3) == 2  # 8 = 3 + 3 + 2
        labels = torch.cat([batch["labels"] for batch in batches])
        assert (labels.dtype, labels.sum()) == (torch.int64, 4)
        assert all(batch["input_ids"].shape == batch["attention_mask"].shape for batch in batches)


def test_one_file_is_split_and_regression_gives_floats(tiny_bert, tmp_path):
    path = tmp_path / "all.tsv"
    path.write_text("\n".join(["said\tscore", *(f"a film {number}\t{number}" for number in range(100))]))
    data = module(tiny_bert, path, text_columns=["said"], label_column="score", task="regression")
    assert (data.label_names, data.num_classes) == (None, 1)
    data.setup("fit")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    labels = torch.cat([batch["labels"] for loader in loaders for batch in loader])
    assert labels.dtype == torch.float32
    assert labels.sort().values.tolist() == list(range(100))


def test_demo_names_are_known_without_the_network(tiny_bert, monkeypatch):
    monkeypatch.setattr(demo, "fetch", lambda: pytest.fail("network"))
    assert module(tiny_bert, "reviews").label_names == ["negative", "positive"]


def test_demo_is_split(tiny_bert, monkeypatch):
    texts = [f"film {number}" for number in range(60)]
    table = Table("reviews", [texts], ["negative", "positive"] * 30, range(1, 61))
    monkeypatch.setattr(demo, "fetch", bytes)
    monkeypatch.setattr(demo, "load_demo", lambda name, ratings: table)
    data = module(tiny_bert, "reviews")
    data.prepare_data()
    data.setup("fit")
    assert sum(len(b["labels"]) for b in data.train_dataloader()) > 30


def test_glue_holds_out_a_part_of_training_and_tests_on_validation(tiny_bert, monkeypatch):
    rows = {"sentence1": [f"a film {n}" for n in range(50)], "sentence2": ["it was good"] * 50, "label": [0, 1] * 25}
    hub = {"train": rows, "validation": {name: column[:6] for name, column in rows.items()}}
    fake = SimpleNamespace(load_dataset=lambda path, name: hub if (path, name) == ("nyu-mll/glue", "mrpc") else None)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    data = module(tiny_bert, "glue/mrpc")
    assert data.label_names == list(TASKS["mrpc"].names)
    data.setup("fit")
    sizes = [sum(len(batch["labels"]) for batch in loader()) for loader in (data.train_dataloader, data.val_dataloader)]
    assert sum(sizes) == 50
    assert 0 < sizes[1] < 12
    assert "token_type_ids" in next(iter(data.test_dataloader()))
    assert sum(len(batch["labels"]) for batch in data.test_dataloader()) == 6


def test_glue_without_a_label(tiny_bert, monkeypatch):
    rows = {"sentence": ["a film", "the plot"], "label": [1, None]}
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_: {"train": rows}))
    with pytest.raises(ValueError, match="'glue/sst2', row 2, has no label"):
        module(tiny_bert, "glue/sst2").setup("fit")


def test_glue_offline_or_without_its_package(tiny_bert, monkeypatch):
    def offline(path, name):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(OSError, match=r"GLUE task 'sst2' could not be loaded .*no route"):
        module(tiny_bert, "glue/sst2").prepare_data()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "slicefine-pl\[glue\]"'):
        module(tiny_bert, "glue/sst2").prepare_data()


def test_integer_labels_are_positions_only_in_given_names(tiny_bert, tmp_path):
    for name, labels in {"train": (1, 2, 3), "validation": (0, 1, 2), "test": (1, 2, 3)}.items():
        rows = [f"the film {number},{label}" for number, label in enumerate(labels)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    with pytest.raises(
        ValueError, match=r"validation\.csv', line 2, has the label '0', which is not one of the 3 classes"
    ):
        module(tiny_bert, tmp_path).setup("fit")
    data = module(tiny_bert, tmp_path, label_names=["none", "low", "mid", "high"])
    with pytest.raises(ValueError, match="class 'none' has no training example"):  # the positions are 1, 2, 3
        data.setup("fit")


def test_a_line_to_predict_may_hold_other_breaks(tiny_bert, tmp_path):
    (tmp_path / "lines.txt").write_bytes("good\u2028film\r\nbad\x0bplot\n".encode())
    names = module(tiny_bert, "reviews", predict_file=str(tmp_path / "lines.txt")).predict_names
    assert names == ["good\u2028film", "bad\x0bplot"]


def test_predict_keeps_the_order_of_the_lines(tiny_bert, tmp_path):
    lines = ["the film was very very bad", "good", "a good film"]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    data = module(tiny_bert, "reviews", predict_file=str(tmp_path / "lines.txt"))
    data.prepare_data()
    data.setup("predict")
    assert data.predict_names == lines
    assert (data.label_names, data.num_classes) == (None, None)  # the trained model knows them
    [batch] = data.predict_dataloader()
    assert batch["attention_mask"].sum(1).tolist() == [8, 3, 5]
    assert module(tiny_bert, "reviews", predict_text="good").predict_names == ["good"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no lines"),
        (b"one\n\ntwo\n", "no text in line 2"),
        (b"caf\xe9\n", r"byte 0xe9 at offset 3 \(line 1\)"),
    ],
)
def test_bad_predict_file(tiny_bert, tmp_path, content, message):
    (tmp_path / "lines.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _ = module(tiny_bert, "reviews", predict_file=str(tmp_path / "lines.txt")).predict_names


def served(data, fn=TrainerFn.PREDICTING, **record):
    """A data module as a trainer has it that serves a trained model."""
    module = SimpleNamespace(input=TextInput(**record) if record else None)
    data.trainer = SimpleNamespace(
        lightning_module=module, state=SimpleNamespace(fn=fn), ckpt_path=None, global_rank=0, world_size=1
    )
    return data


PAIR = {"predict_text": "good", "predict_text_pair": "a bad film"}


def test_a_pair_is_predicted_as_training_saw_pairs(tiny_bert):
    data = served(module(tiny_bert, "reviews", **PAIR), columns=["title", "body"])
    data.setup("predict")
    [batch] = data.predict_dataloader()
    expected = AutoTokenizer.from_pretrained(tiny_bert)("good", "a bad film", return_tensors="pt")
    for name in expected:
        assert torch.equal(batch[name], expected[name])
    assert data.predict_names == ["good\ta bad film"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_to_predict_has_the_columns_of_training(tiny_bert, tmp_path, suffix):
    frame = pd.DataFrame({"body": ["it, was bad", "null"], "id": [1, 2], "title": ["good", "007"]})
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    data = served(module(tiny_bert, "reviews", predict_file=str(path)), columns=["title", "body"])
    data.setup("predict")
    assert data.predict_names == ["good\tit, was bad", "007\tnull"]
    own = served(module(tiny_bert, "reviews", predict_file=str(path), text_columns=["body"]), columns=["said"])
    assert own.predict_names == ["it, was bad", "null"]
    with pytest.raises(ValueError, match="has no column 'said'; it has"):
        served(module(tiny_bert, "reviews", predict_file=str(path)), columns=["said"]).setup("predict")


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (["title", "body"], {"predict_text": "good"}, r"on pairs of texts \(title, body\), and these are single texts"),
        (["title", "body"], {"predict_file": "lines.txt"}, "on pairs of texts .*, and these are single texts"),
        (["said"], PAIR, r"on single texts \(said\), and these are pairs of texts; give a pair as .* a single text"),
    ],
)
def test_a_model_predicts_what_it_was_trained_on(tiny_bert, tmp_path, monkeypatch, columns, settings, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("good\nbad\n")
    with pytest.raises(ValueError, match=message):
        served(module(tiny_bert, "reviews", **settings), columns=columns).setup("predict")
    served(module(tiny_bert, "reviews", **settings)).setup("predict")  # a model of which nothing is known


def test_a_trained_model_is_served_texts_of_its_length(tiny_bert, folder):
    def batches(stage, fn, **settings):
        data = TextDataModule(str(folder), tokenizer=str(tiny_bert), **settings)
        served(data, fn, columns=["text"], max_length=4).setup(stage)
        return next(iter(data.predict_dataloader() if stage == "predict" else data.test_dataloader()))

    with pytest.warns(UserWarning, match="max_length=4"):
        assert batches("test", TrainerFn.TESTING)["input_ids"].shape[1] == 4
    with pytest.warns(UserWarning, match="max_length=4"):
        assert batches("predict", TrainerFn.PREDICTING, predict_text="a very good film")["input_ids"].shape[1] == 4
    with pytest.raises(ValueError, match=r"max_length=5 contradicts the trained network, which saw data.max_length=4"):
        batches("test", TrainerFn.TESTING, max_length=5)
    fresh = TextDataModule(str(folder), tokenizer=str(tiny_bert), max_length=5)
    with pytest.warns(UserWarning, match="max_length=5"):  # a new fit may choose
        served(fresh, TrainerFn.FITTING, columns=["text"], max_length=4).setup("fit")
    assert fresh.input == TextInput(("text",), max_length=5, limit=32)


def test_other_files_of_a_folder_are_named(tiny_bert, folder):
    for name in ("notes.md", "extra.csv", ".hidden"):
        (folder / name).touch()
    (folder / "more").mkdir()
    with pytest.warns(
        UserWarning, match=r"4 entries of folder .* are not used: \.hidden, extra\.csv, more/, notes\.md"
    ):
        module(tiny_bert, folder).setup("fit")


def test_nothing_to_predict(tiny_bert, tmp_path):
    with pytest.raises(ValueError, match="nothing to predict; give predict_text"):
        _ = module(tiny_bert, "reviews").predict_names
    with pytest.raises(FileNotFoundError, match=r"gone.txt' does not exist"):
        _ = module(tiny_bert, "reviews", predict_file=str(tmp_path / "gone.txt")).predict_names
    with pytest.raises(ValueError, match="both given"):
        module(tiny_bert, "reviews", predict_file="a", predict_text="b")
    with pytest.raises(ValueError, match="predict_text_pair is the second text of a pair"):
        module(tiny_bert, "reviews", predict_text_pair="b")
    for blank in ({"predict_text": " "}, {"predict_text": "a", "predict_text_pair": "\t"}):
        with pytest.raises(ValueError, match=r"predict_text.* is blank; give a text"):
            _ = module(tiny_bert, "reviews", **blank).predict_names
    with pytest.raises(ValueError, match=r"predict_text is the text 'caf\\udce9', where character 4 is not Unicode"):
        _ = module(tiny_bert, "reviews", predict_text="caf\udce9").predict_names


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"source": "nowhere"}, FileNotFoundError, r"'nowhere' is not a file or folder; give one, or \['editorials'"),
        ({"source": "glue/none"}, ValueError, r"'glue/none' is not a GLUE task; choose .*'cola'"),
        ({"source": "glue/stsb"}, ValueError, r"task='classification' does not fit .* set task='regression'"),
        ({"source": "reviews", "text_columns": []}, ValueError, "text_columns=.* give one or two"),
        ({"source": "reviews", "task": "regression", "label_names": ["a"]}, ValueError, "are for classes"),
    ],
)
def test_wrong_settings_are_refused(tiny_bert, settings, error, message):
    with pytest.raises(error, match=message):
        TextDataModule(**settings, tokenizer=str(tiny_bert)).setup("fit")


def test_class_without_training_examples(tiny_bert, folder):
    with pytest.raises(ValueError, match=r"class 'sideways' has no training example in .*train\.csv"):
        module(tiny_bert, folder, label_names=["down", "up", "sideways"]).setup("fit")
    (folder / "test.csv").write_text("text,label\na film,sideways\n")
    with pytest.raises(
        ValueError, match=r"test\.csv', line 2, has the label 'sideways', which is not one of the 2 classes"
    ):
        module(tiny_bert, folder).setup("fit")


def test_folder_without_a_split(tiny_bert, folder):
    (folder / "test.csv").rename(folder / "tests.csv")
    with pytest.raises(FileNotFoundError, match=r"must have exactly one file test with .* it has \['tests.csv'"):
        module(tiny_bert, folder).setup("fit")


def test_file_too_small_to_split(tiny_bert, tmp_path):
    (tmp_path / "few.csv").write_text("text,label\ngood,1\n")
    with pytest.raises(ValueError, match=r"has no texts for .* are different\. Give more different texts"):
        module(tiny_bert, tmp_path / "few.csv", label_names=["0", "1"]).setup("fit")


def test_unknown_tokenizer():
    with pytest.raises(ModuleNotFoundError, match=r"pip install no-such-package"):
        TextDataModule(tokenizer="package:no_such_package/model", predict_text="x").setup("predict")
