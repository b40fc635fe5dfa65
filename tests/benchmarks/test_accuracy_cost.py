"""The cost of the accuracy benchmark's methods, on a tiny BERT and batches of unequal length."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.accuracy import cost
from benchmarks.accuracy.studies import MethodConfig, studies
from benchmarks.accuracy.tasks import Task

METHODS = {
    "lora on=qv": MethodConfig("lora", 2, layers="query_value"),
    "lora": MethodConfig("lora", 2),
    "column on=qv": MethodConfig("column", 4, interval=100, layers="query_value"),
    "column": MethodConfig("column", 4, interval=100),
    "column, static": MethodConfig("column", 4, position="random"),
    "full": MethodConfig("full"),
}


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        shape = {"hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.model = BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=2, **shape))

    def forward(self, batch):
        return self.model(batch["input_ids"]).logits


class Data:
    def prepare_data(self):
        pass

    def setup(self, stage):
        pass

    def train_dataloader(self):
        return [{"input_ids": torch.randint(30, (3, 5 + i)), "labels": torch.tensor([0, 1, 1])} for i in range(9)]


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.setitem(cost.TASKS, "tiny", Task(lambda *given: (Module(), Data()), "BERT", epochs=1))
    for name, config in METHODS.items():
        monkeypatch.setitem(studies().methods, name, config)
    return cost.measure("tiny", [cost.BASELINE, *METHODS], rounds=2)


def test_memory_beyond_the_weights_is_that_of_what_is_trained_and_kept(costs):
    """Full fine-tuning under AdamW: a gradient and two moments per weight; slices need the same at any position."""
    assert list(costs) == [cost.BASELINE, *METHODS]
    assert costs[cost.BASELINE]["time"] == 1.0
    trained = sum(parameter.numel() for parameter in Module().parameters())
    assert costs["full"]["memory_mb"] - costs["full"]["saved_mb"] == pytest.approx(3 * 4 * trained / 1e6, rel=0.02)
    assert costs["column"]["memory_mb"] == costs["column, static"]["memory_mb"]
    saved = {name: row["saved_mb"] for name, row in costs.items()}
    assert saved[cost.BASELINE] < saved["column"] < saved["lora"] < saved["full"]
    assert saved["column on=qv"] < saved["column"]
    assert saved[cost.BASELINE] < saved["lora on=qv"] < saved["lora"]
