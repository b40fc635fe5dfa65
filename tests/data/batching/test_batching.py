"""The batches of a run: every example once, equal numbers on all ranks, and the same after a resume."""

from collections import Counter
from itertools import chain
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import default_collate

from slicefine_pl.data.batching import BatchPlan, PlannedLoader, ResumableDataModule, ResumableLoader

LENGTHS = [(7 * index) % 23 + 1 for index in range(47)]  # 47 is prime: the last batch is always short


def plan(**changes: Any) -> BatchPlan:
    return BatchPlan(LENGTHS, **{"batch_size": 5, "shuffle": True, "seed": 3, **changes})


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_once_per_epoch(shuffle):
    assert sorted(chain.from_iterable(plan(shuffle=shuffle).batches())) == list(range(47))


def test_order_depends_on_seed_and_epoch_only():
    one, two = plan(), plan()
    torch.rand(100)
    assert one.batches() == two.batches()
    assert one.batches() != plan(seed=4).batches()
    first = one.batches()
    one.set_epoch(1)
    assert one.batches() != first


def test_batches_hold_like_lengths():
    """Padding in bucketed batches stays below half of what random batches need."""
    lengths = torch.randint(1, 100, (2000,)).tolist()
    padding = lambda batches: sum(max(lengths[i] for i in b) - lengths[j] for b in batches for j in b)
    random = torch.randperm(2000).view(-1, 10).tolist()
    assert padding(BatchPlan(lengths, 10, shuffle=True).batches()) < padding(random) / 2


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_examples_equally(world_size, shuffle):
    shares = [plan(rank=rank, world_size=world_size, shuffle=shuffle) for rank in range(world_size)]
    batches = [share.batches() for share in shares]
    assert {len(share) for share in shares} == {len(each) for each in batches} == {len(shares[0])}
    for same_step in zip(*batches, strict=True):
        assert len({len(batch) for batch in same_step}) == 1
    seen = Counter(index for each in batches for batch in each for index in batch)
    assert set(seen) == set(range(47))
    assert seen.total() == 47 + -47 % world_size


@pytest.mark.parametrize(("world_size", "examples"), [(1, 47), (2, 47), (2, 46), (3, 47), (8, 47), (8, 41), (8, 3)])
def test_examples_that_count_are_each_one_once(world_size, examples):
    """Evaluation marks the copies that fill up the last batch, and nothing else."""
    data = [{"x": torch.tensor(index)} for index in range(examples)]
    found, shares = [], []
    for rank in range(world_size):
        own = BatchPlan(LENGTHS[:examples], 5, shuffle=False, rank=rank, world_size=world_size)
        shares.append(list(PlannedLoader(data, own, default_collate)))
        for batch in shares[-1]:
            found += batch["x"][batch.get("counted", torch.ones(len(batch["x"]), dtype=torch.bool))].tolist()
    assert sorted(found) == list(range(examples))
    assert len({tuple(len(batch["x"]) for batch in share) for share in shares}) == 1  # equal shares all the same


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_batch_is_the_same_on_any_number_of_ranks(shuffle):
    """So a run can resume with another number. Only what fills up the short last batch may differ."""

    def everywhere(ranks):
        size = 12 // ranks
        shares = [plan(batch_size=size, shuffle=shuffle, rank=r, world_size=ranks).batches() for r in range(ranks)]
        return [set(chain.from_iterable(parts)) for parts in zip(*shares, strict=True)]

    alone = everywhere(1)
    for ranks in (2, 3, 4, 6):
        differing = [one ^ other for one, other in zip(alone, everywhere(ranks), strict=True) if one != other]
        assert len(differing) <= 1
        assert all(len(batch) < ranks for batch in differing)


def test_a_loader_goes_on_inside_an_epoch_with_other_shares_of_the_same_batches():
    alone = ResumableLoader(list(range(47)), plan(batch_size=12), list)
    batches = [set(batch) for batch in alone]
    given = iter(alone)
    next(given)
    state = alone.state_dict()
    shares = []
    for rank in range(2):
        loader = ResumableLoader(list(range(47)), plan(batch_size=6, rank=rank, world_size=2), list)
        loader.load_state_dict(state)
        shares.append(list(loader))
    rest = [{*one, *other} for one, other in zip(*shares, strict=True)]
    assert [batch - more for batch, more in zip(batches[1:], rest, strict=True)] == [set()] * 3
    with pytest.raises(ValueError, match="batch_size x world_size"):
        ResumableLoader(list(range(47)), plan(batch_size=12, world_size=2), list).load_state_dict(state)


@pytest.mark.parametrize("shuffle", [True, False])
def test_fewer_examples_than_ranks_are_repeated(shuffle):
    shares = [BatchPlan([3, 1, 2], 5, shuffle=shuffle, rank=rank, world_size=8).batches() for rank in range(8)]
    assert [[len(batch) for batch in share] for share in shares] == [[1]] * 8
    counts = Counter(index for [[index]] in shares)
    assert sorted(counts.values()) == [2, 3, 3]


