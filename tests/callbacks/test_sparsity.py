"""SparsityCallback in real runs: against hand-written loops, with several optimizers, stopped and resumed."""

import copy
import csv
import math
from pathlib import Path

import pytest
import torch
from helpers.pruned_run import SETTINGS, WEIGHTS, Module, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from slicefine_pl import SliceFineCallback, SparsityCallback
from slicefine_pl.data.batching import BatchPlan, ResumableLoader
from slicefine_pl.sparsity import masks
from slicefine_pl.sparsity.mask_tensors import apply_mask


def zeros_by_step(sparsity, start, end, interval, steps, sizes=(96, 96)):
    """Return the number of zeros in each forward pass by the paper's formula."""
    expected = []
    for step in range(steps):
        last = end if step >= end else step - (step - start) % interval
        progress = 0 if step < start else 1 if end == start else (last - start) / (end - start)
        share = sparsity * (1 - (1 - progress) ** 3) if step >= start else 0
        expected.append(tuple(math.floor(size * share + 0.5) for size in sizes))
    return expected


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("start", "end", "interval"), [(2, 7, 2), (0, 4, 3), (3, 3, 1), (1, 9, 100)])
def test_every_forward_pass_has_the_zeros_of_the_schedule(start, end, interval, accumulate):
    module = Module()
    callback = SparsityCallback(0.7, targets="trunk", start=start, end=end, interval=interval)
    trainer(callback, epochs=accumulate, accumulate_grad_batches=accumulate).fit(module, loader())
    seen = [zeros for training, zeros in module.seen if training][::accumulate]
    assert seen == zeros_by_step(0.7, start, end, interval, 10)
    assert callback.masks.sparsity == pytest.approx(67 / 96)
    assert (module.head.weight != 0).all()


