"""Losses, gradients and weights that are not finite."""

import math
import warnings

import pytest
import torch
from helpers.sliced_run import SETTINGS, Module, loader, trainer
from torch import nn

from slicefine_pl import SliceFineCallback
from slicefine_pl.callbacks.support.nonfinite import describe_nonfinite


def test_a_loss_alone_can_be_infinite():
    net = nn.Linear(2, 1)
    net(torch.ones(1, 2)).sum().backward()
    assert describe_nonfinite(net, torch.tensor(math.inf)) == "the loss is inf and all gradients here are finite"
    net.bias.grad.fill_(math.nan)
    assert describe_nonfinite(net, None) == "the loss is unknown and the gradient is not finite in bias"


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_weights_that_a_step_made_infinite_stop_the_run(nonfinite):
    """Even if steps are skipped: all later losses would be NaN, and the run would end with useless weights."""
    module = Module(lambda parameters: torch.optim.SGD(parameters, lr=math.inf))
    callback = SliceFineCallback(**SETTINGS, nonfinite=nonfinite)
    with pytest.raises(
        FloatingPointError, match=r"weights themselves are not finite since step 0: .*trunk\.0"
    ) as error:
        trainer(callback).fit(module, loader())
    assert "previous step" not in str(error.value)


def test_weights_that_are_not_finite_before_training_are_an_error():
    module = Module()
    module.trunk[2].weight.data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"not finite before the first step: .*trunk\.2"):
        trainer(SliceFineCallback(**SETTINGS, nonfinite="skip")).fit(module, loader())


class Spoiled(Module):
    """The loss is NaN from the third batch on."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 if batch_idx < 2 else math.nan)


def test_skipped_steps_are_one_warning_and_a_count():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(SliceFineCallback(**SETTINGS, nonfinite="skip")).fit(Spoiled(), loader())
    first, count = [str(each.message) for each in caught if "skipped" in str(each.message)]
    assert first.startswith("Step 2: the loss is nan")
    assert count == "6 steps were skipped, because the loss or a gradient was not finite."
