"""Text, image and video modules on several processes learn what one process learns from the whole batch."""

import os
from pathlib import Path

import pytest
import torch
from helpers import processes
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, DistributedSampler, default_collate

from slicefine_pl import FullyShardedStrategy, SliceFineCallback, SparsityCallback
from slicefine_pl.data.batching import BatchPlan, PlannedLoader
from slicefine_pl.modules import CausalLanguageModel, ImageClassifier, TextClassifier, VideoClassifier

SMOKE = Path(__file__).parents[2] / "recipes" / "configs" / "smoke"
STEPS, BATCH = 6, 8
CLASSES, WORDS = 3, 20


def text(folder):
    examples = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in _tokens(9)]
    return TextClassifier(str(folder), num_classes=CLASSES, lr=0.01), examples


def causal_lm(folder):
    examples = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": _after(ids, number % 6)}
        for number, ids in enumerate(_tokens(9))
    ]
    return CausalLanguageModel(str(folder), lr=0.01, samples=0, max_new_tokens=4), examples


def image(folder):
    examples = [{"images": torch.randn(3, 160, 160)} for _ in range(STEPS * BATCH)]
    return ImageClassifier("timm/test_vit@random", num_classes=CLASSES, lr=0.01), examples


def video(folder):
    examples = [{"video": torch.randint(256, (1, 3, 8, 32, 32), dtype=torch.uint8)} for _ in range(STEPS * BATCH)]
    module = VideoClassifier(str(SMOKE / "tiny_videomae"), num_classes=CLASSES, num_frames=8, crop_size=32, lr=0.01)
    return module, examples


def _after(ids, start):
    """Labels of which the first ``start`` are not to be learned."""
    return torch.cat([torch.full((start,), -100), ids[start:]])


def _tokens(length):
    return torch.randint(6, WORDS, (STEPS * BATCH, length))


def ratings(folder):
    _, examples = text(folder)
    return TextClassifier(str(folder), num_classes=1), examples


PRUNED = {"text": r"(query|key|value|dense)\.weight$", "causal_lm": r"_proj\.weight$"}  # too small to go by default
MODALITIES = {"text": text, "causal_lm": causal_lm, "image": image, "video": video}
SCORED = {**MODALITIES, "ratings": ratings}


def label(modality, number):
    return torch.tensor(0.7 * (number % 5) if modality == "ratings" else number % CLASSES)


def score(modality, folder, count, many):
    """Scores and predictions of an untrained network for some examples, ``BATCH`` of them at a time."""
    torch.manual_seed(1)
    module, examples = SCORED[modality](folder)
    module.untrained_head = False
    data = [{"labels": label(modality, i), **example} for i, example in enumerate(examples[:many])]
    sizes = [(7 * i) % 10 for i in range(many)]
    plan = BatchPlan(sizes, BATCH // count, shuffle=False, rank=int(os.environ.get("RANK", 0)), world_size=count)
    trainer = Trainer(
        strategy="ddp" if count > 1 else "auto", devices=count, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    loader = PlannedLoader(data, plan, default_collate)
    [validated], [tested] = trainer.validate(module, loader, verbose=False), trainer.test(module, loader, verbose=False)
    predicted = trainer.predict(module, loader)
    return validated | tested, [getattr(one, "tolist", lambda one=one: one)() for batch in predicted for one in batch]


def fit(modality, folder, name, count, prune):
    """All weights after some steps, and the places of the slices, or the masks."""
    torch.manual_seed(1)
    module, examples = MODALITIES[modality](folder)
    module.eval()  # dropout would draw other numbers on every process
    module.train = lambda mode=True: module
    data = [{"labels": torch.tensor(i % CLASSES), **example} for i, example in enumerate(examples)]
    sampler = DistributedSampler(data, count, int(os.environ.get("RANK", 0)), shuffle=False)
    loader = DataLoader(data, BATCH // count, sampler=sampler)
    if prune:
        callback = SparsityCallback(0.5, start=0, end=1.0, interval=2, targets=PRUNED.get(modality))
    else:
        callback = SliceFineCallback(rank=4, interval=2, lr_scale=1)  # steps of lr, as the tolerance assumes
    strategy = FullyShardedStrategy(process_group_backend="gloo") if name == "fsdp" else name
    trainer = Trainer(
        callbacks=[callback], strategy=strategy, devices=count, accelerator="cpu", logger=False, max_epochs=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    weights = {
        name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in module.state_dict().items()
    }
    if prune:
        chosen = {name: callback.masks[name].numpy() for name in callback.masks.prunable}
    else:
        slices = callback.training_state()["slices"]["slices"]
        chosen = {name: state["index"].tolist() for name, state in slices.items()}
    return {name: value.numpy() for name, value in weights.items()}, chosen


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(("name", "count", "prune"), [("ddp", 2, False), ("ddp", 2, True), ("fsdp", 2, False)])
def test_two_processes_equal_one_with_twice_the_batch(modality, name, count, prune, tiny_bert, tiny_llama):
    folder = {"text": tiny_bert, "causal_lm": tiny_llama}.get(modality)
    weights, chosen = fit(modality, folder, "auto", 1, prune)
    for theirs, their_choice in processes.run(fit, count, modality, folder, name, count, prune):
        assert str(their_choice) == str(chosen)
        assert list(theirs) == list(weights)
        for key, value in weights.items():
            torch.testing.assert_close(
                torch.tensor(theirs[key]), torch.tensor(value), rtol=1e-3, atol=1e-3
            )  # of steps of 0.01


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("modality", "count", "many"),
    [
        ("text", 2, 13),  # 8 + 5: the last batch has three examples on one process and two on the other
        ("ratings", 2, 13),
        ("ratings", 3, 7),  # 6 + 1: two processes have none
        ("causal_lm", 2, 13),
        ("causal_lm", 3, 7),
        ("image", 2, 13),
        ("video", 3, 7),
    ],
)
def test_scores_and_predictions_do_not_depend_on_the_number_of_processes(modality, count, many, tiny_bert, tiny_llama):
    """Every example counts once, and predictions come in order when processes are asked in turn."""
    folder = {"text": tiny_bert, "ratings": tiny_bert, "causal_lm": tiny_llama}.get(modality)
    expected, one_by_one = score(modality, folder, 1, many)
    shares = processes.run(score, count, modality, folder, count, many)
    for found, _ in shares:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    predicted = [share[turn] for turn in range(many) for _, share in shares if turn < len(share)]
    if modality == "causal_lm":
        assert predicted == one_by_one
    else:
        torch.testing.assert_close(torch.tensor(predicted), torch.tensor(one_by_one), rtol=1e-4, atol=1e-5)
