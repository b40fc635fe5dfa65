"""The search for a learning rate, the report and the placed slices of the accuracy benchmark, against closed forms."""

import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from scipy import stats
from torch import nn

from benchmarks.accuracy import report, run
from benchmarks.accuracy.plot import draw
from benchmarks.accuracy.preparation import NotApplicableError, fixed_slices, prepare
from benchmarks.accuracy.report import cost_table, mean_table, score_table
from benchmarks.accuracy.run import SEEDS, search
from benchmarks.accuracy.scores import Estimate, difference, read_scores
from benchmarks.accuracy.studies import ALLOWED, MethodConfig, Studies, studies
from benchmarks.harness.results import RESULTS, RunLog

TASK = "tweets"


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0, [1, 0.5, 2]),  # the first is best: its neighbors suffice
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


def test_report_takes_the_rate_that_validation_chose_and_only_finished_scores(runs):
    scores = read_scores(runs)
    assert set(scores) == {(TASK, "column r=32 every=100"), (TASK, "lora r=16"), (TASK, "probe")}
    assert scores[TASK, "column r=32 every=100"].rate == 1e-3
    assert scores[TASK, "column r=32 every=100"].tests == pytest.approx([100 * test for test in SLICES])


@pytest.mark.parametrize(("choose", "rate"), [("loss", 1e-3), ("score", 2e-3)])
def test_the_rate_is_chosen_by_the_loss_or_by_the_score(tmp_path, monkeypatch, choose, rate):
    """The search and the report agree; equal scores are ordered by the loss."""
    found = {5e-4: (0.7, 0.91), 1e-3: (0.3, 0.90), 2e-3: (0.6, 0.91), 4e-3: (0.9, 0.91)}

    def train(task, method, lr, seed):
        val_loss, val = found[lr]
        return {"val_loss": val_loss, "val": val, "test": lr, "trained": 1}

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setitem(studies().first_rates, "lora", 1e-3)
    path = tmp_path / "runs.jsonl"
    run.compare(RunLog(path), TASK, "lora r=16", choose)
    chosen = read_scores(path, choose)[TASK, "lora r=16"]
    assert chosen.rate == rate
    assert chosen.tests == pytest.approx([100 * rate] * 5)
    assert chosen.outermost == (choose == "score")  # nothing better beyond 2e-3, but nothing was tried there either
    assert ("*" in score_table(read_scores(path, choose), "MiniLM")) == chosen.outermost


def test_intervals_are_students(runs):
    found = Estimate.of(SLICES)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(SLICES), scale=stats.sem(SLICES))
    assert found.mean - found.half == pytest.approx(low)
    assert found.mean + found.half == pytest.approx(high)


def test_difference_is_the_paired_one(runs):
    found, tasks = difference(read_scores(runs), "column r=32 every=100", [TASK, "reviews"])
    assert tasks == 1
    pairs = 100 * (np.array(SLICES) - np.array(LORA))
    low, high = stats.t.interval(0.95, 4, loc=pairs.mean(), scale=stats.sem(pairs))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert difference(read_scores(runs), "full", [TASK]) is None


def test_the_mean_over_networks_is_of_the_tasks_that_have_both_methods(runs):
    """On the digits slices are two points ahead in every seed, so all of the spread is that of the text.

    A longer run on the same data does not count as another task.
    """
    rows = [*rows_of("column r=32 every=100", 1e-3, [0.92] * 5), *rows_of("lora r=16", 1e-3, [0.90] * 5)]
    with runs.open("a") as file:
        for task in ("digits", "tweets, 4 epochs"):
            file.writelines(json.dumps(row | {"task": task}) + "\n" for row in rows)
    pairs = (100 * (np.array(SLICES) - np.array(LORA)) + 2) / 2
    half = stats.sem(pairs) * stats.t.ppf(0.975, 4)
    assert mean_table(read_scores(runs)).splitlines()[2:] == [
        "| probe | -12.0 ± 2.0 | 1 |",
        f"| column r=32 every=100 | {pairs.mean():+.1f} ± {half:.1f} | 2 |",
    ]


