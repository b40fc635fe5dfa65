"""SliceFineCallback in real Lightning runs, against hand-written loops and dense training."""

import copy
import math
from datetime import date
from functools import partial

import pytest
import torch
from helpers.sliced_run import SETTINGS, Module, assert_equal, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slicefine_pl import SliceFineCallback
from slicefine_pl.callbacks import KernelDrift, SliceMap
from slicefine_pl.slicing import apply_slices, slice_model


class Watch(Callback):
    """Record the positions of slices at every batch, and the optimizer state of the first."""

    def __init__(self):
        self.places, self.known = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        layer = pl_module.trunk[0]
        self.places.append((layer.slicefine.axis, tuple(layer.slicefine.index.tolist())))
        self.known.append(copy.deepcopy(trainer.optimizers[0].state.get(layer.slicefine.trainable)))


def handmade(net: nn.Module, interval: int, lr: float = 0.1) -> None:
    """The same training in plain torch."""
    handle = slice_model(net, **SETTINGS)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr)
    for step, (x, y) in enumerate(loader(), start=1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        if step % interval == 0:
            handle.move()
    handle.close()


def test_a_run_equals_the_same_loop_in_plain_torch():
    module = Module()
    reference = copy.deepcopy(module)
    trainer(SliceFineCallback(**SETTINGS, interval=3)).fit(module, loader())
    handmade(reference, interval=3)
    assert_equal(module, reference)
    assert all(type(child) in (Module, nn.Sequential, nn.Linear, nn.Tanh) for child in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_moves_follow_optimizer_steps_not_batches():
    watch = Watch()
    trainer(SliceFineCallback(**SETTINGS, interval=2), watch, accumulate_grad_batches=2).fit(Module(), loader(8))
    assert [watch.places[i] == watch.places[i - 1] for i in range(1, 8)] == [True, True, True, False, True, True, True]


def test_interval_none_never_moves_and_is_the_default():
    watch = Watch()
    trainer(SliceFineCallback(**SETTINGS, interval=None), watch).fit(Module(), loader())
    assert len(set(watch.places)) == 1
    assert SliceFineCallback(rank=2).settings()["interval"] is None


@pytest.mark.parametrize("optimizer", [
    torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.Adadelta,
    torch.optim.NAdam, torch.optim.RAdam, torch.optim.Rprop, torch.optim.ASGD, torch.optim.Adamax,
    torch.optim.Adafactor,
])  # fmt: skip
def test_reset_restores_the_state_of_the_first_step_and_keep_keeps_it(optimizer):
    """After a move, the slice's next step equals the first step of a new optimizer."""
    fresh, kept = Watch(), Watch()
    for watch, choice in ((fresh, "reset"), (kept, "keep")):
        callback = SliceFineCallback(**SETTINGS, interval=4, optimizer_state=choice, lr_scale=1)
        trainer(callback, watch).fit(Module(lambda parameters: optimizer(parameters, lr=0.01)), loader())
    torch.testing.assert_close(fresh.known[4] or {}, fresh.known[0] or {}, rtol=0, atol=0)
    assert kept.known[4] != {}
    assert kept.known[4]["step"] == 4
    assert fresh.known[5]["step"] == 1


def test_reset_of_momentum_and_moves_under_lbfgs():
    watch = Watch()
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    trainer(SliceFineCallback(**SETTINGS, interval=4), watch).fit(Module(sgd), loader())
    assert [known is None for known in watch.known] == [True, False, False, False, True, False, False, False]
    history = Watch()
    trainer(SliceFineCallback(**SETTINGS, interval=4, lr_scale=1), history).fit(Module(lbfgs), loader())
    assert len(set(history.places)) == 2


def test_parameter_groups_and_schedules_do_not_change():
    def optimizer(parameters):
        named = list(parameters)
        optim = torch.optim.SGD([{"params": named[:5], "lr": 0.1}, {"params": named[5:], "lr": 0.2}], momentum=0.9)
        return [optim], [{"scheduler": torch.optim.lr_scheduler.StepLR(optim, 3, 0.5), "interval": "step"}]

    module = Module(optimizer)
    run = trainer(SliceFineCallback(**SETTINGS, interval=2))
    run.fit(module, loader(8))
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [0.025, 0.05]


@pytest.mark.parametrize("where", ["setup", "configure_model"])
def test_models_built_in_setup_or_configure_model_are_sliced(where):
    class Late(Module):
        def __init__(self):
            super().__init__()
            self.built = 0
            del self.trunk, self.head

        def build(self):
            if self.built:
                return
            self.built += 1
            torch.manual_seed(3)
            self.trunk, self.head = Module().trunk, nn.Linear(5, 3)

    setattr(Late, where, (lambda self, stage: self.build()) if where == "setup" else lambda self: self.build())
    module, watch = Late(), Watch()
    trainer(SliceFineCallback(**SETTINGS, interval=2), watch).fit(module, loader())
    assert len(set(watch.places)) == 3  # six columns, two at a time
    assert "configure_model" not in vars(module)
    torch.manual_seed(3)
    assert torch.equal(module.trunk[0].bias, Module().trunk[0].bias)
    assert not torch.equal(module.trunk[0].weight, Module().trunk[0].weight)


def test_several_optimizers_under_manual_optimization_count_their_own_steps():
    class Manual(Module):
        automatic_optimization = False

        def configure_optimizers(self):
            first = torch.optim.SGD([*self.trunk[0].parameters(), *self.head.parameters()], lr=0.1)
            return first, torch.optim.SGD(self.trunk[2].parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.manual_backward(loss)
            first.step()
            if batch_idx % 2:
                second.step()
            first.zero_grad()
            second.zero_grad()
            self.places.append((self.trunk[0].slicefine.index.tolist(), self.trunk[2].slicefine.index.tolist()))

    module = Manual()
    module.automatic_optimization = False
    module.places = []
    trainer(SliceFineCallback(**SETTINGS, interval=2)).fit(module, loader(8))
    firsts, seconds = zip(*module.places, strict=True)
    moved = lambda places: [i for i in range(1, 8) if places[i] != places[i - 1]]
    assert (moved(firsts), moved(seconds)) == ([1, 3, 5, 7], [3, 7])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision_trains_and_keeps_untouched_weights(precision):
    module = Module()
    before = copy.deepcopy(module).to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    callback = SliceFineCallback(**SETTINGS, interval=None, slice_dtype="float32")
    trainer(callback, precision=precision).fit(module, loader())
    changed = (module.trunk[0].weight != before.trunk[0].weight).any(dim=0)
    assert 0 < changed.sum() <= 2
    assert torch.equal(module.trunk[0].bias, before.trunk[0].bias)


def test_slice_dtype_is_the_same_setting_as_dtype_and_as_name():
    """Otherwise a run would not resume with the other spelling."""
    by_name, by_type = (SliceFineCallback(**SETTINGS, slice_dtype=each) for each in ("float32", torch.float32))
    assert by_name.settings() == by_type.settings()
    trainer(by_type).fit(Module(), loader())


@pytest.mark.parametrize("fused", [False, True], ids=["unscaled", "unscales itself"])
def test_steps_that_a_loss_scaler_skips_are_not_counted(fused):
    """16-mixed on CPU through Lightning's own plugin: three losses overflow, and each halves the scale.

    A fused optimizer is called at every step, and message to skip it.
    """
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    places = []

    class Overflows(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.inf if batch_idx < 3 else 1)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            places.append((callback.opened().moves, callback.training_state()["steps"][0]))

    callback = SliceFineCallback(**SETTINGS, interval=2)
    run = trainer(callback, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    run.fit(Overflows(lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=fused)), loader())
    assert places == [(0, 0), (0, 0), (0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    assert scaler.get_scale() == 1.0


def test_a_fused_optimizer_trains_like_a_plain_one():
    """Fused optimizers do not increase a tensor's version, so nothing may rely on it."""
    start = Module()
    plain, fused = copy.deepcopy(start), copy.deepcopy(start)
    for module in (plain, fused):
        module.make_optimizer = partial(torch.optim.AdamW, lr=0.1, fused=module is fused)
        trainer(SliceFineCallback(**SETTINGS, interval=3), max_epochs=2).fit(module, loader())
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    assert not torch.equal(plain.trunk[0].weight, start.trunk[0].weight)


def test_gradient_clipping_includes_the_slices():
    module = Module(lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    before = copy.deepcopy(module)
    callback = SliceFineCallback(**SETTINGS, interval=None, lr_scale=1)
    clipped = trainer(callback, gradient_clip_val=1e-3, limit_train_batches=1)
    clipped.fit(module, loader())
    moved = torch.cat([(a - b).flatten() for a, b in zip(module.parameters(), before.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_stages_before_and_after_fit(tmp_path):
    module, callback = Module(), SliceFineCallback(**SETTINGS, interval=2)
    run = trainer(callback)
    for stage in (run.validate, run.test, run.predict):
        stage(module, loader())
        assert type(module.trunk[0]) is nn.Linear
    run.fit(module, loader(), loader(2))
    result = run.validate(module, loader(2))[0]["val/loss"]
    run.save_checkpoint(tmp_path / "after.ckpt")
    plain = Module()
    plain.load_state_dict(torch.load(tmp_path / "after.ckpt")["state_dict"], strict=True)
    assert trainer().validate(plain, loader(2))[0]["val/loss"] == result
    assert trainer(callback).test(plain, loader(2), ckpt_path=tmp_path / "after.ckpt")


def test_a_second_fit_continues_the_first():
    """Two epochs in two calls of fit, or in one, visit the same positions."""
    once, twice = Watch(), Watch()
    trainer(SliceFineCallback(**SETTINGS, interval=3), once, max_epochs=2).fit(Module(), loader())
    run, module = trainer(SliceFineCallback(**SETTINGS, interval=3), twice), Module()
    run.fit(module, loader())
    run.fit_loop.max_epochs = 2
    run.fit(module, loader())
    assert twice.places == once.places


def test_a_slice_file_contains_the_run_and_the_module_settings(tmp_path):
    """Also those that JSON cannot store, as far as it can."""
    module, callback = Module(), SliceFineCallback(**SETTINGS, interval=3)
    with pytest.raises(RuntimeError, match="Nothing was trained with this callback yet"):
        callback.save(tmp_path / "a.safetensors")
    module.save_hyperparameters({"width": 8, "started": date(2026, 1, 2), "table": {(1, 2): 3}})
    base = copy.deepcopy(module)
    trainer(callback).fit(module, loader())
    callback.save(tmp_path / "a.safetensors", "some/base")
    applied = apply_slices(base, tmp_path / "a.safetensors")
    assert_equal(base, module)
    assert applied.file.extra["hyper_parameters"] == {"width": 8, "started": None, "table": {}}


def test_a_new_trainer_starts_from_zero_with_the_same_callback():
    callback, watch = SliceFineCallback(**SETTINGS, interval=3), Watch()
    for _ in range(2):
        trainer(callback, watch).fit(Module(), loader())
    assert watch.places[:8] == watch.places[8:]


def test_common_callbacks_work_with_it(tmp_path):
    callbacks = [
        SliceFineCallback(**SETTINGS, interval=2),
        ModelCheckpoint(tmp_path, monitor="val/loss", save_last=True),
        EarlyStopping("val/loss"),
        LearningRateMonitor("step"),
    ]
    module = Module()
    logger = CSVLogger(tmp_path)
    settings = {"logger": logger, "enable_checkpointing": True, "log_every_n_steps": 1, "max_epochs": 2}
    trainer(*callbacks, **settings).fit(module, loader(), loader(2))
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert {"slicefine/trained", "slicefine/coverage", "slicefine/moves"} <= set(rows.splitlines()[0].split(","))
    assert set(torch.load(tmp_path / "last.ckpt")["state_dict"]) == set(Module().state_dict())


def test_logged_numbers_are_right(tmp_path):
    logged = []

    class Logger(CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((step, metrics))

    trainer(SliceFineCallback(**SETTINGS, interval=4), logger=Logger(tmp_path)).fit(Module(), loader(8))
    ours = [(step, metrics) for step, metrics in logged if "slicefine/moves" in metrics]
    assert [(step, metrics["slicefine/moves"]) for step, metrics in ours] == [(0, 0), (3, 1), (7, 2)]
    assert ours[0][1]["slicefine/trained"] == 2 * (8 + 5) + 18
    target = 6 * 8 + 8 * 5
    assert [metrics["slicefine/coverage"] for _, metrics in ours] == [2 * k * (8 + 5) / target for k in (0, 1, 2)]


def test_a_move_after_the_last_step_does_not_count_as_trained(caplog):
    """BoringModel has one weight of 2 x 32: 30 steps train three positions of 8 columns, and the third move none."""
    callback = SliceFineCallback(rank=8, interval=10, also_train=[])
    with caplog.at_level("INFO"):
        trainer(callback, max_steps=30).fit(BoringModel())
    assert "the slices moved 3 times; 75.0% of the 64 weights in sliced layers were trained" in caplog.text
    [state] = callback.training_state()["slices"]["slices"].values()
    assert state["visited"]["column"].sum() == 24
    assert not state["visited"]["column"][state["index"]].any()  # a resumed run trains new columns


class Drift(KernelDrift):
    def outputs(self, pl_module, batch):
        return pl_module(batch[0])


@pytest.mark.parametrize("reader", [SliceMap, Drift])
def test_callbacks_that_read_slices_must_come_before_weight_averaging(reader, tmp_path):
    """At the end of training, averages replace the slices' values; in the right order the reader changes nothing."""
    averaged = []
    for readers in ([], [reader()]):
        seed_everything(0, verbose=False)
        module = Module()
        callbacks = [SliceFineCallback(**SETTINGS, interval=3), *readers, EMAWeightAveraging(decay=0.9)]
        trainer(*callbacks, default_root_dir=tmp_path).fit(module, loader())
        averaged.append(module)
    assert_equal(*averaged)
    with pytest.raises(MisconfigurationException, match=f"EMAWeightAveraging is listed before {reader.__name__}"):
        trainer(SliceFineCallback(**SETTINGS), EMAWeightAveraging(), reader()).fit(Module(), loader())


def test_slices_that_two_optimizers_hold_are_refused():
    class Shared(Module):
        def configure_optimizers(self):
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return [torch.optim.SGD(trained, lr=0.1), torch.optim.SGD(trained, lr=0.1)]

    module = Shared()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="Several optimizers hold the slices of"):
        trainer(SliceFineCallback(**SETTINGS)).fit(module, loader())


class GradientsInValidation(Module):
    """Computes gradients in validation, as a penalty or an attribution does."""

    def validation_step(self, batch, batch_idx):
        with torch.inference_mode(False), torch.enable_grad():
            self(batch[0].clone()).sum().backward()
        self.zero_grad()


@pytest.mark.parametrize("averaging", ["ema", "swa"])
@pytest.mark.parametrize("kind", [Module, GradientsInValidation])
def test_weight_averaging_averages_the_dense_weights(averaging, kind):
    """The EMA of a sliced run equals that of its dense weights, recomputed from the run."""

    class Recompute(Callback):
        average = None

        def on_train_batch_end(self, trainer, pl_module, *_):
            now = pl_module.trunk[0].weight.detach().clone()
            self.average = now if self.average is None else 0.5 * self.average + 0.5 * now

    callback, recompute, module = SliceFineCallback(**SETTINGS, interval=3), Recompute(), kind()
    if averaging == "ema":
        trainer(callback, EMAWeightAveraging(decay=0.5), recompute).fit(module, loader(), loader(2))
        torch.testing.assert_close(module.trunk[0].weight.detach(), recompute.average)
    else:
        before = copy.deepcopy(module)
        swa = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
        trainer(callback, swa, max_epochs=4).fit(module, loader())
        assert torch.equal(module.trunk[0].bias, before.trunk[0].bias)
        assert torch.isfinite(module.trunk[0].weight).all()
    with pytest.raises(MisconfigurationException, match="put SliceFineCallback first"):
        trainer(EMAWeightAveraging(), SliceFineCallback(**SETTINGS)).fit(Module(), loader())


def test_stochastic_weight_averaging_before_a_last_pass_for_batch_norm_averages_the_dense_weights():
    """Lightning loads the averages before that pass; averages of slices that have moved must not be used."""

    class Normalised(Module):
        def __init__(self):
            super().__init__()
            self.trunk.append(nn.BatchNorm1d(5))

    class Recompute(Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_start(self, trainer, pl_module):
            if 1 <= trainer.current_epoch < 4:
                self.seen.append(pl_module.trunk[0].weight.detach().clone())

    recompute, module = Recompute(), Normalised()
    swa = StochasticWeightAveraging(1e-7, swa_epoch_start=2, annealing_epochs=1)  # practically no step in the last pass
    trainer(SliceFineCallback(**SETTINGS, interval=3), recompute, swa, max_epochs=4).fit(module, loader())
    assert not torch.equal(recompute.seen[0], recompute.seen[-1])
    torch.testing.assert_close(module.trunk[0].weight.detach(), torch.stack(recompute.seen).mean(0), atol=1e-5, rtol=0)


def test_a_slice_without_gradient_is_an_error_that_names_the_layer():
    class Unused(Module):
        def forward(self, x):
            return self.head(self.trunk[:2](x)[:, :5])

    with pytest.raises(MisconfigurationException, match=r"slices of trunk\.2 received no gradient at the first step"):
        trainer(SliceFineCallback(**SETTINGS)).fit(Unused(), loader())


class Mixed(Module):
    """A convolution, a depthwise convolution, attention and a raw parameter."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleDict(
            {
                "convolution": nn.Conv1d(3, 8, 3, padding=1),
                "depthwise": nn.Conv1d(8, 8, 3, padding=1, groups=8),
                "attention": nn.MultiheadAttention(8, 2, batch_first=True),
                "positions": nn.Embedding(2, 8),
            }
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.trunk["depthwise"](self.trunk["convolution"](x.view(-1, 3, 2))).transpose(1, 2)
        x = x + self.trunk["positions"].weight
        return self.head(self.trunk["attention"](x, x, x)[0].mean(1))


@pytest.mark.parametrize("backend", ["auto", "mask"])
def test_every_kind_of_layer_moves_in_one_run_and_nothing_else_changes(backend):
    module = Mixed()
    module.make_optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    before = copy.deepcopy(module)
    callback = SliceFineCallback(1, "row", 3, targets="trunk", also_train="head", backend=backend)
    trainer(callback, max_epochs=1).fit(module, loader(6))
    visited = callback.training_state()["slices"]["slices"]
    assert len(visited) == 7  # two convolutions, q, k, v, the output projection, the raw parameter
    for name, state in visited.items():
        owner, packed, part = name.rpartition(".in_proj_weight.")
        rows = state["visited"]["row"]
        now, then = (
            net.get_submodule(owner).in_proj_weight.chunk(3)["qkv".index(part)]
            if packed
            else net.get_submodule(name).weight
            for net in (module, before)
        )
        changed = (now != then).flatten(1).any(1)
        assert not changed[~rows].any(), name
        assert changed.any(), name
    assert torch.equal(module.trunk["attention"].in_proj_bias, before.trunk["attention"].in_proj_bias)


class Towers(Module):
    """Two towers that take turns, like experts or contrastive pairs."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 5)])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.trunk[batch_idx % 2](batch[0])), batch[1])

    validation_step = None


def test_layers_that_take_turns_train_within_the_limit():
    module = Towers()
    before = copy.deepcopy(module.trunk)
    trainer(SliceFineCallback(**SETTINGS, interval=3, max_steps_without_grad=2)).fit(module, loader())
    assert all(not torch.equal(now.weight, then.weight) for now, then in zip(module.trunk, before, strict=True))
    with pytest.raises(MisconfigurationException, match=r"slices of trunk\.1 received no gradient at the first step"):
        trainer(SliceFineCallback(**SETTINGS)).fit(Towers(), loader())


def test_a_layer_without_gradient_within_the_limit_is_an_error():
    class OneTower(Towers):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, 0)

    callback = SliceFineCallback(**SETTINGS, interval=2, max_steps_without_grad=5)
    run = trainer(callback)
    with pytest.raises(MisconfigurationException, match=r"trunk\.1 received no gradient in the first 5 steps"):
        run.fit(OneTower(), loader())
    assert run.global_step == 4


def test_slices_outside_the_optimizer_are_an_error():
    class HeadOnly(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    with pytest.raises(
        MisconfigurationException, match=r"No optimizer holds the slice of trunk\.0, the slice of trunk\.2"
    ):
        trainer(SliceFineCallback(**SETTINGS)).fit(HeadOnly(), loader())


def test_groups_that_leave_out_a_slice_are_named():
    """The usual groups with and without weight decay, of which one forgets a parameter."""

    class Groups(Module):
        def configure_optimizers(self):
            named = [(name, each) for name, each in self.named_parameters() if each.requires_grad]
            return torch.optim.SGD([each for name, each in named if "bias" not in name], lr=0.1)

    message = r"No optimizer holds head\.bias, although one holds other slices: the parameter groups .* leave these out"
    with pytest.raises(MisconfigurationException, match=message):
        trainer(SliceFineCallback(**SETTINGS)).fit(Groups(), loader())


class Pooler(Module):
    """A layer that the network does not use, as the pooler of an encoder with an own head."""

    def __init__(self):
        super().__init__()
        self.pooler = nn.Sequential(nn.Linear(8, 8))


def test_a_layer_that_is_not_used_can_be_excluded():
    settings = {"rank": 2, "also_train": "head", "interval": 3}
    with pytest.raises(MisconfigurationException, match=r"Leave them out with exclude=r'\^pooler\\\.0\$';"):
        trainer(SliceFineCallback(**settings)).fit(Pooler(), loader())
    module = Pooler()
    pooler = copy.deepcopy(module.pooler)
    callback = SliceFineCallback(**settings, exclude=r"^pooler\.0$")
    trainer(callback).fit(module, loader())
    assert list(callback.training_state()["slices"]["slices"]) == ["trunk.0", "trunk.2"]
    assert_equal(module.pooler, pooler)


def test_parameters_unfrozen_by_others_are_an_error():
    class Thaw(Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.trunk[0].bias.requires_grad_(True)

    with pytest.raises(MisconfigurationException, match=r"trunk\.0\.bias require a gradient but are neither"):
        trainer(SliceFineCallback(**SETTINGS), Thaw()).fit(Module(), loader())


def broken_at(step: int, what: str) -> Module:
    class Broken(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch_idx == step and what == "loss":
                return loss * math.nan
            return loss

        def on_before_optimizer_step(self, optimizer):
            self.seen = {name: value.clone() for name, value in self.state_dict().items()}

        def on_after_backward(self):
            if self.global_step == step and what == "gradient":
                self.trunk[2].slicefine.trainable.grad[0, 0] = math.inf

    return Broken()


@pytest.mark.parametrize(
    ("what", "message"), [("loss", "the loss is nan"), ("gradient", r"in trunk\.2\.slicefine\.trainable")]
)
def test_a_nonfinite_step_stops_the_run_and_keeps_the_weights_finite(what, message, tmp_path):
    module = broken_at(5, what)
    last = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    run = trainer(SliceFineCallback(**SETTINGS, interval=2), last, enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match=f"Step 5: .*{message}"):
        run.fit(module, loader())
    assert type(module.trunk[0]) is nn.Linear
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    saved = torch.load(max(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime))["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nonfinite_steps_can_be_skipped(what):
    """Skipping the sixth of eight steps equals a run on the other seven batches, with momentum."""
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    module = broken_at(5, what)
    module.make_optimizer = sgd
    reference = Module(sgd)
    reference.load_state_dict(module.state_dict())
    with pytest.warns(UserWarning, match="skipped"):
        trainer(SliceFineCallback(**SETTINGS, interval=6, nonfinite="skip")).fit(module, loader())
    rows = [row for row in range(32) if row // 4 != 5]
    trainer(SliceFineCallback(**SETTINGS, interval=6)).fit(
        reference, DataLoader(torch.utils.data.Subset(loader().dataset, rows), batch_size=4)
    )
    assert_equal(module, reference)


def test_skipped_training_steps_are_not_counted():
    class Sparse(Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    callback = SliceFineCallback(**SETTINGS, interval=2)
    trainer(callback).fit(Sparse(), loader(8))
    assert callback.training_state()["steps"] == {0: 4}


def test_compiled_modules_do_not_recompile_at_a_move():
    torch.compiler.reset()
    from torch._dynamo.testing import CompileCounter

    counter, module = CompileCounter(), Module()
    reference = copy.deepcopy(module)
    module.trunk = torch.compile(module.trunk, backend=counter)
    trainer(SliceFineCallback(**SETTINGS, interval=2)).fit(module, loader())
    assert counter.frame_count == 1
    handmade(reference, interval=2)
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_transformers(reentrant):
    from transformers import BertConfig, BertForSequenceClassification

    class Text(LightningModule):
        def __init__(self, checkpointing):
            super().__init__()
            torch.manual_seed(0)
            config = BertConfig(
                vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )  # fmt: skip
            self.bert = BertForSequenceClassification(config)
            if checkpointing:
                self.bert.gradient_checkpointing_enable({"use_reentrant": reentrant})
                self.bert.enable_input_require_grads()

        def training_step(self, batch, batch_idx):
            return self.bert(input_ids=batch[0], labels=batch[1]).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)

    tokens = TensorDataset(torch.randint(30, (16, 5)), torch.randint(2, (16,)))
    modules = [Text(checkpointing) for checkpointing in (False, True)]
    for module in modules:
        trainer(SliceFineCallback(rank=2, interval=2)).fit(module, DataLoader(tokens, batch_size=2))
    for ours, theirs in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"axis": "rows"}, "axis='rows' is unknown; choose one of"),
        ({"order": "best"}, "order='best'"),
        ({"interval": 0}, "interval=0 is not a number of optimizer steps; choose an integer of at least 1, or None"),
        (
            {"max_steps_without_grad": 0},
            "max_steps_without_grad=0 is not a number of optimizer steps; choose an integer of at least 1",
        ),
        ({"interval": 2.5}, "interval=2.5"),
        ({"optimizer_state": "drop"}, "optimizer_state='drop'"),
        ({"slice_dtype": "int8"}, "slice_dtype='int8'"),
        ({"nonfinite": "ignore"}, "nonfinite='ignore'"),
        ({"seed": "a"}, "seed='a' is not a seed; choose an integer of at least 0"),
        ({"seed": -1}, "seed=-1 is not a seed"),
        ({"targets": 3}, "targets=3 is not a regular expression; give a string, or a list of strings"),
        ({"exclude": "("}, r"exclude='\(' is not a regular expression: missing \)"),
        ({"also_train": [1]}, r"also_train=\[1\] is not a regular expression"),
        ({"backend": "sparse"}, "backend='sparse' is unknown; choose one of 'auto', 'compact', 'mask'"),
        ({"axis": "alternate"}, "axis='alternate' takes effect when slices move; set interval"),
        ({"order": "importance"}, "order='importance' takes effect when slices move; set interval"),
        ({"optimizer_state": "keep"}, "optimizer_state='keep' takes effect when slices move; set interval"),
        ({"axis": "alternate", "interval": 5, "optimizer_state": "keep"}, "choose optimizer_state='reset'"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(settings, message):
    with pytest.raises(ValueError, match=message):
        SliceFineCallback(**settings)


def full_width() -> SliceFineCallback:
    return SliceFineCallback(rank=8, targets=r"trunk\.2", also_train="head", interval=None, lr_scale=1)


def dense_twin(module: Module) -> Module:
    """The same module with the same weights trained in full."""
    twin = copy.deepcopy(module)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in ("trunk.2.weight", "head.weight", "head.bias"))
    return twin


def assert_trains_like_dense(module: Module) -> None:
    """In float64, because L-BFGS amplifies rounding by a factor of ten per step."""
    twin = dense_twin(module.double())
    trainer(full_width()).fit(module, loader(dtype=torch.float64))
    trainer().fit(twin, loader(dtype=torch.float64))
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def lbfgs(parameters):
    return torch.optim.LBFGS([p for p in parameters if p.requires_grad], lr=0.1, max_iter=5)


def test_an_optimizer_that_evaluates_several_times_per_step_uses_its_own_changes():
    assert_trains_like_dense(Module(lbfgs))


@pytest.mark.parametrize("why", ["compiled", "eval mode"])
def test_an_optimizer_that_evaluates_several_times_per_step_is_refused_if_forward_passes_do_not_write(why):
    """They would use the weights of the previous step."""
    torch.compiler.reset()
    module = Module(lbfgs)
    if why == "compiled":
        module.trunk = torch.compile(module.trunk, backend="aot_eager")
    else:
        module.trunk.eval()
    with pytest.raises(MisconfigurationException, match=r"need train mode and no torch\.compile"):
        trainer(SliceFineCallback(**SETTINGS, lr_scale=1)).fit(module, loader())


class Perturbed(Module):
    """Sharpness-aware minimization: the gradient is computed at perturbed weights, without an optimizer step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        trained = [p for p in self.parameters() if p.requires_grad]
        for sign in (0.1, -0.1):
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            with torch.no_grad():
                if sign > 0:
                    away = [sign * p.grad.sign() for p in trained]
                for p, step in zip(trained, away, strict=True):
                    p.add_(step, alpha=1 if sign > 0 else -1)
        optimizer.step()


def test_perturbed_weights_and_a_raw_optimizer_train_like_dense():
    assert_trains_like_dense(Perturbed())


def test_a_raw_optimizer_moves_the_slices_too():
    callback = SliceFineCallback(**SETTINGS, interval=2)
    trainer(callback).fit(Perturbed(), loader(8))
    assert callback.training_state()["steps"] == {0: 8}
    assert callback.training_state()["slices"]["slices"]["trunk.0"]["moves"] == 4


def test_a_frozen_network_inside_the_module_stays_frozen():
    class Critic(Module):
        def __init__(self):
            super().__init__()
            self.critic = nn.Linear(3, 3).requires_grad_(False)

        def forward(self, x):
            return self.critic(super().forward(x))

    module = Critic()
    before = copy.deepcopy(module.critic)
    trainer(SliceFineCallback(rank=2, also_train="head", interval=2)).fit(module, loader())
    assert_equal(module.critic, before)


def test_callbacks_that_unfreeze_later_are_refused():
    class Thaw(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.trunk[0].bias.requires_grad_(trainer.current_epoch == 1)

    for callbacks in ([Thaw(), SliceFineCallback(**SETTINGS)], [SliceFineCallback(**SETTINGS), Thaw()]):
        with pytest.raises(MisconfigurationException, match=r"trunk\.0\.bias require a gradient"):
            trainer(*callbacks, max_epochs=3).fit(Module(), loader())


def test_the_error_of_a_run_is_raised_even_if_the_module_has_changed():
    class Grow(Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.extra = nn.Linear(3, 3)

    module = Module()
    with pytest.raises(MisconfigurationException, match=r"extra\.weight, extra\.bias require a gradient"):
        trainer(SliceFineCallback(**SETTINGS), Grow()).fit(module, loader())
    assert type(module.trunk[0]) is nn.Linear


def test_a_head_outside_the_optimizer_is_an_error():
    class TrunkOnly(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.trunk.parameters(), lr=0.1)

    with pytest.raises(MisconfigurationException, match=r"No optimizer holds head\.weight, head\.bias"):
        trainer(SliceFineCallback(**SETTINGS)).fit(TrunkOnly(), loader())


def test_a_skipped_step_keeps_the_scores_finite():
    module = broken_at(5, "loss")
    callback = SliceFineCallback(**SETTINGS, interval=100, order="importance", nonfinite="skip")
    with pytest.warns(UserWarning, match="skipped"):
        trainer(callback).fit(module, loader())
    assert all(torch.isfinite(track["score"]).all() for track in callback.training_state()["slices"]["slices"].values())
