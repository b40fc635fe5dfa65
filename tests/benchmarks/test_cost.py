"""What the cost benchmarks count and check, against closed forms and against cheats."""

import argparse
import json

import networks
import pytest
import torch
from contestants import METHODS, Contestant, check_changes, enter
from growth import exponent
from machine import Clock
from memory import checkpoint_bytes, gradient_bytes, optimizer_bytes, saved_bytes
from methods import lora_query_value, probe, vera
from networks import Network, Task, bert
from report import bars, table
from torch import nn
from train_step import measure

B, I, H, O = 5, 7, 11, 3  # examples, inputs, hidden, outputs: odd and unequal


def two_maps() -> Task:
    net = nn.Sequential(nn.Linear(I, H), nn.Linear(H, O))
    return Task(net, {"x": torch.randn(B, I)}, lambda net, batch: net(batch["x"]).sum(), head="1")


def tiny_bert(batch: int = 2, tokens: int = 6) -> Task:
    return bert(hidden=24, layers=1, heads=2, batch=batch, tokens=tokens)


@pytest.mark.parametrize(
    ("method", "size"),
    [
        ("full", 4 * (B * I + B * H)),  # the input of both maps
        ("masked gradients", 4 * (B * I + B * H)),
        ("floor", 4 * B * H),  # that of the head alone
        ("slice, column", 4 * (B * 2 + B * H) + 2 * 8),  # two columns of the input, and which they are
        ("slice, row", 4 * (B * I + B * H) + 2 * 8),
    ],
)
def test_saved_bytes_are_the_inputs_that_the_gradients_need(method, size):
    assert saved_bytes(enter(two_maps(), METHODS[method], 2, "cpu")) == size


def test_what_autograd_drops_before_the_loss_is_known_does_not_count():
    task = two_maps()
    plain = task.compute

    def wasteful(net, batch):
        (net(batch["x"]) ** 3).detach()
        return plain(net, batch)

    task.compute = wasteful
    assert saved_bytes(enter(task, METHODS["floor"], 2, "cpu")) == 4 * B * H


@pytest.mark.parametrize(
    ("method", "trained", "stored"),
    [
        ("full", I * H + H + H * O + O, I * H + H + H * O + O),
        ("slice, column", 2 * H + H * O + O, I * H + H + H * O + O),  # a sliced network is stored whole
        ("lora", 2 * (I + H) + H * O + O, 2 * (I + H) + H * O + O),
        ("bitfit", H + H * O + O, H + H * O + O),
        ("floor", H * O + O, H * O + O),
    ],
)
def test_gradients_optimizer_and_checkpoint_are_counted(method, trained, stored):
    contestant = enter(two_maps(), METHODS[method], 2, "cpu")
    steps = 4 * len(contestant.trained())  # AdamW counts the steps of each parameter in a float
    assert gradient_bytes(contestant) == 4 * trained
    assert optimizer_bytes(contestant) == 2 * 4 * trained + steps
    assert checkpoint_bytes(contestant) == 4 * stored


def test_the_floor_trains_nothing_and_its_gradient_reaches_every_target():
    task, copy = tiny_bert(), tiny_bert()
    copy.net.load_state_dict(task.net.state_dict())
    floor = enter(copy, METHODS["floor"], 2, "cpu")
    reached = set()
    for name in task.targets():
        map_ = copy.net.get_submodule(name)
        map_.register_forward_hook(
            lambda module, inputs, output, name=name: output.register_hook(lambda gradient: reached.add(name)) and None
        )
    floor.step(Clock("cpu"))
    assert check_changes(task, floor, 2) == 0
    assert reached == set(task.targets())


@pytest.mark.parametrize("method", ["floor", "slice, column", "lora", "bitfit", "masked gradients"])
def test_a_method_that_trains_more_than_it_may_is_found_out(method):
    task, copy = two_maps(), two_maps()
    copy.net.load_state_dict(task.net.state_dict())
    contestant = enter(copy, METHODS[method], 2, "cpu")
    check_changes(task, contestant, 2)
    with torch.no_grad():
        for parameter in copy.net.parameters():
            parameter.add_(1)
    with pytest.raises(RuntimeError, match="should be some, and at most"):
        check_changes(task, contestant, 2)


def test_a_method_that_trains_nothing_is_found_out():
    task, copy = two_maps(), two_maps()
    copy.net.load_state_dict(task.net.state_dict())
    idle = Contestant(copy, METHODS["full"], copy.net, None, None)
    with pytest.raises(RuntimeError, match="changed 0 numbers"):
        check_changes(task, idle, 2)


@pytest.mark.parametrize(
    ("prepare", "net", "head", "message"),
    [
        (probe, nn.Linear(I, O), None, "head=None"),
        (vera, nn.Sequential(nn.Conv2d(3, 4, 1)), None, "linear maps"),
        (lora_query_value, nn.Sequential(nn.Linear(I, O)), None, "query or value"),
    ],
)
def test_what_a_method_cannot_train_is_refused(prepare, net, head, message):
    with pytest.raises(ValueError, match=message):
        prepare(net, head, ["0"], 2)


def test_the_whole_comparison(monkeypatch):
    """Every method enters, competes and is told; LoRA beside every map saves more than the floor."""
    monkeypatch.setitem(networks.NETWORKS, "tiny", Network(tiny_bert, cpu=(2, 6), cuda=(2, 6)))
    sizes = {"network": "tiny", "rank": 2, "rounds": 1, "batch": 3, "tokens": None, "device": "cpu"}
    result = measure(argparse.Namespace(**sizes, dtype="float32", compile=False, resident=False))
    assert json.loads(json.dumps(result)) == result
    assert result["batch"]["input_ids"] == [3, 6]
    assert set(result["rows"]) == set(METHODS)
    assert result["rows"]["lora"]["saved_vs_floor"] > 1
    assert {name for name, row in result["rows"].items() if "move_ms" in row} == {
        f"slice, {axis}" for axis in ("column", "row", "alternate")
    }
    for told in (table(result), bars(result)):
        assert "nan" not in told
    assert all(f"| {name} |" in table(result) for name in METHODS)


def test_bars_are_met_at_their_limits_and_missed_beyond():
    def row(floor, lora, saved, memory):
        ratios = {"time_vs_floor": {"median": floor}, "time_vs_lora": {"median": lora}}
        return {**ratios, "saved_vs_floor": saved, "allocator_mb": None, "sum_mb": memory}

    rows = {"slice, column": row(1.05, 1 / 1.25, 1.03, 84), "lora": row(1.3, 1.0, 1.6, 100)}
    verdicts = [line.split("|")[-2].strip() for line in bars({"rows": rows, "width": 1024}).splitlines()[2:]]
    assert verdicts == ["met", "**missed**", "met", "**missed**"]


def test_exponent_of_a_power_law():
    values = (2, 3, 5, 8)
    assert exponent(values, [7 * value**1.5 for value in values]) == 1.5
