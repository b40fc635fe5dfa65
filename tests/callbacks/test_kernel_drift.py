"""KernelDrift against kernels of copies of the network; it does not change the run."""

import copy
import csv

import pytest
import torch
from helpers import processes, resumable
from helpers.sliced_run import SETTINGS, Module, assert_equal, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from slicefine_pl import FullyShardedStrategy, SliceFineCallback
from slicefine_pl.callbacks import KernelDrift

NAMES = ("trunk.0.weight", "trunk.2.weight")


class Inputs(KernelDrift):
    """For modules whose forward takes only the inputs of a batch."""

    def outputs(self, pl_module, batch):
        return super().outputs(pl_module, batch[0]) if isinstance(pl_module, Module) else pl_module.head(
            pl_module.trunk(batch[0]))  # fmt: skip


class Copies(Callback):
    """Record a copy of the weights before every step, the batch, and the positions of slices."""

    def __init__(self):
        self.states, self.places, self.batch = [], [], None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch[0].clone() if self.batch is None else self.batch
        self.states.append(copy.deepcopy(pl_module.state_dict()))
        self.places.append([getattr(pl_module.trunk[place], "slicefine", None) for place in (0, 2)])
        self.places[-1] = [slice_ and (slice_.axis, slice_.index.clone()) for slice_ in self.places[-1]]


def drift_of(before, after, x, places=None, names=NAMES):
    """Compute the drift from Jacobians by torch.func, of whole weights or some of their lines, in float64."""

    def kernel(state):
        module = Module().double()
        state = {name: value.double() for name, value in state.items()}
        chosen = {name: state[name] for name in names}
        rows = torch.func.jacrev(lambda own: torch.func.functional_call(module, {**state, **own}, (x.double(),)))(
            chosen
        )
        blocks = list(rows.values())  # each (N, C, O, I)
        if places:
            blocks = [each.index_select(-1 if line == "column" else -2, index)
                      for each, (line, index) in zip(blocks, places, strict=True)]  # fmt: skip
        return sum(each.flatten(0, 1).flatten(1) @ each.flatten(0, 1).flatten(1).T for each in blocks)

    first, last = kernel(before), kernel(after)
    cosine = torch.nn.functional.cosine_similarity(last.flatten(), first.flatten(), dim=0)
    return (torch.linalg.matrix_norm(last - first) / torch.linalg.matrix_norm(first)).item(), cosine.item()


def logged(folder):
    """Read the CSVLogger's file: (step, drift, alignment) by name."""
    [path] = folder.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    names = ("kernel_drift/{}", "kernel_drift/{}_alignment")
    return {
        kind: [(int(row["step"]), *(float(row[name.format(kind)]) for name in names))
               for row in rows if row.get(names[0].format(kind))]
        for kind in ("weights", "slices")
    }  # fmt: skip


def assert_close(found, expected):
    assert [step for step, *_ in found] == [step for step, *_ in expected]
    for (_, *ours), (_, *theirs) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def fit(folder, *callbacks, **settings):
    module = Module()
    settings = {"logger": CSVLogger(folder), "log_every_n_steps": 1} | settings
    trainer(*callbacks, **settings).fit(module, loader(8))
    return module