def test_table_and_plot_show_every_finished_method(runs, tmp_path):
    lines = score_table(read_scores(runs), "MiniLM").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| probe", "| lora r=16", "| column r=32 every=100"]
    costs = {"lora r=16": {"time": 1.4, "memory_mb": 150.0}, "column r=32 every=100": {"time": 1.0, "memory_mb": 100.0}}
    assert cost_table(read_scores(runs), costs).splitlines()[2:] == [
        "| column r=32 every=100 | 1.00 | 100 | 93.0 ± 2.0 |",
        "| lora r=16 | 1.40 | 150 | 92.0 ± 2.0 |",
    ]
    draw(read_scores(runs), costs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_of_the_command_line(runs, tmp_path, monkeypatch, capsys):
    """A method that is not finished is an error, and so is a missing file."""

    def reported(*arguments):
        monkeypatch.setattr("sys.argv", ["report", *map(str, arguments)])
        report.main()
        return capsys.readouterr().out

    assert "| lora r=16 | 7 | 92.0 ± 2.0 (0.001*) |" in reported(runs)
    with pytest.raises(SystemExit):
        reported(runs, "--against", "full")
    assert "'full'; finished are probe, lora r=16, column r=32 every=100" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        reported(tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl does not exist" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:No new output head was found")
@pytest.mark.parametrize(("position", "columns"), [("first", [0, 1, 2]), ("last", [8, 9, 10])])
def test_slices_can_be_placed_at_either_end(position, columns):
    """Only these columns of the weight change."""
    net = nn.Sequential(nn.Linear(11, 5), nn.Tanh(), nn.Linear(5, 2))
    before = net[0].weight.detach().clone()
    fixed_slices(net, MethodConfig("column", 3, position=position), seed=0)
    optimizer = torch.optim.SGD([parameter for parameter in net.parameters() if parameter.requires_grad], lr=1.0)
    net(torch.randn(4, 11)).sum().backward()
    optimizer.step()
    after = net.eval()[0].state_dict()["weight"]
    assert (after != before).any(0).nonzero().squeeze(1).tolist() == columns


def test_a_run_in_the_file_is_not_made_again(tmp_path):
    made = []

    def train(seed):
        made.append(seed)
        return {"val_loss": 0.1, "test": 0.9}

    for _ in range(2):
        log = RunLog(tmp_path / "runs.jsonl")
        for seed in (0, 1):
            assert log.get({"task": TASK, "seed": seed}, lambda seed=seed: train(seed))["test"] == 0.9
    assert made == [0, 1]


@pytest.mark.filterwarnings("ignore:No new output head was found")
@pytest.mark.parametrize("config", [MethodConfig("full", weights="random"), MethodConfig("bitfit")])
def test_a_method_that_does_not_apply_to_a_network_raises_its_own_error(config):
    class Module:
        model = nn.Sequential(nn.Linear(40, 40, bias=False))

    with pytest.raises(NotApplicableError):
        prepare(config, Module(), seed=0)


class Attention(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({name: nn.Linear(40, 40) for name in ("query", "key", "value", "out")})


@pytest.mark.filterwarnings("ignore:No new output head was found")
@pytest.mark.parametrize(
    "config",
    [
        MethodConfig("lora", 2, "query_value"),
        MethodConfig("column", 2, "query_value", position="random"),
        MethodConfig("row", 2, "query_value", position="last"),
        MethodConfig("column", 2, "query_value", interval=10),
    ],
)
def test_a_method_of_queries_and_values_works_on_no_other_map(config):
    module = Attention()
    callbacks = prepare(config, module, seed=0)
    trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=callbacks)
    for callback in callbacks:
        callback.setup(trainer, module, "fit")  # opens the slices that move
    trained = {name: each.numel() for name, each in module.model.named_parameters() if each.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"query", "value"}
    lines = 2 * 40 * (2 if config.kind == "lora" else 1)  # two lines of 40 numbers each; LoRA's two matrices
    assert sum(trained.values()) == 2 * lines


@pytest.mark.filterwarnings("ignore:No new output head was found")
@pytest.mark.parametrize(
    "config",
    [
        MethodConfig("lora", 2, "query_value"),
        MethodConfig("column", 2, "query_value", position="random"),
        MethodConfig("column", 2, "query_value", interval=10),
    ],
)
def test_a_network_without_queries_leaves_methods_of_queries_out(config):
    class Module:
        model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))

    with pytest.raises(NotApplicableError, match="named as a query or value"):
        prepare(config, Module(), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "adapter", "rank": 4}, "kind='adapter' does not exist"),
        ({"kind": "column", "rank": 32, "intervall": 100}, "setting 'intervall'; choose from rank, layers, interval"),
        ({"kind": "full", "rank": 16}, "full does not have the setting 'rank'"),
        ({"kind": "lora", "rank": 16, "layers": "qkv"}, "layers='qkv' is not allowed; use all or query_value"),
        ({"kind": "column", "rank": 32, "interval": 100, "order": "walk"}, "use random or sweep or importance"),
        ({"kind": "lora", "rank": 0}, "rank=0 is not allowed; use a whole number > 0"),
        ({"kind": "lora", "rank": True}, "rank=True is not allowed; use a whole number > 0"),
        ({"kind": "lora"}, "rank is missing"),
        ({"kind": "column", "rank": 8, "position": "random", "order": "importance"}, "do not have an order"),
        ({"kind": "column", "rank": 32}, "set one of the two"),
        ({"kind": "column", "rank": 32, "interval": 100, "position": "first"}, "set one of the two"),
    ],
)
def test_an_invalid_method_is_an_error_before_any_run(settings, message):
    with pytest.raises(ValueError, match=f"^'x': .*{message}"):
        MethodConfig.read("x", settings)


def test_a_study_can_only_name_methods_of_the_file():
    content = {"methods": {"full": {"kind": "full"}}, "cost_studies": [], "first_rates": {"full": 1e-4}}
    assert Studies.read({**content, "studies": {"one": ["full"]}}).methods == {"full": MethodConfig("full")}
    with pytest.raises(ValueError, match="Study 'one' has the method 'lora'"):
        Studies.read({**content, "studies": {"one": ["full", "lora"]}})
    with pytest.raises(ValueError, match="first_rates lacks a learning rate for 'full'"):
        Studies.read({**content, "studies": {}, "first_rates": {}})


def test_the_studies_use_every_kind_and_every_method():
    assert {method.kind for method in studies().methods.values()} == set(ALLOWED)
    assert {name for names in studies().studies.values() for name in names} == set(studies().methods)


@pytest.mark.skipif(not RESULTS.is_dir(), reason="the source distribution does not contain results")
def test_every_committed_result_can_be_read():
    [path] = RESULTS.glob("accuracy_*.jsonl")
    assert len(read_scores(path)) > 50  # tasks and methods; an unknown method would raise
