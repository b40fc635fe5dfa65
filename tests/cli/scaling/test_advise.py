"""The command line of advise: its numbers against the law, its verdicts against cases that are clear, its refusals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from slicefine_pl.cli.main import main
from slicefine_pl.cli.scaling.model_size import count_parameters
from slicefine_pl.scaling import T5_C4, VIT_JFT4B, costs

TINY_BERT = str(Path(__file__).parents[3] / "recipes" / "configs" / "smoke" / "tiny_bert")


@pytest.fixture
def advise(tmp_path, capsys):
    """Run the command; what it wrote and what it printed."""

    def run(*flags):
        path = tmp_path / "advice.json"
        assert main(["advise", *flags, "--json", str(path)]) == 0, capsys.readouterr().err
        return json.loads(path.read_text()), " ".join(capsys.readouterr().out.split())

    return run


def test_ideal_and_masked_dense_stand_side_by_side(advise):
    flops = 3 * float(T5_C4.chinchilla_compute(2e7))
    output, printed = advise("--law", "t5", "--parameters", "20M", "--compute", str(flops))
    assert [found["cost"] for found in output["best"]] == ["ideal", "masked dense"]
    for found, cost in zip(output["best"], (costs.ideal, costs.masked_dense), strict=True):
        sparsity = float(T5_C4.optimal_sparsity(2e7, flops, cost))
        assert found["sparsity"] == pytest.approx(sparsity, abs=1e-9)
        assert found["loss"] == pytest.approx(float(T5_C4.loss(sparsity, 2e7, flops / (12e7 * cost(sparsity)))))
        assert found["near_best"][0] <= sparsity <= found["near_best"][1]
        assert found["interval"][0] <= sparsity <= found["interval"][1]
    assert output["budget_in_dense_optima"] == pytest.approx(3)
    assert "3 times the dense-optimal budget" in printed
    assert "Jin et al." in printed


def test_images_cost_their_tokens(advise):
    """A budget for images is FLOPs: 196 tokens each, or as many as the user says."""
    few, _ = advise("--law", "vit", "--parameters", "20M", "--compute", "1e21")
    many, _ = advise("--law", "vit", "--parameters", "20M", "--compute", "4e21", "--tokens-per-image", "784")
    expected = float(VIT_JFT4B.optimal_sparsity(2e7, 1e21 / 196))
    assert few["best"][0]["sparsity"] == pytest.approx(expected, abs=1e-9)
    assert many["best"][0]["sparsity"] == pytest.approx(expected, abs=1e-9)


def test_dense_models_that_cost_the_same_really_do(advise):
    """Every row next to the sparse one, recomputed: FLOPs if they followed the non-zeros, and FLOPs of today."""
    output, _ = advise("--law", "t5", "--parameters", "50M", "--compute", "1e20", "--two-four")
    sparsity = output["compared_sparsity"]
    sparse, same, ideal_long, real_long, ideal_wide, real_wide, equal = output["comparisons"]
    spent = 6 * sparse["parameters"] * sparse["data"]
    flops = [6 * row["parameters"] * row["data"] for row in (same, ideal_long, real_long, ideal_wide, real_wide)]
    c_ideal, c_real = float(costs.ideal(sparsity)), 1 / (1 - sparsity)
    np.testing.assert_allclose(flops, spent * np.array([1, c_ideal, c_real, c_ideal, c_real]))
    assert spent * c_real == pytest.approx(1e20)
    assert real_wide["loss"] < sparse["loss"] < same["loss"]
    assert equal["loss"] == pytest.approx(sparse["loss"])


def test_the_answer_explains_the_letters_of_the_law_and_writes_no_exponents_for_counts(advise):
    _, printed = advise("--law", "t5", "--parameters", "85M", "--data", "40B", "--hours", "24", "--device", "a100")
    assert "D the training data" in printed
    assert not re.search(r"e\+", printed)


def test_hours_and_the_devices_pattern_reach_the_request(advise):
    output, _ = advise("--law", "t5", "--parameters", "50M", "--hours", "3", "--device", "h100", "--utilization", "0.3")
    assert output["request"]["flops"] == pytest.approx(3 * 3600 * 989.4e12 * 0.3)
    assert output["request"]["two_four"] is True
    off, _ = advise("--law", "t5", "--parameters", "50M", "--hours", "3", "--device", "h100", "--no-two-four")
    assert off["request"]["two_four"] is False


def test_without_the_pattern_the_dense_parent_wins(advise):
    output, printed = advise("--law", "t5", "--parameters", "50M", "--compute", "1e20", "--no-two-four")
    assert output["usable_sparsity"] == 0
    assert "Train dense. Without 2:4 products" in printed


def test_much_compute_on_the_pattern_trains_sparse_and_little_trains_dense(advise):
    much = str(200 * float(T5_C4.chinchilla_compute(2e7)))
    little = str(0.1 * float(T5_C4.chinchilla_compute(2e7)))
    sparse, printed = advise("--law", "t5", "--parameters", "20M", "--compute", much, "--two-four")
    assert sparse["usable_sparsity"] == 0.5
    assert "Train 50 % sparse in the 2:4 pattern" in printed
    dense, printed = advise("--law", "t5", "--parameters", "20M", "--compute", little, "--two-four")
    assert dense["usable_sparsity"] == 0
    assert dense["best"][1]["sparsity"] == 0
    assert "Train dense at 20M parameters" in printed


def test_a_timing_of_ones_own_is_a_third_cost(advise):
    output, _ = advise("--law", "t5", "--parameters", "20M", "--compute", "1e18", "--two-four", "--speedup", "1.4")
    assert [found["cost"] for found in output["best"]] == ["ideal", "masked dense", "measured"]
    assert output["best"][2]["sparsity"] == pytest.approx(float(T5_C4.optimal_sparsity(2e7, 1e18, costs.Measured(1.4))))


def test_data_alone_are_one_dense_pass_and_all_data_are_used(advise):
    output, printed = advise("--law", "t5", "--parameters", "20M", "--data", "20B")
    assert output["request"]["flops"] == pytest.approx(6 * 2e7 * 2e10)
    assert "1 dense passes" in printed
    rich, _ = advise("--law", "vit", "--parameters", "20M", "--data", "300M", "--compute", str(6 * 2e7 * 3e8 * 196 * 2))
    assert rich["best"][1]["limited_by"] == "data"
    assert rich["best"][1]["sparsity"] == pytest.approx(0.5)  # twice the compute of a pass: half the parent is zeros


def test_a_dense_model_at_hand_is_pruned_if_its_cost_is_sunk_only(advise):
    flags = ["--law", "t5", "--parameters", "50M", "--compute", "1e18", "--two-four"]
    flags += ["--dense-model", "100M", "--dense-data", "60B"]
    sunk, printed = advise(*flags)
    assert sunk["start"]["from_dense"] is True
    assert sunk["start"]["optimistic"] < sunk["start"]["pessimistic"]
    assert sunk["start"]["data"] == pytest.approx(1e18 / (6 * 100e6))
    assert "Prune your dense model to 50 %" in printed
    counted, printed = advise(*flags, "--no-sunk-cost")
    assert counted["start"]["from_dense"] is False
    assert "costs more than the whole budget" in printed


def test_extrapolation_is_warned_of_by_its_factor(advise):
    inside, _ = advise("--law", "t5", "--parameters", "50M", "--data", "30B")
    assert not [line for line in inside["warnings"] if line.startswith("Extrapolation")]
    outside, _ = advise("--law", "t5", "--parameters", "86M", "--data", "30B")
    assert any("more than 85M" in line for line in outside["warnings"])
    far, printed = advise("--law", "vit", "--parameters", "20M", "--data", "1.2M")
    assert any("do not believe the losses" in line for line in far["warnings"])
    assert "No law covers this case" in printed


def test_pruning_a_dense_model_beyond_the_fit_is_warned_of(advise):
    flags = ["--law", "t5", "--parameters", "85M", "--data", "40B", "--device", "a100", "--hours", "24"]
    output, printed = advise(*flags, "--dense-model", "8.5B", "--dense-data", "60B")
    assert output["start"]["from_dense"] is True
    assert any("pruning to 99 %" in line and "sparser than 87.5 %" in line for line in output["warnings"])
    assert any("while pruning the dense model" in line for line in output["warnings"])
    assert "does not fit 2:4" in printed
    assert "measure on your hardware" not in printed


def test_the_picture_is_written(advise, tmp_path):
    advise("--law", "vit", "--parameters", "20M", "--data", "1B", "--plot", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_models_are_counted_without_embeddings():
    model = AutoModel.from_config(AutoConfig.from_pretrained(TINY_BERT))
    embedded = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    assert count_parameters(TINY_BERT) == sum(p.numel() for p in model.parameters()) - embedded
    assert torch.get_default_device() == torch.device("cpu")


def test_vision_backbones_are_counted_too(advise):
    """ViT-S/16 as in Touvron et al., 22.05M parameters with its head and its table of 197 positions: 21.59M without."""
    assert count_parameters("timm/vit_small_patch16_224") == pytest.approx(22.05e6 - 385e3 - 197 * 384, rel=5e-4)
    output, _ = advise("--law", "vit", "--model", "timm/vit_small_patch16_224", "--data", "1B")
    assert output["request"]["nonzero_params"] == count_parameters("timm/vit_small_patch16_224")


BASE = ["--law", "t5", "--parameters", "20M"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*BASE, "--compute", "1e9"], "compute=1B FLOPs is less than one step of 65,536 items"),
        ([*BASE, "--compute", "1e18", "--data", "100"], "data=100 is less than one step"),
        (BASE, "no budget is given; add --data, --compute"),
        ([*BASE, "--compute", "-5"], "'-5' is not a positive number"),
        ([*BASE, "--data", "lots"], "'lots' is not a positive number; write it as 22e6"),
        ([*BASE, "--hours", "3"], "hours=3 needs a device; add --device"),
        ([*BASE, "--hours", "3", "--device", "abacus"], "device='abacus' is unknown; choose one of v100"),
        ([*BASE, "--hours", "3", "--device", "a100", "--utilization", "2"], "utilization=2.0"),
        ([*BASE, "--data", "1B", "--speedup", "1.3"], "speedup=1.3 is the timing of a 2:4 step"),
        ([*BASE, "--data", "1B", "--dense-data", "40M"], "name it with --dense-model"),
        ([*BASE, "--data", "1B", "--no-sunk-cost"], "name it with --dense-model"),
        ([*BASE, "--data", "1B", "--dense-model", "40M"], "dense-model=40M needs what it was trained on"),
        ([*BASE, "--data", "1B", "--dense-model", "10M", "--dense-data", "1B"], "is not fewer than the 10M"),
        (["--law", "t6", "--parameters", "20M", "--data", "1B"], "law='t6' cannot be read"),
        (["--law", TINY_BERT + "/config.json", "--parameters", "2M", "--data", "1B"], "does not contain a law"),
        (["--law", "t5", "--model", "./no/such/model", "--data", "1B"], "model='./no/such/model' cannot be counted"),
        (["--law", "t5", "--model", "timm/no_such_net", "--data", "1B"], "model='timm/no_such_net' cannot be counted"),
        (["--law", "t5", "--data", "1B"], "one of the arguments --parameters --model is required"),
    ],
)
def test_impossible_input_is_one_sentence_and_code_2(capsys, flags, message):
    try:
        code = main(["advise", *flags])
    except SystemExit as leaving:  # argparse's own way out
        code = leaving.code
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("command", ["advise", "fit-law"])
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    assert f"example:\n  slicefine {command} " in capsys.readouterr().out
