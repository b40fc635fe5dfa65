"""After a search, an error or a lost trainer, the module is plain again, at the latest in its next fit."""

import copy
import gc
import pickle

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.tuner import Tuner, batch_size_scaling
from torch import nn
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, TensorDataset

from slicefine_pl import SliceFineCallback, SparsityCallback
from slicefine_pl.callbacks import KernelDrift, SliceMap
from slicefine_pl.callbacks.slicefine import slicefine_of
from slicefine_pl.slicing import close_slices


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """Skip the garbage collection before each trial of a batch-size search, which takes seconds in a long test run."""
    monkeypatch.setattr(batch_size_scaling, "garbage_collection_cuda", lambda: None)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")  # Lightning warns of its own checkpoints


class Module(LightningModule):
    """Raise, or stop, at a given training step; count the steps."""

    def __init__(self, error=None, at=0, frozen=()):
        super().__init__()
        self.lr, self.batch_size, self.error, self.at, self.steps = 0.05, 4, error, at, 0
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Dropout(0.2))
        self.head = nn.Linear(5, 3)
        for name in frozen:
            self.get_parameter(name).requires_grad_(False)

    def forward(self, batch):
        return self.head(self.trunk(batch[0]))

    def training_step(self, batch, batch_idx):
        if self.error is not None and self.steps == self.at:
            raise self.error
        self.steps += 1
        return nn.functional.cross_entropy(self(batch), batch[1])

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(7)
        x, y = torch.randn(48, 6, generator=generator), torch.randint(3, (48,), generator=generator)
        return DataLoader(TensorDataset(x, y), batch_size=self.batch_size)

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def sliced(**settings) -> SliceFineCallback:
    return SliceFineCallback(**({"rank": 2, "targets": "trunk", "also_train": "head", "interval": 3} | settings))


def pruned(**settings) -> SparsityCallback:
    return SparsityCallback(
        **({"targets": "trunk", "criterion": "wanda", "start": 4, "end": 8, "interval": 2} | settings)
    )


def trainer(folder, *callbacks: Callback, **settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "default_root_dir": folder}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1}
    return Trainer(callbacks=list(callbacks), **(quiet | settings))


