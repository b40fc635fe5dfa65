"""The search for a learning rate, the report and the placed slices of the accuracy benchmark, against closed forms."""

import json
import math

import accuracy
import accuracy_report
import numpy as np
import pytest
import torch
from accuracy import SEEDS, Method, NotThereError, Runs, fixed_slices, prepare, search
from accuracy_report import Estimate, at_cost, difference, overall, pareto, read, table
from lightning.pytorch import LightningModule, Trainer
from scipy import stats
from torch import nn

TASK = "tweets"


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0, [1, 0.5, 2]),  # the first is best: its neighbours suffice
        (2, [1, 0.5, 2, 4, 8]),
        (-2, [1, 0.5, 2, 0.25, 0.125]),
    ],
)
def test_search_goes_on_until_the_best_rate_has_a_worse_one_beyond(best, tried):
    seen = []

    def loss(rate):
        seen.append(rate)
        return 1 + (math.log2(rate) - best) ** 2

    assert search(loss, first=1.0) == 2.0**best
    assert seen == tried


def test_search_does_not_go_on_for_less_than_a_hundredth():
    assert search(lambda rate: 1 - 0.001 * math.log2(rate), first=1.0) == 2.0


def test_search_takes_a_loss_that_is_not_finite_for_the_worst():
    assert search(lambda rate: math.nan if rate > 1 else 2 - rate / 1000, first=1.0) == 1.0
    with pytest.raises(RuntimeError, match=r"from 0.5 to 2 stayed finite"):
        search(lambda rate: math.nan, first=1.0)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(method, rate, tests, val_loss=0.5, seeds=SEEDS):
    return [
        {"task": TASK, "method": method, "lr": rate, "seed": seed, "val_loss": val_loss, "test": test, "trained": 7}
        for seed, test in zip(seeds, tests, strict=True)
    ]


SLICES = [0.91, 0.93, 0.92, 0.95, 0.94]
LORA = [0.90, 0.91, 0.93, 0.92, 0.94]


@pytest.fixture
def runs(tmp_path):
    """Slices with a better rate on validation that scores worse on the test set, and with one that is unfinished."""
    rows = [
        *rows_of("column r=32 every=100", 1e-3, SLICES, val_loss=0.4),
        *rows_of("column r=32 every=100", 2e-3, [0.99] * 5, val_loss=0.6),
        *rows_of("column r=32 every=100", 4e-3, [0.5], val_loss=0.1, seeds=[0]),
        *rows_of("lora r=16", 1e-3, LORA),
        *rows_of("full", 1e-4, [0.9, 0.9], seeds=[0, 1]),
        {"task": TASK, "method": "probe", "lr": 0.0, "seed": 0, "test": 0.8, "trained": 3},
    ]
    return written(tmp_path / "runs.jsonl", rows)


def test_report_takes_the_rate_that_validation_chose_and_only_whole_cells(runs):
    cells = read(runs)
    assert set(cells) == {(TASK, "column r=32 every=100"), (TASK, "lora r=16"), (TASK, "probe")}
    assert cells[TASK, "column r=32 every=100"].rate == 1e-3
    assert cells[TASK, "column r=32 every=100"].tests == pytest.approx([100 * test for test in SLICES])


@pytest.mark.parametrize(("choose", "rate"), [("loss", 1e-3), ("score", 2e-3)])
def test_the_rate_is_chosen_by_the_loss_or_by_the_score(tmp_path, monkeypatch, choose, rate):
    """The search and the report choose alike; equal scores are told apart by the loss."""
    found = {5e-4: (0.7, 0.91), 1e-3: (0.3, 0.90), 2e-3: (0.6, 0.91), 4e-3: (0.9, 0.91)}

    def train(task, method, lr, seed):
        val_loss, val = found[lr]
        return {"val_loss": val_loss, "val": val, "test": lr, "trained": 1}

    monkeypatch.setattr(accuracy, "train", train)
    monkeypatch.setitem(accuracy.FIRST_RATES, "lora", 1e-3)
    path = tmp_path / "runs.jsonl"
    accuracy.compare(Runs(path, "abc"), TASK, Method.parse("lora r=16"), choose)
    cell = read(path, choose)[TASK, "lora r=16"]
    assert cell.rate == rate
    assert cell.tests == pytest.approx([100 * rate] * 5)
    assert cell.outermost == (choose == "score")  # nothing better beyond 2e-3, but nothing was tried there either
    assert ("*" in table(read(path, choose), "MiniLM")) == cell.outermost


def test_intervals_are_students(runs):
    found = Estimate.of(SLICES)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(SLICES), scale=stats.sem(SLICES))
    assert found.mean - found.half == pytest.approx(low)
    assert found.mean + found.half == pytest.approx(high)


def test_difference_is_the_paired_one(runs):
    found, tasks = difference(read(runs), "column r=32 every=100", [TASK, "reviews"])
    assert tasks == 1
    pairs = 100 * (np.array(SLICES) - np.array(LORA))
    low, high = stats.t.interval(0.95, 4, loc=pairs.mean(), scale=stats.sem(pairs))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert difference(read(runs), "full", [TASK]) is None


def test_the_mean_over_networks_is_of_the_tasks_that_have_both_methods(runs):
    """On the digits slices are two points ahead in every seed, so all of the spread is that of the text.

    More epochs of a set are no other set.
    """
    rows = [*rows_of("column r=32 every=100", 1e-3, [0.92] * 5), *rows_of("lora r=16", 1e-3, [0.90] * 5)]
    with runs.open("a") as file:
        for task in ("digits", "tweets, 4 epochs"):
            file.writelines(json.dumps(row | {"task": task}) + "\n" for row in rows)
    pairs = (100 * (np.array(SLICES) - np.array(LORA)) + 2) / 2
    half = stats.sem(pairs) * stats.t.ppf(0.975, 4)
    assert overall(read(runs)).splitlines()[2:] == [
        "| probe | -12.0 ± 2.0 | 1 |",
        f"| column r=32 every=100 | {pairs.mean():+.1f} ± {half:.1f} | 2 |",
    ]