def test_batch_size_zero_is_refused():
    with pytest.raises(ValueError, match=r"batch_size=0 .* at least 1"):
        plan(batch_size=0)


@pytest.mark.parametrize("loader_class", [PlannedLoader, ResumableLoader])
def test_iterating_leaves_the_global_generator_alone(loader_class):
    """Otherwise a run resumed inside an epoch would see other dropout masks than an uninterrupted one."""
    before = torch.get_rng_state()
    assert len(list(loader_class(range(47), plan(), collate=list))) == 10
    assert torch.equal(torch.get_rng_state(), before)


class Coded(ValueError):
    """Made of two values, which torch's loader cannot make again."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} {code}")
        self._made_of = (code, message)

    def __reduce__(self):
        return type(self), self._made_of


class Stuck(ValueError):
    """Pickles, but does not come back."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, index):
        if index == 7:
            raise self.error
        return index


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error", [Coded(3, "no such text"), KeyError("text"), OSError(5, "disk")], ids=lambda error: type(error).__name__
)
def test_an_error_in_a_worker_is_raised_as_it_was(error, workers):
    order = BatchPlan([1] * 12, 2, shuffle=False)
    batches = iter(PlannedLoader(Failing(error), order, list, workers))
    assert [next(batches) for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert str(caught.value) == str(error)
    if workers:
        assert "in __getitem__" in str(caught.value.__cause__)


def test_an_error_that_does_not_travel_is_left_to_torch():
    """It must not hang; its sentence is somewhere in what torch raises."""
    loader = PlannedLoader(Failing(Stuck(1, "no such text")), BatchPlan([1] * 12, 2, shuffle=False), list, 1)
    with pytest.raises(RuntimeError, match="no such text"):
        list(loader)


def test_resuming_inside_an_epoch_with_another_batch_size_names_the_difference():
    loader = ResumableLoader(range(47), plan(), collate=list)
    next(iter(loader))
    with pytest.raises(ValueError, match=r"after 1 of 10 batches .* batch_size=5 \(now 6\)"):
        ResumableLoader(range(47), plan(batch_size=6), collate=list).load_state_dict(loader.state_dict())


class Recorder(LightningModule):
    """Learns nothing much, and writes down which examples it saw."""

    def __init__(self, schedule: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.schedule = schedule

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.weight * len(batch)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        if self.schedule:  # asking for the number of steps makes Lightning set up the loader early
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Batches(ResumableDataModule):
    def __init__(self, num_workers: int) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self):
        return self.resumed(ResumableLoader(range(47), plan(), collate=list, num_workers=self.num_workers))

    def val_dataloader(self):
        return PlannedLoader(range(6), BatchPlan([1] * 6, 2, shuffle=False), collate=list)


def trainer(folder: Path, **settings: Any) -> Trainer:
    every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    return Trainer(
        max_epochs=3,
        logger=False,
        callbacks=[every_step],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **settings,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("schedule", "num_workers", "settings"),
    [
        (False, 0, {}),
        (True, 0, {}),
        (True, 2, {}),
        (True, 0, {"limit_train_batches": 7}),
        (True, 0, {"val_check_interval": 3}),
        (True, 0, {"limit_val_batches": 0}),
    ],
    ids=["plain", "schedule", "workers", "limited", "val inside", "no val"],
)
def test_resumed_run_sees_the_batches_of_an_uninterrupted_one(tmp_path, schedule, num_workers, settings):
    whole = Recorder(schedule)
    trainer(tmp_path / "whole", **settings).fit(whole, datamodule=Batches(num_workers))
    per_epoch = settings.get("limit_train_batches", 10)
    assert len(whole.seen) == 3 * per_epoch
    steps = [1, 4, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch]
    for step in steps:
        rest = Recorder(schedule)
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        trainer(tmp_path / f"rest{step}", **settings).fit(rest, datamodule=Batches(num_workers), ckpt_path=checkpoint)
        assert rest.seen == whole.seen[step:], f"resumed after step {step}"


def _left(before):
    """Processes that are still there, a while after they were asked to end: a busy machine lets them wait."""
    for process in set(active_children()) - before:
        process.join(30)
    return set(active_children()) - before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [-1, 4], ids=["whole epochs", "stopped within one"])
def test_processes_that_load_end_with_the_run(tmp_path, steps):
    """Not when the garbage collector finds the trainer, where each would be waited for in vain for five seconds."""
    before = set(active_children())
    data, module = Batches(num_workers=2), Recorder(schedule=True)
    run = trainer(tmp_path, max_steps=steps, limit_val_batches=0)
    run.fit(module, datamodule=data)
    assert not _left(before)
    assert len(module.seen) == (4 if steps == 4 else 30)
    run.fit_loop.max_epochs, run.fit_loop.epoch_loop.max_steps = 4, -1  # the same loader once more
    run.fit(module, datamodule=data)
    assert len(module.seen) > 30
    assert not _left(before)