@pytest.mark.parametrize("fused", [False, True], ids=["unscaled", "unscales itself"])
def test_steps_that_a_loss_scaler_skips_do_not_count(fused):
    """The first three losses overflow; a fused optimizer is called, with found_inf set."""

    class Overflows(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.inf if batch_idx < 3 else 1)

    module = Overflows(lambda parameters: torch.optim.AdamW(parameters, lr=0.05, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    callback = SparsityCallback(0.7, targets="trunk", start=2, end=6, interval=2)
    trainer(callback, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(module, loader())
    assert [zeros for _, zeros in module.seen] == [(0, 0)] * 3 + zeros_by_step(0.7, 2, 6, 2, 7)


def test_start_and_end_may_be_shares_of_the_run():
    module = Module()
    trainer(SparsityCallback(0.5, targets="trunk", interval=1), epochs=2).fit(module, loader())
    assert [zeros for _, zeros in module.seen] == zeros_by_step(0.5, 5, 15, 1, 20)


def test_the_mean_density_of_a_run_is_that_of_the_scaling_law():
    """1 - 0.625 S over forward passes, for the cubic ramp from 25 to 75 %: what the scaling law charges for."""
    module = Module()
    trainer(SparsityCallback(0.75, targets="trunk", interval=1), epochs=40).fit(module, loader())
    density = [1 - zeros[0] / 96 for _, zeros in module.seen]
    assert sum(density) / len(density) == pytest.approx(1 - 0.625 * 0.75, abs=0.01)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=3),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("average", [None, "ema", "swa"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_hold_at_every_forward_pass_under(name, average):
    averages = {
        None: [],
        "ema": [EMAWeightAveraging(decay=0.5)],
        "swa": [StochasticWeightAveraging(0.01, swa_epoch_start=1, device=None)],
    }
    if name == "lbfgs" and average == "swa":
        pytest.skip("stochastic weight averaging anneals learning rates, which L-BFGS has one of")
    module = Module(OPTIMIZERS[name])
    callback = SparsityCallback(pattern="2:4", **SETTINGS)
    trainer(*averages[average], callback, epochs=3).fit(module, loader(5), loader(2))
    least = 0
    for _, zeros in module.seen[2 * 2 :]:  # after the sanity check
        assert min(zeros) >= least
        least = min(zeros)
    for each in WEIGHTS:
        weight = module.get_parameter(each)
        assert ((weight.reshape(-1, 4) != 0).sum(1) <= 2).all()
        assert torch.equal(weight != 0, callback.masks[each])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_training_equals_a_hand_written_loop(name, clip):
    """Masks apply to gradients before clipping, to weights after each step, and to optimizer state at each pruning."""
    torch.manual_seed(0)
    module = Module(OPTIMIZERS[name]).double()
    plain = copy.deepcopy(module)
    data = DataLoader(TensorDataset(*(t.double() if t.is_floating_point() else t for t in loader().dataset.tensors)), 4)
    trainer(SparsityCallback(0.6, **SETTINGS), gradient_clip_val=clip, precision="64-true").fit(module, data)

    optimizer = plain.configure_optimizers()
    weights = [plain.get_parameter(name) for name in WEIGHTS]
    masks = [torch.ones_like(weight) for weight in weights]
    schedule = zeros_by_step(0.6, 2, 7, 2, 11)
    for step, batch in enumerate(data, start=1):
        optimizer.zero_grad()
        plain.training_step(batch, 0).backward()
        for weight, mask in zip(weights, masks, strict=True):
            weight.grad *= mask
        if clip is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimizer.step()
        for place, weight in enumerate(weights):
            weight.data *= masks[place]
            if step in (2, 4, 6, 7):
                order = weight.data.abs().flatten().argsort()
                masks[place] = torch.ones_like(weight)
                masks[place].view(-1)[order[: schedule[step][place]]] = 0
                weight.data *= masks[place]
                for value in optimizer.state[weight].values():
                    if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                        value *= masks[place]
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


class Noise(Callback):
    """Change gradients after they were masked, like the noise of differential privacy."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            parameter.grad += 1e-3


class OwnClipping(Module):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in self.parameters():
            parameter.grad += 1e-3


CLIPPING = [{}, {"gradient_clip_val": 0.05}, {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}]


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("kind", [Module, OwnClipping])
@pytest.mark.parametrize("clip", CLIPPING, ids=str)
def test_zeros_hold_if_gradients_change_after_masking(clip, kind, noise):
    module = kind()
    trainer(SparsityCallback(0.7, **SETTINGS), *[Noise()] * noise, **clip).fit(module, loader())
    assert [zeros for _, zeros in module.seen] == zeros_by_step(0.7, 2, 7, 2, 10)


@pytest.mark.parametrize(("clip", "times"), [(CLIPPING[0], 0), (CLIPPING[1], 0), (CLIPPING[2], 10)])
def test_weights_are_masked_only_if_the_step_may_have_changed_them(clip, times, monkeypatch):
    """AdamW keeps zeros without help, also if Lightning clips by norm; clipping by value does more than scale."""
    module, callback, trained = Module(), SparsityCallback(0.7, schedule="constant", targets="trunk.0"), []

    def watched(values, mask):
        if values.data_ptr() == module.trunk[0].weight.data_ptr():
            trained.append(values)
        apply_mask(values, mask)

    monkeypatch.setattr(masks, "apply_mask", watched)
    trainer(callback, **clip).fit(module, loader())
    assert len(trained) == 1 + times  # the first when masks are made


@pytest.mark.parametrize("schedule", ["constant", "one_shot"])
def test_one_shot_and_constant_schedules(schedule):
    module = Module()
    trainer(SparsityCallback(0.5, schedule=schedule, **SETTINGS)).fit(module, loader())
    first = 0 if schedule == "constant" else 2
    assert [zeros for _, zeros in module.seen] == [(0, 0)] * first + [(48, 48)] * (10 - first)


def test_a_schedule_may_be_a_function():
    module = Module()
    callback = SparsityCallback(0.5, schedule=lambda progress: progress**2, **(SETTINGS | {"interval": 1}))
    trainer(callback).fit(module, loader())
    shares = [min(max(step - 2, 0) / 5, 1) ** 2 for step in range(10)]
    assert [zeros[0] for _, zeros in module.seen] == [math.floor(48 * share + 0.5) for share in shares]


def test_existing_zeros_are_kept():
    module = Module()
    trainer(SparsityCallback(pattern="2:4", **SETTINGS)).fit(module, loader())
    zeros = {name: module.get_parameter(name) == 0 for name in WEIGHTS}
    before = copy.deepcopy(module)
    keep = SparsityCallback(pattern="2:4", schedule="keep", targets="trunk")
    trainer(keep).fit(module, loader())
    for name in WEIGHTS:
        assert torch.equal(module.get_parameter(name) == 0, zeros[name])
        assert not torch.equal(module.get_parameter(name), before.get_parameter(name))
    with pytest.raises(ValueError, match="no weight is zero"):
        trainer(SparsityCallback(schedule="keep", targets="trunk")).fit(Module(), loader())


SLICES = {"rank": 2, "interval": 3, "targets": "trunk", "also_train": "head"}


@pytest.mark.parametrize("sparsity_first", [False, True])
@pytest.mark.parametrize("axis", ["column", "row", "alternate"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_slices_of_a_pruned_network_keep_its_zeros(name, axis, sparsity_first):
    module = Module(OPTIMIZERS[name])
    trainer(SparsityCallback(pattern="2:4", **SETTINGS)).fit(module, loader())
    before = copy.deepcopy(module)
    callbacks = [
        SliceFineCallback(**SLICES, axis=axis),
        SparsityCallback(pattern="2:4", schedule="keep", targets="trunk"),
    ]
    trainer(*callbacks[:: -1 if sparsity_first else 1], epochs=3).fit(module, loader())
    for each in WEIGHTS:
        now, then = module.get_parameter(each), before.get_parameter(each)
        assert torch.equal(now == 0, then == 0)
        assert not torch.equal(now, then)
    assert {zeros for _, zeros in module.seen[10:]} == {(48, 48)}


@pytest.mark.parametrize("sparsity_first", [False, True])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("scale", [1, 3])
def test_pruning_while_slices_move_equals_a_hand_written_loop(scale, name, sparsity_first):
    """The stored weight is ranked after the step, with the values of the open slice."""
    torch.manual_seed(0)
    module = Module(OPTIMIZERS[name]).double()
    data = DataLoader(TensorDataset(*(t.double() if t.is_floating_point() else t for t in loader().dataset.tensors)), 4)
    plain = copy.deepcopy(module)
    slices = SliceFineCallback(**(SLICES | {"interval": None}), order="sweep", lr_scale=scale)
    callbacks = [slices, SparsityCallback(0.6, **SETTINGS)]
    trainer(*callbacks[:: -1 if sparsity_first else 1], precision="64-true").fit(module, data)
    columns = [state["index"] for state in slices.training_state()["slices"]["slices"].values()]

    # Reference: dense training in which all other columns are frozen.
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    weights = [plain.get_parameter(name) for name in WEIGHTS]
    base = [weight[:, index].clone() for weight, index in zip(weights, columns, strict=True)]
    if scale == 1:  # the lines are trained, else their scaled change
        base = [torch.zeros_like(part) for part in base]
        live = [weight[:, index].clone().requires_grad_() for weight, index in zip(weights, columns, strict=True)]
    else:
        live = [torch.zeros_like(part).requires_grad_() for part in base]
    head = [parameter.requires_grad_() for parameter in plain.head.parameters()]
    masks = [torch.ones_like(weight) for weight in weights]
    optimizer = OPTIMIZERS[name]([*live, *head])
    schedule = zeros_by_step(0.6, 2, 7, 2, 11)
    for step, batch in enumerate(data, start=1):
        # The gradient of the trained values is that of the lines, without the factor.
        lines = [start + scale * part.detach() + (part - part.detach()) for start, part in zip(base, live, strict=True)]
        joined = [weight.index_copy(1, index, new) for weight, index, new in zip(weights, columns, lines, strict=True)]
        values = {name: value for name, value in zip(WEIGHTS, joined, strict=True)}
        optimizer.zero_grad()
        logits = torch.func.functional_call(plain, values, (batch[0],))
        nn.functional.cross_entropy(logits, batch[1]).backward()
        for part, index, mask in zip(live, columns, masks, strict=True):
            part.grad *= mask[:, index]
        optimizer.step()
        for place, (weight, index, part) in enumerate(zip(weights, columns, live, strict=True)):
            weight[:, index] = base[place] + scale * part.data
            weight *= masks[place]
            if step in (2, 4, 6, 7):
                masks[place] = torch.ones_like(weight)
                masks[place].view(-1)[weight.abs().flatten().argsort()[: schedule[step][place]]] = 0
                weight *= masks[place]
                for value in optimizer.state[part].values():
                    if isinstance(value, torch.Tensor) and value.shape == part.shape:
                        value *= masks[place][:, index]
            part.data *= masks[place][:, index]
            base[place] *= masks[place][:, index]
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_gradient_criterion_is_refused_with_slices():
    both = trainer(SliceFineCallback(**SLICES), SparsityCallback(criterion="gradient", **SETTINGS))
    with pytest.raises(MisconfigurationException, match=r"criterion='gradient' needs the gradient of every weight"):
        both.fit(Module(), loader())


def run(folder: Path, module: Module, ckpt_path=None, slices=False, epochs=3, **settings):
    callbacks = [SliceFineCallback(**SLICES)] if slices else []
    defaults = {"sparsity": 0.6, "targets": "trunk", "start": 2, "end": 9, "interval": 3}
    callbacks.append(SparsityCallback(**(defaults | settings)))
    every = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    whole = trainer(*callbacks, every, epochs=epochs, enable_checkpointing=True)
    plan = BatchPlan([1] * 16, 4, shuffle=True)
    whole.fit(module, ResumableLoader(loader(4).dataset, plan, default_collate), loader(1), ckpt_path=ckpt_path)


CASES = [
    {},
    {"criterion": "wanda"},
    {"criterion": "gradient"},
    {"criterion": "random", "scope": "global"},
    {"sparsity": None, "pattern": "2:4"},
    {"slices": True},
    {"slices": True, "criterion": "wanda", "sparsity": None, "pattern": "2:4"},
]


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 8, 9, 11])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path, case, stop):
    """With dropout, and a validation after each epoch of four steps."""
    seed_everything(0)
    module = Module(dropout=0.3)
    start = copy.deepcopy(module.state_dict())
    run(tmp_path / "whole", module, **case)
    seed_everything(5)
    again = Module(dropout=0.3)
    again.load_state_dict(start)
    run(tmp_path / "rest", again, ckpt_path=tmp_path / "whole" / f"step={stop}.ckpt", **case)
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_checkpoints_have_plain_keys_and_masks_as_bits(tmp_path):
    module = Module()
    run(tmp_path, module)
    saved = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == list(module.state_dict())
    Module().load_state_dict(saved["state_dict"], strict=True)
    [state] = [value for key, value in saved["callbacks"].items() if "Sparsity" in key]
    assert state["masks"]["trunk.0.weight"]["bits"].numel() == 96 // 8


def test_resuming_with_other_settings_or_without_masks_is_refused(tmp_path):
    run(tmp_path, Module())
    with pytest.raises(MisconfigurationException, match=r"other settings \(sparsity: saved 0.6, now 0.7\)"):
        run(tmp_path / "x", Module(), tmp_path / "step=4.ckpt", sparsity=0.7)
    plain = ModelCheckpoint(tmp_path / "plain", "{step}", every_n_train_steps=1)
    trainer(plain, enable_checkpointing=True).fit(Module(), loader(2))
    with pytest.raises(MisconfigurationException, match=r"written without SparsityCallback and lacks masks"):
        run(tmp_path / "y", Module(), next((tmp_path / "plain").glob("*.ckpt")))


def test_a_longer_run_keeps_its_schedule(tmp_path):
    settings = {"start": 0.25, "end": 0.75, "interval": 1}
    run(tmp_path / "short", Module(), **settings)
    module = Module()
    run(tmp_path / "longer", module, tmp_path / "short" / "step=4.ckpt", epochs=6, **settings)
    assert [zeros for training, zeros in module.seen if training] == zeros_by_step(0.6, 3, 9, 1, 24)[4:]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_checkpoint_has_all_zeros(tmp_path, mode):
    """The score gets worse in each epoch, as it does while a network is pruned."""

    class Worse(Module):
        def on_validation_epoch_end(self):
            self.log("score", float(self.current_epoch) * (1 if mode == "min" else -1))

    best = ModelCheckpoint(tmp_path, monitor="score", mode=mode, filename="best")
    callback = SparsityCallback(0.5, targets="trunk", start=1, end=11, interval=2)
    trainer(callback, best, epochs=5, enable_checkpointing=True).fit(Worse(), loader(4), loader(1))
    saved = torch.load(best.best_model_path, weights_only=True)
    assert saved["epoch"] == 2  # step 12: the first epoch that ends at the target
    assert (saved["state_dict"]["trunk.0.weight"] == 0).sum() == 48


def test_logged_metrics_and_plot(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="v")
    trainer(SparsityCallback(0.5, **SETTINGS), logger=logger, log_every_n_steps=1).fit(Module(), loader())
    lines = (tmp_path / "v" / "metrics.csv").read_text().splitlines()
    rows = [row for row in csv.DictReader(lines) if row.get("sparsity/total")]
    expected = zeros_by_step(0.5, 2, 7, 2, 10)
    assert [float(row["sparsity/trunk.0.weight"]) for row in rows] == pytest.approx(
        [expected[step][0] / 96 for step in (0, 2, 4, 6, 7)]
    )
    assert (tmp_path / "v" / "sparsity.png").stat().st_size > 10_000


def test_the_cost_report_is_printed_at_the_end(caplog):
    with caplog.at_level("INFO"):
        trainer(SparsityCallback(pattern="2:4", **SETTINGS)).fit(Module(), loader())
    [message] = [record.message for record in caplog.records if record.message.startswith("Sparsity: pruned")]
    assert message.startswith(
        "Sparsity: pruned 50.0 % (2:4; 96 of 192 weights in 2 matrices are zero): stored 0.0 MB dense"
    )
    assert message.endswith("A plain checkpoint is as large and as fast as before.")


def test_a_run_that_ends_early_warns():
    class Impatient(Module):
        def on_train_batch_end(self, *_):
            self.trainer.should_stop = self.trainer.global_step == 5

    callback = SparsityCallback(0.5, targets="trunk", start=1, end=9, interval=1)
    with pytest.warns(UserWarning, match=r"ended after 5 steps, before end=9: sparsity is 0\.4375, not 0\.5"):
        trainer(callback).fit(Impatient(), loader())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 is out of range; choose a number, 0 <= sparsity < 1"),
        ({"sparsity": "0.5"}, r"sparsity='0.5' is out of range"),
        ({"sparsity": [0.5]}, r"sparsity=\[0.5\] is out of range"),
        ({"seed": -1}, r"seed=-1 is not a seed"),
        ({"targets": 3}, r"targets=3 is not a regular expression"),
        ({"start": float("nan")}, r"start=nan is not a point in training"),
        ({"sparsity": -0.1}, r"sparsity=-0.1"),
        ({"sparsity": float("nan")}, r"sparsity=nan"),
        ({"sparsity": 0.6, "pattern": "2:4"}, r"pattern='2:4' leaves a sparsity of 0.5, not 0.6"),
        ({"pattern": "4:2"}, r"pattern='4:2' keeps 4 of 2"),
        ({"start": 0.8, "end": 0.2}, r"start=0.8 comes after end=0.2"),
        ({"start": 8, "end": 2}, r"start=8 comes after end=2"),
        ({"end": 1.5}, r"end=1.5 is not a point in training"),
        ({"interval": 0}, r"interval=0"),
        ({"schedule": "quadratic"}, r"schedule='quadratic' is unknown"),
        ({"schedule": lambda p: 1 - p}, r"the schedule falls"),
        ({"scope": "model"}, r"scope='model'"),
        ({"criterion": "movement"}, r"criterion='movement'"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SparsityCallback(**settings)


def test_schedules_beyond_the_run_are_refused():
    with pytest.raises(MisconfigurationException, match=r"end=11 lies beyond the 10 optimizer steps"):
        trainer(SparsityCallback(targets="trunk", start=1, end=11)).fit(Module(), loader())
    with pytest.raises(ValueError, match="start=9 and end=5 are out of order"):
        trainer(SparsityCallback(targets="trunk", start=9, end=0.5)).fit(Module(), loader())
    frozen = Module(lambda p: torch.optim.SGD([q for q in p if q.numel() == 24], lr=0.1))
    with pytest.raises(MisconfigurationException, match="No optimizer holds a weight that is to be pruned"):
        trainer(SparsityCallback(targets="trunk", start=1, end=5)).fit(frozen, loader())


def test_a_model_built_in_configure_model_is_pruned():
    class Late(Module):
        def __init__(self):
            super().__init__()
            self.trunk = None

        def configure_model(self):
            if self.trunk is None:
                self.trunk = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))

    module = Late()
    trainer(SparsityCallback(0.5, **SETTINGS)).fit(module, loader())
    assert module.seen[-1][1] == (48, 48)


class Stream(IterableDataset):
    """Ten batches without a length."""

    def __iter__(self):
        return iter(loader().dataset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"start=0\.25 and end=0\.75 depends? on .* the training data have no length"),
        ({"start": 1}, r"end=0\.75 depends on .* give start and end as numbers of optimizer steps \(integers\)\."),
    ],
)
def test_shares_of_a_run_of_unknown_length_are_refused_before_the_first_step(settings, message):
    module = Module()
    with pytest.raises(ValueError, match=message):
        trainer(SparsityCallback(0.5, targets="trunk", **settings)).fit(module, DataLoader(Stream(), batch_size=4))
    assert module.seen == []


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({"start": 2, "end": 7}, {}),
        ({"start": 0.2, "end": 0.7}, {"limit_train_batches": 10}),
        ({"start": 0.2, "end": 0.7}, {"epochs": -1, "max_steps": 10}),
        ({"schedule": "constant"}, {}),
    ],
)
def test_a_run_of_unknown_length_prunes_if_steps_are_given(settings, limits):
    module = Module()
    callback = SparsityCallback(0.5, targets="trunk", interval=2, **settings)
    trainer(callback, **limits).fit(module, DataLoader(Stream(), batch_size=4))
    assert module.seen[-1][1] == (48, 48)


def test_a_run_without_steps_prunes_nothing():
    module = Module()
    trainer(SparsityCallback(pattern="2:4", targets="trunk"), limit_train_batches=0).fit(module, loader())
    assert all(layer.weight.count_nonzero() == 96 for layer in (module.trunk[0], module.trunk[2]))
