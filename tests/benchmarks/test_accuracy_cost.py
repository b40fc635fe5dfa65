"""The cost of the accuracy benchmark's methods, on a tiny BERT and batches of unequal length."""

import accuracy_cost
import pytest
import torch
from accuracy import Method
from tasks import Task
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

SLICES = ["column r=4 every=100 on=qv", "column r=4 every=100", "column r=4 place=random"]
LINES = ["floor", "lora r=2 on=qv", "lora r=2", *SLICES, "full"]


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
    monkeypatch.setitem(accuracy_cost.TASKS, "tiny", Task(lambda *given: (Module(), Data()), "BERT", epochs=1))
    monkeypatch.setattr(accuracy_cost, "LINES", LINES)
    return accuracy_cost.measure("tiny", rounds=2)


def test_every_method_of_the_studies_can_be_measured():
    assert accuracy_cost.LINES[0] == "floor"
    assert all(Method.parse(line) for line in accuracy_cost.LINES[1:])


def test_memory_beyond_the_weights_is_that_of_what_is_trained_and_kept(costs):
    """Full fine-tuning under AdamW: a gradient and two moments of each number; slices keep as much anywhere."""
    assert list(costs) == LINES
    assert costs["floor"]["time"] == 1.0
    trained = sum(parameter.numel() for parameter in Module().parameters())
    assert costs["full"]["memory_mb"] - costs["full"]["saved_mb"] == pytest.approx(3 * 4 * trained / 1e6, rel=0.02)
    assert costs["column r=4 every=100"]["memory_mb"] == costs["column r=4 place=random"]["memory_mb"]
    kept = {line: costs[line]["saved_mb"] for line in LINES}
    assert kept["floor"] < kept["column r=4 every=100"] < kept["lora r=2"] < kept["full"]
    assert kept["column r=4 every=100 on=qv"] < kept["column r=4 every=100"]
    assert kept["floor"] < kept["lora r=2 on=qv"] < kept["lora r=2"]
