"""If a slice is not trained, or another parameter is, the error names the cause."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from slicefine_pl import SliceFineCallback


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.trunk(x))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, *callbacks, data=None, **settings) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2}
    slicing = {"rank": 2, "targets": "trunk", "also_train": "head", "interval": 3} | settings
    if data is None:
        data = TensorDataset(torch.randn(16, 6), torch.randint(3, (16,)))
    Trainer(callbacks=[SliceFineCallback(**slicing), *callbacks], **quiet).fit(module, DataLoader(data, batch_size=4))


class Reentrant(Module):
    """A network that checkpoints its trunk, or all layers."""

    def __init__(self, *, whole=False, grad=False):
        super().__init__()
        self.whole, self.grad = whole, grad

    def forward(self, x):
        x = x.requires_grad_(self.grad)
        part = super().forward if self.whole else self.trunk
        out = checkpoint(part, x, use_reentrant=True)
        return out if self.whole else self.head(out)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # a warning of torch
@pytest.mark.parametrize("whole", [False, True])
def test_reentrant_checkpointing_of_frozen_inputs_is_named(whole):
    message = (
        r"slices of trunk\.0, trunk\.2 received no gradient at the first step: .* use_reentrant=True, whose inputs do"
    )
    with pytest.raises(MisconfigurationException, match=message):
        fit(Reentrant(whole=whole))


@pytest.mark.parametrize("whole", [False, True])
def test_reentrant_checkpointing_of_inputs_with_gradient_equals_no_checkpointing(whole):
    plain, checkpointed = Module(), Reentrant(whole=whole, grad=True)
    checkpointed.load_state_dict(plain.state_dict())
    data = TensorDataset(torch.randn(16, 6), torch.randint(3, (16,)))
    for module in (plain, checkpointed):
        fit(module, data=data)
    for ours, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_reentrant_checkpointing_of_transformers():
    from transformers import BertConfig, BertForSequenceClassification

    class Text(Module):
        def __init__(self):
            super().__init__()
            config = BertConfig(
                vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
            )
            self.bert = BertForSequenceClassification(config)
            self.bert.gradient_checkpointing_enable({"use_reentrant": True})
            self.bert.disable_input_require_grads()  # as in older versions of transformers

        def training_step(self, batch, batch_idx):
            return self.bert(input_ids=batch[0], labels=batch[1]).loss

    tokens = TensorDataset(torch.randint(30, (8, 5)), torch.randint(2, (8,)))
    with pytest.raises(MisconfigurationException, match=r"use_reentrant=True.*enable_input_require_grads\(\)"):
        fit(Text(), data=tokens, targets="query", also_train=None)


@pytest.mark.parametrize("whole", [False, True])
def test_layers_that_run_under_no_grad_are_named(whole):
    class Features(Module):
        def forward(self, x):
            with torch.no_grad():
                features = super().forward(x) if whole else self.trunk(x)
            return features if whole else self.head(features)

    with pytest.raises(MisconfigurationException, match=r"trunk\.0, trunk\.2 received .* as under torch\.no_grad\(\)"):
        fit(Features())


def test_an_unused_layer_is_named():
    class Unused(Module):
        def forward(self, x):
            return self.head(self.trunk[:2](x)[:, :5])

    with pytest.raises(MisconfigurationException, match=r"trunk\.2 received .*the network does not use these layers"):
        fit(Unused())


def on(hook, change, epoch):
    def act(trainer, pl_module, *_):
        if trainer.current_epoch == epoch:
            change(pl_module)

    return LambdaCallback(**{hook: act})


@pytest.mark.parametrize(
    ("hook", "epoch"),
    [("on_fit_start", 0), ("on_train_epoch_start", 1), ("on_train_batch_start", 1), ("on_train_batch_end", 0)],
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: module.trunk.requires_grad_(False), r"trunk\.0, trunk\.2 do not require a gradient any more"),
        (lambda module: module.freeze(), r"trunk\.0, trunk\.2 do not require a gradient any more"),
        (
            lambda module: module.trunk[2].requires_grad_(False),
            r"slices of trunk\.2 do not require a gradient any more",
        ),
        (
            lambda module: module.trunk[0].bias.requires_grad_(True),
            r"trunk\.0\.bias require a gradient but are neither",
        ),
        (lambda module: module.unfreeze(), r"trunk\.0\.weight, trunk\.0\.bias, trunk\.2\.weight and 1 more require"),
    ],
)
def test_freezing_and_unfreezing_is_refused_in_every_hook(hook, epoch, change, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(Module(), on(hook, change, epoch))


@pytest.mark.parametrize("collected", ["optimizer", "parameters"])
def test_an_optimizer_over_parameters_collected_before_the_slices_is_refused(collected):
    class Early(Module):
        def __init__(self):
            super().__init__()
            self.early = list(self.parameters())
            self.optimizer = torch.optim.SGD(self.early, lr=0.1)

        def configure_optimizers(self):
            return self.optimizer if collected == "optimizer" else torch.optim.SGD(self.early, lr=0.1)

    with pytest.raises(MisconfigurationException, match=r"No optimizer holds the slice of trunk\.0.* lacks the slices"):
        fit(Early())


class Gan(LightningModule):
    """Two networks with an optimizer each; one is frozen while the other trains."""

    def __init__(self, toggle):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization, self.toggle = False, toggle
        self.maker, self.critic = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            if self.toggle:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(sign * self.critic(self.maker(batch[0])).square().mean())
            optimizer.step()
            if self.toggle:
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=0.01) for net in (self.maker, self.critic)]


def test_toggled_optimizers_train_like_untoggled_ones():
    data, modules = TensorDataset(torch.randn(16, 6)), [Gan(toggle) for toggle in (True, False)]
    for module in modules:
        fit(module, data=data, targets=["maker", "critic"], also_train=[])
    for ours, theirs in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(parameter.requires_grad for parameter in modules[0].parameters())


@pytest.mark.parametrize(("interval", "hinted"), [(100, True), (9, True), (8, False), (2, False), (None, False)])
def test_a_run_that_is_too_short_to_move_suggests_a_shorter_interval(interval, hinted, caplog):
    """With eight steps; the suggested interval moves the slices as often as the message says."""
    with caplog.at_level("INFO"):
        fit(Module(), interval=interval)
    said = [record.message for record in caplog.records if "never move" in record.message]
    assert len(said) == hinted
    if hinted:
        assert (
            f"the run makes 8 optimizer steps and interval is {interval}. interval=2 would move them 3 times" in said[0]
        )