def flags(module: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


def traces(module: nn.Module) -> list[object]:
    """Return everything in which a module may differ from a plain one."""
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    return [[type(part) for part in module.modules()], flags(module), hooks, sorted(vars(module))]


def assert_as_before(module: Module, plain: Module) -> None:
    """Compare classes, flags, hooks and attributes, except those that Lightning itself leaves in a module."""
    ours, theirs = traces(module), traces(plain)
    assert ours[:3] == theirs[:3]
    assert {"configure_callbacks", "configure_model", "slicefine_deferred"}.isdisjoint(vars(module))


SEARCHES = {
    "lr_find": lambda tuner, module: tuner.lr_find(
        module, num_training=10, early_stop_threshold=None, update_attr=False
    ),
    "linear": lambda tuner, module: tuner.lr_find(module, num_training=10, mode="linear", update_attr=False),
    "power": lambda tuner, module: tuner.scale_batch_size(module, max_trials=2, steps_per_trial=2),
    "binsearch": lambda tuner, module: tuner.scale_batch_size(
        module, mode="binsearch", max_trials=2, steps_per_trial=2
    ),
}
OURS = {"slices": [sliced], "masks": [pruned], "both": [sliced, pruned], "with drift": [sliced, KernelDrift]}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("ours", OURS.values(), ids=OURS)
def test_a_search_does_not_change_the_module(ours, search, tmp_path):
    module = Module(frozen=["trunk.0.bias"])
    plain = copy.deepcopy(module)
    search(Tuner(trainer(tmp_path, *(make() for make in ours))), module)
    assert_as_before(module, plain)
    for name, value in module.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("search", [SEARCHES["lr_find"], SEARCHES["power"]], ids=["lr_find", "power"])
@pytest.mark.parametrize("ours", OURS.values(), ids=OURS)
def test_after_a_failed_search_the_next_fit_trains_a_plain_module(ours, search, error, tmp_path):
    """If a learning-rate search fails, Lightning loses the callbacks, which then cannot clean up."""
    module = Module(error, at=2, frozen=["trunk.0.bias"])
    plain = Module(frozen=["trunk.0.bias"])
    plain.load_state_dict(module.state_dict())
    with pytest.raises((type(error), SystemExit, MisconfigurationException)) as raised:
        search(Tuner(trainer(tmp_path, *(make() for make in ours))), module)
    assert not isinstance(raised.value, MisconfigurationException)
    module.error, module.batch_size = None, 4
    for each in (module, plain):
        torch.manual_seed(3)
        trainer(tmp_path).fit(each)
    assert_as_before(module, plain)
    for name, value in module.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


def test_after_a_failed_search_a_new_trainer_slices_again(tmp_path):
    module, first = Module(RuntimeError("no"), at=2), sliced()
    with pytest.raises(RuntimeError, match="no"):
        SEARCHES["lr_find"](Tuner(trainer(tmp_path, first)), module)
    module.error, plain = None, copy.deepcopy(module.head)
    other = Module()
    trainer(tmp_path, first).fit(other)  # the same callback with another module
    assert type(other.trunk[0]) is nn.Linear
    trainer(tmp_path, sliced()).fit(module)
    assert type(module.trunk[0]) is nn.Linear
    assert all(flags(module).values())
    assert not torch.equal(module.head.weight, plain.weight)


def test_a_trainer_that_has_lost_its_callbacks_is_refused(tmp_path):
    """It would train the whole network instead of slices."""
    module, run = Module(RuntimeError("no"), at=2), trainer(tmp_path, sliced())
    with pytest.raises(RuntimeError, match="no"):
        SEARCHES["lr_find"](Tuner(run), module)
    module.error = None
    with pytest.raises(
        MisconfigurationException, match=r"has lost its callbacks, SliceFineCallback among them.* new Tr"
    ):
        run.fit(module)
    assert type(module.trunk[0]) is nn.Linear
    assert all(flags(module).values())


class Callbacks(Callback):
    """Raise in a given hook."""

    def __init__(self, hook):
        setattr(self, hook, self.fail)

    def fail(self, *_, **__):
        raise RuntimeError("mine")


class Late(Module):
    """Builds its model in configure_model, and may fail there."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails = fails

    def configure_model(self):
        if self.fails:
            raise RuntimeError("mine")


@pytest.mark.parametrize("kind", [Module, Late])
@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_batch_end", "on_fit_end"])
@pytest.mark.parametrize("first", [True, False])
def test_an_error_anywhere_leaves_a_plain_module(kind, hook, first, tmp_path):
    module = kind()
    ours = [sliced(), pruned()]
    with pytest.raises(RuntimeError, match="mine"):
        trainer(tmp_path, *([Callbacks(hook), *ours] if first else [*ours, Callbacks(hook)])).fit(module)
    assert_as_before(module, kind())


def test_an_error_while_the_model_is_built_cancels_deferred_actions(tmp_path):
    module = Late(fails=True)
    with pytest.raises(RuntimeError, match="mine"):
        trainer(tmp_path, sliced(), pruned()).fit(module)
    assert_as_before(module, Late())
    module.fails = False
    trainer(tmp_path).fit(module)
    assert_as_before(module, Late())


def abandoned(tmp_path, module: Module) -> None:
    """Run a fit whose end is not reported to our callbacks, and whose trainer is deleted."""

    class Silent(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.callbacks = []
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        trainer(tmp_path, Silent(), sliced(), pruned()).fit(module)
    gc.collect()


def test_the_next_fit_cleans_up_after_a_deleted_trainer_and_a_validation_does_not(tmp_path, caplog):
    class Watched(Module):
        def validation_step(self, batch, batch_idx):
            self(batch)

        def configure_callbacks(self):
            return [mine]

    mine, module = Callback(), Watched()
    abandoned(tmp_path, module)
    kind = type(module.trunk[0])
    trainer(tmp_path).validate(module, module.train_dataloader(), verbose=False)
    assert type(module.trunk[0]) is kind is not nn.Linear
    run = trainer(tmp_path)
    with caplog.at_level("INFO"):
        run.fit(module)
    assert "SliceFineCallback, SparsityCallback: the last run was aborted" in caplog.text
    assert mine in run.callbacks  # the module's own hook works as before
    assert_as_before(module, Watched())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_with_open_slices_says_how_to_close_them(copied, tmp_path):
    """No callback knows the copy."""

    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.copy = copied(pl_module)

    keeper, module = Copies(), Module()
    trainer(tmp_path, sliced(), keeper).fit(module)
    assert type(module.trunk[0]) is nn.Linear
    with pytest.raises(
        MisconfigurationException, match=r"a copy that was made while slices were open: trunk\.0, trunk\.2"
    ):
        trainer(tmp_path).fit(keeper.copy)
    close_slices(keeper.copy)
    keeper.copy.requires_grad_(True)
    trainer(tmp_path).fit(keeper.copy)
    assert_as_before(keeper.copy, Module())


class Notes(Callback):
    """Record the states of other callbacks, and of the optimizer, after each batch."""

    def __init__(self, *others):
        self.others, self.seen = others, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        states = copy.deepcopy([each.state_dict() for each in self.others])
        self.seen.append([{name: value for name, value in each.items() if name != "random"} for each in states])
        self.seen.append(copy.deepcopy(trainer.optimizers[0].state_dict()["state"]))


class Midway(LearningRateFinder):
    """Search before the second epoch, as in Lightning's documentation."""

    def on_fit_start(self, *_):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


def assert_same(ours, theirs) -> None:
    """Compare nested structures bit for bit."""
    (left, kind), (right, other) = tree_flatten(ours), tree_flatten(theirs)
    assert kind == other
    for one, two in zip(left, right, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == two


class Nesterov(Module):
    """A module whose optimizer keeps a part of its state in another dtype than the parameters."""

    def configure_optimizers(self):
        return torch.optim.NAdam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class Undrawn(SliceMap):
    def on_train_end(self, *_):
        pass


def whole_run(folder, *more, kind=Module, precision="32-true", **settings):
    """Return weights, and the callbacks' states after every batch, without random states, which Lightning changes."""
    torch.manual_seed(5)
    module = kind()
    module.trunk[3].p = 0.0
    ours = [sliced(interval=5, **settings), pruned(), KernelDrift(samples=1, every=5), Undrawn()]
    notes = Notes(*ours)
    trainer(folder, *more, *ours, notes, max_epochs=2, precision=precision).fit(module)
    return [module.state_dict(), notes.seen]


@pytest.mark.parametrize(
    "search",
    [
        lambda: LearningRateFinder(num_training_steps=10, update_attr=False, early_stop_threshold=None),
        lambda: BatchSizeFinder(max_trials=1, steps_per_trial=2, init_val=4),
        lambda: Midway(num_training_steps=10, update_attr=False, early_stop_threshold=None),
    ],
    ids=["rate at the start", "batch size at the start", "rate in the middle"],
)
@pytest.mark.parametrize(
    "settings",
    [{"order": "random"}, {"order": "importance", "kind": Nesterov, "precision": "bf16-true"}],
    ids=["plain", "importance, NAdam, bf16"],
)
def test_a_run_with_a_search_in_it_is_the_run_without(search, settings, tmp_path):
    """Slices do not move and nothing is pruned in a search, and what it has trained is taken back."""
    expected, found = whole_run(tmp_path, **settings), whole_run(tmp_path, search(), **settings)
    assert_same(found, expected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_search_measures_the_slices_as_a_loop_by_hand_does(fused, tmp_path):
    """Losses of the range test, against the same slices in plain torch, in which nothing moves."""
    from slicefine_pl.slicing import slice_model

    class Steady(Module):
        def configure_optimizers(self):
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr, fused=fused)

    module = Steady()
    module.trunk[3].p = 0.0
    net = copy.deepcopy(module)
    search = Tuner(trainer(tmp_path, sliced()))
    found = search.lr_find(
        module, num_training=8, min_lr=1e-3, max_lr=0.1, early_stop_threshold=None, update_attr=False
    )

    handle = slice_model(net, rank=2, targets="trunk", also_train="head")
    optimizer = net.configure_optimizers()
    losses, average = [], 0.0
    for step, (rate, batch) in enumerate(zip(found.results["lr"], net.train_dataloader(), strict=False)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(batch), batch[1])
        loss.backward()
        optimizer.step()
        average = 0.98 * average + 0.02 * loss.item()
        losses.append(average / (1 - 0.98 ** (step + 2)))
    handle.close()
    assert len(losses) == 8
    assert losses == pytest.approx(found.results["loss"], rel=1e-5)


def test_a_search_keeps_the_zeros_of_a_pruned_network(tmp_path):
    module = Module()
    with torch.no_grad():
        module.trunk[0].weight[::2] = 0
    seen = []

    class Look(Module):
        def forward(self, batch):
            seen.append(int(self.trunk[0].weight.detach()[::2].count_nonzero()))
            return super().forward(batch)

    looking = Look()
    looking.load_state_dict(module.state_dict())
    for ours in ([], [sliced()]):
        keeps = SparsityCallback(schedule="keep", targets=r"trunk\.0")
        SEARCHES["lr_find"](Tuner(trainer(tmp_path, *ours, keeps)), looking)
    assert seen == [0] * 20


def test_a_search_checks_what_the_optimizer_holds(tmp_path):
    class Early(Module):
        def __init__(self):
            super().__init__()
            self.early = torch.optim.Adam(self.parameters())

        def configure_optimizers(self):
            return self.early

    with pytest.raises(
        MisconfigurationException, match=r"No optimizer holds the slice of trunk\.0.*in __init__, lacks"
    ):
        SEARCHES["lr_find"](Tuner(trainer(tmp_path, sliced())), Early())


@pytest.mark.parametrize("search", [LearningRateFinder, BatchSizeFinder])
def test_a_search_in_a_resumed_run_is_refused_where_lightning_would_forget_the_steps(search, tmp_path):
    run = trainer(tmp_path, sliced())
    run.fit(Module())
    run.save_checkpoint(tmp_path / "half.ckpt")
    more = {"ckpt_path": tmp_path / "half.ckpt"}
    with pytest.raises(MisconfigurationException, match="at the start of a resumed run"):
        trainer(tmp_path, search(), sliced(), max_epochs=2).fit(Module(), **more)
    resumed = trainer(tmp_path, Midway(num_training_steps=4, update_attr=False), sliced(), max_epochs=2)
    resumed.fit(Module(), **more)
    assert resumed.global_step == 24
    assert slicefine_of(resumed).training_state()["steps"] == {0: 24}
