"""The scores of adapters, against the network that was trained."""

import pytest
from lightning.pytorch import Trainer

from benchmarks.accuracy.adapters import score_adapter, train_slices
from benchmarks.accuracy.studies import MethodConfig
from benchmarks.accuracy.tasks import Task
from benchmarks.harness.lightning import QUIET
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier

NOUNS = ("film", "plot", "movie", "acting")


@pytest.fixture
def task(tiny_bert, tmp_path, monkeypatch):
    """Which sentences are good, for a tiny text model."""
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))
    rows = [f"{word} {a} {b},{word == 'good'}" for word in ("good", "bad") for a in NOUNS for b in NOUNS]
    table = tmp_path / "data.csv"
    table.write_text("\n".join(["text,label", *rows]))

    def build(seed, rate, head_rate):
        data = TextDataModule(str(table), tokenizer=str(tiny_bert), max_length=16, batch_size=8, seed=seed)
        return TextClassifier(str(tiny_bert), label_names=data.label_names, lr=rate, head_lr=head_rate), data

    return Task(build, "tiny BERT", epochs=4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [MethodConfig("column", 4, lr_scale="auto"), MethodConfig("column", 4, interval=3)])
def test_an_adapter_of_the_whole_change_scores_as_the_trained_network_and_a_small_one_does_not(task, method):
    module, data, slices, base = train_slices(task, method, 0.03, 0)
    [expected] = Trainer(**QUIET).validate(module, data, verbose=False)
    whole, small = (score_adapter(task, lambda: (module, data, slices, base), rank) for rank in (None, 1))
    assert whole["lost"] == 0
    assert whole["val_loss"] == pytest.approx(expected["val/loss"], rel=1e-5)
    assert 0 < small["lost"] < 1
    assert small["adapter_bytes"] < whole["adapter_bytes"]
    assert small["val_loss"] != pytest.approx(expected["val/loss"], rel=1e-3)