@pytest.mark.parametrize("slices", [{}, {"axis": "row"}, {"backend": "mask"}], ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_both_drifts_equal_those_of_copies(slices, first, tmp_path):
    """With moves after 3 and 6 of 8 steps and a measurement every 2 steps, in both orders of callbacks."""
    copies = Copies()
    both = [SliceFineCallback(**SETTINGS, interval=3, **slices), Inputs(samples=3, every=2)]
    module = fit(tmp_path, *(both if first else both[::-1]), copies)
    states, x = [*copies.states, module.state_dict()], copies.batch[:3]  # states[k]: after k steps
    found = logged(tmp_path)
    weights = [(step, *drift_of(states[0], states[step], x)) for step in (2, 4, 6, 8)]
    # From the first step at a position to the step of the measurement.
    live = [(step, *drift_of(states[came], states[step], x, copies.places[came]))
            for came, step in ((0, 2), (0, 3), (3, 4), (3, 6), (6, 8))]  # fmt: skip
    for name, expected in (("weights", weights), ("slices", live)):
        assert_close(found[name], expected)
        assert all(value > 1e-4 for _, value, _ in expected)


def test_without_slices_the_weights_that_would_be_sliced_are_measured(tmp_path):
    copies, measured = Copies(), Inputs(samples=4, every=5)
    module = fit(tmp_path, measured, copies)
    states, names = [*copies.states, module.state_dict()], (*NAMES, "head.weight")
    expected = [(step, *drift_of(states[0], states[step], copies.batch, names=names)) for step in (5, 8)]  # the end
    assert_close(logged(tmp_path)["weights"], expected)
    assert logged(tmp_path)["slices"] == []
    assert measured.drift == pytest.approx(expected[-1][1], rel=1e-4)


def test_batches_of_several_optimizer_steps_are_measured_on_time(tmp_path):
    """Two optimizers step once per batch, so the number of steps is always even."""

    class Two(Module):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.trunk, self.head)]

        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            nn.functional.cross_entropy(self(batch[0]), batch[1]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    trainer(Inputs(samples=2, every=5), logger=CSVLogger(tmp_path), log_every_n_steps=1).fit(Two(), loader(8))
    assert [step for step, *_ in logged(tmp_path)["weights"]] == [6, 10, 16]  # 5, 10, 15; of 16


SAME = {
    "importance": {"order": "importance", "axis": "alternate"},
    "masked": {"backend": "mask"},
    "columns": {},
}


@pytest.mark.parametrize("case", SAME)
def test_the_callback_does_not_change_a_run(case, tmp_path):
    """Compares weights, optimizer, slices with scores, and random states, with dropout and a shuffling loader."""
    ends = []
    for name, others in (("without", []), ("with", [Inputs(samples=2, every=2)])):
        torch.manual_seed(3)
        end = ModelCheckpoint(tmp_path / name, "end", every_n_train_steps=15)
        callbacks = [SliceFineCallback(**resumable.SETTINGS, **SAME[case]), end, *others]
        train = torch.utils.data.DataLoader(resumable.Examples(), batch_size=4, shuffle=True)
        trainer(*callbacks, max_epochs=3, enable_checkpointing=True).fit(resumable.Module(), train)
        ends.append(tmp_path / name / "end.ckpt")
    resumable.assert_same_checkpoint(*ends)


def test_a_resumed_run_measures_like_an_uninterrupted_run(tmp_path):
    """Resumed before, at and after a move, with another seed."""
    every = lambda name: ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1)

    def run(name, seed, resume=None):
        torch.manual_seed(seed)
        callbacks = [SliceFineCallback(**resumable.SETTINGS), Inputs(samples=3, every=2), every(name)]
        settings = {"logger": CSVLogger(tmp_path / f"{name} log"), "enable_checkpointing": True, "max_epochs": 3}
        run = trainer(*callbacks, **settings)
        run.fit(resumable.Module(), resumable.resumable_loader(), ckpt_path=resume)
        return logged(tmp_path / f"{name} log")

    whole = run("whole", 1)
    assert len(whole["slices"]) > 5
    for stop in (2, 3, 4):
        rest = run(f"rest {stop}", 9, tmp_path / "whole" / f"step={stop}.ckpt")
        for name, values in whole.items():
            assert rest[name] == [each for each in values if each[0] > stop]
        ours, theirs = (torch.load(tmp_path / name / "step=15.ckpt", weights_only=True)["callbacks"]["Inputs"]
                        for name in ("whole", f"rest {stop}"))  # fmt: skip
        resumable.assert_same(ours, theirs)


def test_modules_with_other_outputs_are_refused_with_a_remedy():
    class Pair(Module):
        def forward(self, batch):
            return batch

    class Sequences(Module):
        def forward(self, batch):
            return batch[0][:, None, :]

        def training_step(self, batch, batch_idx):
            return super().forward(batch[0]).sum()

    for module, message in (
        (Pair(), "Pair.* returned (list|tuple)"),
        (Sequences(), r"a tensor \(1, 1, 6\)"),
        (Module(), r"Module\(batch\) with one sample of a training batch, a list, and it failed: .* must be Tensor.*"),
    ):
        with pytest.raises(MisconfigurationException, match=f"{message}; override KernelDrift.outputs"):
            trainer(SliceFineCallback(**SETTINGS), KernelDrift()).fit(module, loader())


@pytest.mark.parametrize(("setting", "message"), [({"samples": 0}, "samples=0"), ({"every": True}, "every=True"),
                                               ({"max_rows": 1}, "max_rows=1 .* at least 2")])  # fmt: skip
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        KernelDrift(**setting)


def on_two(measured):
    module = Module()
    others = [Inputs(samples=2, every=2)] if measured else []
    callbacks = [SliceFineCallback(**SETTINGS, interval=3), *others]
    trainer(*callbacks, strategy="ddp", devices=2).fit(module, loader(16))
    return {name: value.tolist() for name, value in module.state_dict().items()}, [each.drift for each in others]


@pytest.mark.distributed
def test_only_the_first_process_measures_and_training_does_not_change():
    [(plain, _), _] = processes.run(on_two, 2, False)
    (first, [drift]), (second, [none]) = processes.run(on_two, 2, True)
    assert first == second == plain
    assert drift > 0
    assert none == 0


def sharded():
    try:
        trainer(SliceFineCallback(**SETTINGS), Inputs(), devices=2,
                strategy=FullyShardedStrategy(process_group_backend="gloo")).fit(Module(), loader())  # fmt: skip
    except MisconfigurationException as error:
        return str(error)


@pytest.mark.distributed
def test_a_sharded_network_is_refused():
    assert all("KernelDrift needs whole weights" in message for message in processes.run(sharded, 2))


def test_a_forward_that_takes_the_batch_needs_no_override(tmp_path):
    """As in our classifiers, forward takes the batch."""

    class Whole(Module):
        def forward(self, batch):
            return super().forward(batch[0])

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self(batch), batch[1])

    torch.manual_seed(0)
    module, plain = Whole(), Module()
    plain.load_state_dict(module.state_dict())
    measured = KernelDrift(samples=2, every=4)
    trainer(SliceFineCallback(**SETTINGS, interval=3), measured).fit(module, loader(8))
    other = Inputs(samples=2, every=4)
    trainer(SliceFineCallback(**SETTINGS, interval=3), other).fit(plain, loader(8))
    assert_equal(module, plain)
    assert measured.drift == other.drift > 0
