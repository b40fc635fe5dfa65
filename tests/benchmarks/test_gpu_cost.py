"""What the GPU's cost benchmark is built on: networks of published size, shared weights, compiled blocks, goals."""

import time
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.cost import goals
from benchmarks.gpu.cost.compare import compare, units
from benchmarks.gpu.cost.goals import Goal, verdicts
from benchmarks.gpu.cost.table import table
from benchmarks.harness.memory import storages
from benchmarks.harness.methods import METHODS
from benchmarks.harness.published import PUBLISHED, build_published
from benchmarks.harness.rounds import LEAST, WARM_UP, interleaved
from benchmarks.harness.training import blocks_of, prepare, timed_step

PARAMETERS = {  # in millions, as published; classifiers of ours have other heads
    "Llama-3.2-3B": 3212.7,
    "Llama-3.2-1B": 1235.8,
    "Llama-3.1-8B": 8030.3,
    "RoBERTa-large": 355.4,
    "ViT-B": 85.8,
    "ViT-L": 303.3,
    "VideoMAE-B": 86.2,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_their_published_size(name):
    network = PUBLISHED[name]
    with torch.device("meta"):
        net = network.make(*network.batches[0], **network.size).net
    assert sum(each.numel() for each in net.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_methods_work_on_all_blocks_and_not_on_the_head(name):
    workload = build_published(name, "cpu", ())
    inside = [each for each in workload.targets() if ".0." in each or ".1." in each]
    assert len(inside) >= len(workload.targets()) - 1  # the other one embeds patches
    assert len(inside) == 2 * len([each for each in inside if ".0." in each])
    assert not any(each.startswith(workload.head) for each in workload.targets())
    assert len(blocks_of(workload.net)) == 2


def test_what_throughput_counts():
    assert {name: units(build_published(name, "cpu", ())) for name in ("Llama-3.2-1B", "ViT-B", "VideoMAE-B")} == {
        "Llama-3.2-1B": 2 * 12,
        "ViT-B": 2,
        "VideoMAE-B": 2,
    }


def test_copies_share_weights_and_nothing_else():
    """Tied weights stay tied; freezing or adapting a copy leaves the others alone."""
    plain = build_published("Llama-3.2-1B", "cpu", ())
    copies = [plain.with_shared_weights() for _ in range(2)]
    prepare(copies[0], METHODS["lora"], 4, "cpu")
    assert storages(copies[1].net.parameters()).keys() == storages(plain.net.parameters()).keys()
    assert copies[1].net.lm_head.weight is copies[1].net.model.embed_tokens.weight
    assert copies[1].net.lm_head.weight is not plain.net.lm_head.weight
    assert all(each.requires_grad for each in copies[1].net.parameters())
    assert len(list(copies[0].net.parameters())) > len(list(copies[1].net.parameters()))
    torch.testing.assert_close(copies[1].loss(copies[1].net), plain.loss(plain.net), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by the compiler
@pytest.mark.parametrize("layers", [3, 6])
def test_equal_blocks_are_compiled_once_and_moves_do_not_compile_again(layers, monkeypatch):
    """Two graphs, because the first block's input needs no gradient; however many blocks there are."""
    network = PUBLISHED["Llama-3.2-1B"]
    monkeypatch.setitem(PUBLISHED, "Llama-3.2-1B", replace(network, toy={**network.toy, "layers": layers}))
    torch.compiler.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    method = replace(METHODS["slice, column"], compiled="blocks", backend="eager")
    run = prepare(build_published("Llama-3.2-1B", "cpu", ()), method, 8, "cpu")
    for _ in range(2):
        timed_step(run, "cpu")
    assert run.handle.moves == 2
    assert graphs["unique_graphs"] == 2
    torch.compiler.reset()


def test_a_network_without_equal_blocks_is_refused():
    with pytest.raises(ValueError, match="Linear contains no list of equal blocks; compile the whole network"):
        blocks_of(torch.nn.Linear(2, 2))


def test_rounds_end_when_time_is_over_but_not_before_the_least():
    rounds = list(interleaved(["a", "b"], lambda name, number: number, 100, seconds=0, progress=False))
    assert rounds == [dict.fromkeys("ab", number) for number in range(WARM_UP, WARM_UP + LEAST)]
    begin = time.monotonic()
    rounds = list(interleaved(["a"], lambda name, number: time.sleep(0.01), 10_000, seconds=0.5, progress=False))
    assert LEAST < len(rounds) < 10_000
    assert time.monotonic() - begin >= 0.5


def test_several_steps_of_a_turn_are_averaged():
    run = prepare(build_published("ViT-B", "cpu", ()), METHODS["slice, column"], 4, "cpu")
    seconds = timed_step(run, "cpu", steps=3)
    assert seconds["step"] == pytest.approx(seconds["forward"] + seconds["backward"] + seconds["update"])
    assert 0 < seconds["write"] < seconds["update"]
    [state] = {int(state["step"]) for state in run.optimizer.state.values()}
    assert state == 1 + 3


def test_goals_apply_by_width_and_network(monkeypatch):
    monkeypatch.setattr(goals, "GOALS", (
        Goal("columns", "time_vs_baseline", 1.02, least_width=2048),
        Goal("columns", "peak_vs_lora", 0.65, networks=("B",)),
        Goal("rows", "write_share", 0.005),
    ))  # fmt: skip
    row = {"time_vs_baseline": {"p16": 1.0, "median": 1.02, "p84": 1.1}, "peak_vs_lora": 0.66}
    assert list(verdicts("A", 2048, {"columns": row})) == [
        {"candidate": "columns", "figure": "time_vs_baseline", "at_most": 1.02, "measured": 1.02, "met": True}
    ]
    assert list(verdicts("B", 1024, {"columns": row})) == [
        {"candidate": "columns", "figure": "peak_vs_lora", "at_most": 0.65, "measured": 0.66, "met": False}
    ]
    assert [goal["candidate"] for goal in verdicts("A", 1, {"rows": {"write_share": 0.1}})] == ["rows"]


def test_a_candidate_that_does_not_fit_is_left_out_and_named(monkeypatch):
    def too_large(net, head, targets, rank):
        raise torch.OutOfMemoryError("Tried to allocate 48.00 GiB.")

    monkeypatch.setitem(METHODS, "full", replace(METHODS["full"], prepare=too_large))
    monkeypatch.setattr("benchmarks.gpu.cost.compare.ROUNDS", {"cpu": 1})
    figures = compare("cpu", network="ViT-B", batch=(64,), compiled=False, seconds=60)
    assert "full" not in figures["rows"]
    assert figures["left_out"] == {
        "full": "It does not fit into memory next to the candidates above. Tried to allocate 48.00 GiB."
    }
    figures["goals"] = list(verdicts("ViT-B", 768, figures["rows"]))
    printed = table(figures)
    assert "full is left out. It does not fit into memory" in printed
    [ratio] = [line.split() for line in printed.splitlines() if line.startswith("DoRA r=32")]
    assert f"{figures['rows']['DoRA r=32']['time_vs_baseline']['median']:.3f}" in ratio
    assert "goal met: " in printed or "goal MISSED: " in printed


def test_miss_adapts_linear_maps_only():
    workload = build_published("ViT-B", "cpu", ())
    run = prepare(workload, METHODS["miss"], 4, "cpu")
    trained = [name for name, each in run.workload.net.named_parameters() if each.requires_grad]
    assert not any("patch_embed" in name for name in trained)
    assert len([name for name in trained if "miss" in name.lower()]) == len(workload.targets()) - 1  # all but patches