def test_table_and_plot_show_every_whole_cell(runs, tmp_path):
    lines = table(read(runs), "MiniLM").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| probe", "| lora r=16", "| column r=32 every=100"]
    costs = {"lora r=16": {"time": 1.4, "memory_mb": 150.0}, "column r=32 every=100": {"time": 1.0, "memory_mb": 100.0}}
    assert at_cost(read(runs), costs).splitlines()[2:] == [
        "| column r=32 every=100 | 1.00 | 100 | 93.0 ± 2.0 |",
        "| lora r=16 | 1.40 | 150 | 92.0 ± 2.0 |",
    ]
    pareto(read(runs), costs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_of_the_command_line(runs, tmp_path, monkeypatch, capsys):
    """A method that is not finished is an error, and so is a missing file."""

    def report(*arguments):
        monkeypatch.setattr("sys.argv", ["accuracy_report.py", *map(str, arguments)])
        accuracy_report.main()
        return capsys.readouterr().out

    assert "| lora r=16 | 7 | 92.0 ± 2.0 (0.001*) |" in report(runs)
    with pytest.raises(SystemExit):
        report(runs, "--against", "full")
    assert "'full'; finished are probe, lora r=16, column r=32 every=100" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report(tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl does not exist" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:No new output head was found")
@pytest.mark.parametrize(("place", "columns"), [("first", [0, 1, 2]), ("last", [8, 9, 10])])
def test_slices_can_be_placed_at_either_end(place, columns):
    """Only these columns of the weight change."""
    net = nn.Sequential(nn.Linear(11, 5), nn.Tanh(), nn.Linear(5, 2))
    before = net[0].weight.detach().clone()
    fixed_slices(net, Method.parse(f"column r=3 place={place}"), seed=0)
    optimizer = torch.optim.SGD([parameter for parameter in net.parameters() if parameter.requires_grad], lr=1.0)
    net(torch.randn(4, 11)).sum().backward()
    optimizer.step()
    after = net.eval()[0].state_dict()["weight"]
    assert (after != before).any(0).nonzero().squeeze(1).tolist() == columns


def test_a_run_in_the_file_is_not_made_again(tmp_path, monkeypatch):
    made = []

    def train(task, method, rate, seed):
        made.append(seed)
        return {"val_loss": 0.1, "test": 0.9}

    monkeypatch.setattr(accuracy, "train", train)
    for _ in range(2):
        runs = Runs(tmp_path / "runs.jsonl", "abc")
        for seed in (0, 1):
            assert runs.get(TASK, Method.parse("full"), 1e-4, seed)["test"] == 0.9
    assert made == [0, 1]


@pytest.mark.filterwarnings("ignore:No new output head was found")
@pytest.mark.parametrize("line", ["full weights=random", "bitfit"])
def test_methods_that_a_network_does_not_have_are_told_apart_from_errors(line):
    class Module:
        model = nn.Sequential(nn.Linear(40, 40, bias=False))

    with pytest.raises(NotThereError):
        prepare(Method.parse(line), Module(), seed=0)


class Attention(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({name: nn.Linear(40, 40) for name in ("query", "key", "value", "out")})


@pytest.mark.filterwarnings("ignore:No new output head was found")
@pytest.mark.parametrize("line", ["lora r=2", "column r=2 place=random", "row r=2 place=last", "column r=2 every=10"])
def test_a_method_of_queries_and_values_works_on_no_other_map(line):
    module = Attention()
    callbacks = prepare(Method.parse(f"{line} on=qv"), module, seed=0)
    trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=callbacks)
    for callback in callbacks:
        callback.setup(trainer, module, "fit")  # opens the slices that move
    trained = {name: each.numel() for name, each in module.model.named_parameters() if each.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"query", "value"}
    lines = 2 * 40 * (2 if line.startswith("lora") else 1)  # two lines of 40 numbers each; LoRA's two matrices
    assert sum(trained.values()) == 2 * lines


@pytest.mark.filterwarnings("ignore:No new output head was found")
@pytest.mark.parametrize("line", ["lora r=2 on=qv", "column r=2 place=random on=qv", "column r=2 every=10 on=qv"])
def test_a_network_without_queries_leaves_methods_of_queries_out(line):
    class Module:
        model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))

    with pytest.raises(NotThereError, match="named as a query or value"):
        prepare(Method.parse(line), Module(), seed=0)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("adapter r=4", "Unknown method 'adapter'"),
        ("column r=32 evry=100", "no setting 'evry' .* it has r, on, every, order, place, weights"),
        ("dora r=16 on=qv", "dora has no setting 'on'"),
        ("lora r=16 on=qkv", "'on=qkv'.*on is qv"),
        ("column r=32 every=100 order=random-walk", "order is random or sweep or importance"),
        ("lora r=0", "r is a whole number > 0"),
        ("lora", "says no rank"),
        ("lora r=16 r=8", "says r twice"),
        ("column r=8 place=random order=importance", "have no order"),
        ("column r=32", "say one of the two"),
        ("column r=32 every=100 place=first", "say one of the two"),
    ],
)
def test_a_method_that_nobody_knows_is_an_error_before_any_run(line, told):
    with pytest.raises(ValueError, match=told):
        Method.parse(line)


def test_all_methods_of_all_studies_are_known():
    assert {Method.parse(line).kind for lines in accuracy.STUDIES.values() for line in lines} == set(accuracy.ALLOWED)
