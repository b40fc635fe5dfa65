"""The closing table of a fit."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from slicefine_pl.callbacks.linear_probe import LinearProbe
from slicefine_pl.cli.recipe.result import print_result
from slicefine_pl.cli.recipe.run_report import RunReport


@pytest.mark.parametrize(("after", "worse"), [(0.5, True), (0.7, False), (0.8, False)])
def test_a_result_below_the_linear_head_is_said(after, worse, capsys):
    probe, report = LinearProbe(), RunReport()
    probe.scores, report.trainable = {"test": 0.7}, 1
    trainer = Trainer(callbacks=[probe, report], logger=False, enable_checkpointing=False, accelerator="cpu")
    print_result(trainer, BoringModel(), {"test/accuracy": after, "test/loss": 1.0}, "", None, None)
    output = capsys.readouterr().out
    assert f"test/accuracy after   {after:.4f}" in output
    assert ("Fine-tuning ended below the linear head (0.5000 < 0.7000)" in output) == worse
