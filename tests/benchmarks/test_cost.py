"""What the cost benchmarks count and check, against closed forms and against deliberate errors."""

import argparse
import json

import pytest
import torch
from torch import nn

from benchmarks.harness import networks
from benchmarks.harness.checks import check_changes
from benchmarks.harness.machine import Clock
from benchmarks.harness.memory import checkpoint_bytes, gradient_bytes, optimizer_bytes, saved_bytes
from benchmarks.harness.methods import METHODS, lora_query_value, vera
from benchmarks.harness.networks import Network, Workload, bert
from benchmarks.harness.training import TrainingRun, prepare
from benchmarks.step_cost.growth import exponent
from benchmarks.step_cost.report import table, thresholds
from benchmarks.step_cost.run import measure

B, I, H, O = 5, 7, 11, 3  # examples, inputs, hidden, outputs: odd and unequal


def two_maps() -> Workload:
    net = nn.Sequential(nn.Linear(I, H), nn.Linear(H, O))
    return Workload(net, {"x": torch.randn(B, I)}, lambda net, batch: net(batch["x"]).sum(), head="1")


def tiny_bert(batch: int = 2, tokens: int = 6) -> Workload:
    return bert(hidden=24, layers=1, heads=2, batch=batch, tokens=tokens)


@pytest.mark.parametrize(
    ("method", "size"),
    [
        ("full", 4 * (B * I + B * H)),  # the input of both maps
        ("masked gradients", 4 * (B * I + B * H)),
        ("frozen baseline", 4 * B * H),  # that of the head alone
        ("slice, column", 4 * (B * 2 + B * H)),  # two columns of the input
        ("slice, directions", 4 * (B * 2 + B * H)),  # two components of it
        ("slice, row", 4 * (B * I + B * H)),
    ],
)
def test_saved_bytes_are_the_inputs_that_the_gradients_need(method, size):
    assert saved_bytes(prepare(two_maps(), METHODS[method], 2, "cpu")) == size


def test_what_autograd_drops_before_the_loss_is_known_does_not_count():
    workload = two_maps()
    plain = workload.compute

    def wasteful(net, batch):
        (net(batch["x"]) ** 3).detach()
        return plain(net, batch)

    workload.compute = wasteful
    assert saved_bytes(prepare(workload, METHODS["frozen baseline"], 2, "cpu")) == 4 * B * H


@pytest.mark.parametrize(
    ("method", "trained", "stored"),
    [
        ("full", I * H + H + H * O + O, I * H + H + H * O + O),
        ("slice, column", 2 * H + H * O + O, I * H + H + H * O + O),  # a sliced network is stored whole
        ("lora", 2 * (I + H) + H * O + O, 2 * (I + H) + H * O + O),
        ("bitfit", H + H * O + O, H + H * O + O),
        ("frozen baseline", H * O + O, H * O + O),
    ],
)
def test_gradients_optimizer_and_checkpoint_are_counted(method, trained, stored):
    run = prepare(two_maps(), METHODS[method], 2, "cpu")
    steps = 4 * len(run.trainable())  # AdamW counts the steps of each parameter in a float
    assert gradient_bytes(run) == 4 * trained
    assert optimizer_bytes(run) == 2 * 4 * trained + steps
    assert checkpoint_bytes(run) == 4 * stored


def test_the_frozen_baseline_trains_nothing_and_its_gradient_reaches_every_target():
    workload, copy = tiny_bert(), tiny_bert()
    copy.net.load_state_dict(workload.net.state_dict())
    baseline = prepare(copy, METHODS["frozen baseline"], 2, "cpu")
    reached = set()
    for name in workload.targets():
        map_ = copy.net.get_submodule(name)
        map_.register_forward_hook(
            lambda module, inputs, output, name=name: output.register_hook(lambda gradient: reached.add(name)) and None
        )
    baseline.step(Clock("cpu"))
    assert check_changes(workload, baseline, 2) == 0
    assert reached == set(workload.targets())


@pytest.mark.parametrize("method", ["frozen baseline", "slice, column", "lora", "bitfit", "masked gradients"])
def test_a_method_that_trains_more_than_it_may_is_detected(method):
    workload, copy = two_maps(), two_maps()
    copy.net.load_state_dict(workload.net.state_dict())
    run = prepare(copy, METHODS[method], 2, "cpu")
    check_changes(workload, run, 2)
    with torch.no_grad():
        for parameter in copy.net.parameters():
            parameter.add_(1)
    with pytest.raises(RuntimeError, match="should be some, and at most"):
        check_changes(workload, run, 2)


def test_a_method_that_trains_nothing_is_detected():
    workload, copy = two_maps(), two_maps()
    copy.net.load_state_dict(workload.net.state_dict())
    idle = TrainingRun(copy, METHODS["full"], copy.net)
    with pytest.raises(RuntimeError, match="changed 0 entries"):
        check_changes(workload, idle, 2)


@pytest.mark.parametrize(
    ("method", "net", "message"),
    [
        (vera, nn.Sequential(nn.Conv2d(3, 4, 1)), "linear maps"),
        (lora_query_value, nn.Sequential(nn.Linear(I, O)), "query or value"),
    ],
)
def test_what_a_method_cannot_train_is_refused(method, net, message):
    with pytest.raises(ValueError, match=message):
        method(net, None, ["0"], 2)


def test_the_whole_comparison(monkeypatch):
    """Every method is prepared, timed and reported; LoRA on every map saves more than the frozen baseline."""
    monkeypatch.setitem(networks.NETWORKS, "tiny", Network(tiny_bert, cpu=(2, 6), cuda=(2, 6)))
    sizes = {"network": "tiny", "rank": 2, "rounds": 1, "batch": 3, "tokens": None, "device": "cpu"}
    arguments = argparse.Namespace(**sizes, dtype="float32", compile=False, rss=False, methods=list(METHODS))
    result = measure(arguments)
    assert json.loads(json.dumps(result)) == result
    assert result["batch"]["input_ids"] == [3, 6]
    assert set(result["rows"]) == set(METHODS)
    assert result["rows"]["lora"]["saved_vs_baseline"] > 1
    assert {name for name, row in result["rows"].items() if "move_ms" in row} == {
        f"slice, {kind}" for kind in ("column", "row", "alternate", "moving directions")
    }
    for text in (table(result), thresholds(result)):
        assert "nan" not in text
    assert all(f"| {name} |" in table(result) for name in METHODS)

    chosen = measure(argparse.Namespace(**{**vars(arguments), "methods": ["slice, directions"]}))
    assert set(chosen["rows"]) == {"frozen baseline", "slice, directions", "lora"}


def test_thresholds_are_met_at_their_limits_and_missed_beyond():
    def row(baseline, lora, saved, memory):
        ratios = {"time_vs_baseline": {"median": baseline}, "time_vs_lora": {"median": lora}}
        return {**ratios, "saved_vs_baseline": saved, "allocator_mb": None, "sum_mb": memory}

    rows = {"slice, column": row(1.05, 1 / 1.25, 1.03, 84), "lora": row(1.3, 1.0, 1.6, 100)}
    verdicts = [line.split("|")[-2].strip() for line in thresholds({"rows": rows, "width": 1024}).splitlines()[2:]]
    assert verdicts == ["met", "**missed**", "met", "**missed**"]


def test_exponent_of_a_power_law():
    values = (2, 3, 5, 8)
    assert exponent(values, [7 * value**1.5 for value in values]) == 1.5
