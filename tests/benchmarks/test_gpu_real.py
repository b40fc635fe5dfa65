"""The section *real* of the GPU command: the folder that travels, and the comparison with a CPU."""

import csv
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.words import WORDS
from safetensors.torch import load_file

from benchmarks.gpu.checks import NotHereError
from benchmarks.gpu.real import digits, pack, reviews
from slicefine_pl.data.tables.table import Table


@pytest.fixture
def packed(tiny_bert, tmp_path, monkeypatch):
    """The packed folder of a tiny network and 60 texts."""
    texts = [f"{a} {b} {c}" for a in WORDS[:5] for b in WORDS[5:9] for c in WORDS[9:12]]
    labels = ["negative", "positive"] * 30
    table = Table("films", [texts], labels, range(60))
    monkeypatch.setattr(pack, "locate", lambda name: str(tiny_bert))
    monkeypatch.setattr(pack, "load_demo", lambda name, ratings: table)
    folder = tmp_path / "packed"
    pack.pack(folder)
    monkeypatch.setattr(reviews, "PACKED", folder)
    monkeypatch.setattr(reviews, "RANK", 4)
    return SimpleNamespace(folder=folder, source=tiny_bert, table=table)


def test_packed_weights_are_halved_and_without_dropout(packed):
    weights, whole = (load_file(each / "model.safetensors") for each in (packed.folder, packed.source))
    assert weights.keys() == whole.keys()
    for name, value in weights.items():
        assert value.dtype == torch.float16
        torch.testing.assert_close(value.float(), whole[name], rtol=1e-3, atol=1e-6)
    config = json.loads((packed.folder / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0


def test_packed_texts_are_those_of_the_recipe(packed):
    with (packed.folder / "reviews.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["text"], row["label"]) for row in rows] == list(
        zip(packed.table.columns[0], packed.table.labels, strict=True)
    )


def test_the_same_run_twice_gives_the_same_accuracy(packed):
    first, second = (reviews.train(1, "cpu", steps=2) for _ in range(2))
    assert first == second
    assert 0 <= first <= 1


@pytest.mark.parametrize(("apart", "fails"), [(0.004, False), (0.02, True)])
def test_accuracies_are_compared_with_those_of_the_cpu(packed, monkeypatch, apart, fails):
    reference = [0.80, 0.81, 0.82]
    (packed.folder / reviews.REFERENCE).write_text(
        json.dumps({"machine": {"commit": "abc1234"}, "accuracy": reference})
    )
    monkeypatch.setattr(reviews, "train", lambda seed, device, steps: reference[seed] + apart)
    if fails:
        with pytest.raises(
            AssertionError, match=r"differ from those on a CPU.* by 0\.0200 in the mean.* commit abc1234"
        ):
            reviews.reviews("cuda")
    else:
        assert reviews.reviews("cuda")["apart"] == apart


def test_without_the_folder_the_command_that_makes_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(reviews, "PACKED", tmp_path)
    with pytest.raises(NotHereError, match=r"python -m benchmarks\.gpu\.real\.pack"):
        reviews.reviews("cpu")


def test_digits_need_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(NotHereError, match="scikit-learn"):
        digits.digits("cpu")


def test_digits_that_differ_between_devices_are_wrong(monkeypatch):
    monkeypatch.setattr(digits, "train", lambda data, seed, device, steps: {"cuda": 0.80, "cpu": 0.84}[device])
    with pytest.raises(AssertionError, match=r"differ by 0\.0400 in the mean"):
        digits.digits("cuda")
