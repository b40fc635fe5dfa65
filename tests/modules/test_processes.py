"""Text, image and video on several processes: together they learn what one process learns from all of the batch."""

import os
from pathlib import Path

import processes
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, DistributedSampler

from slicefine_pl import FullyShardedStrategy, SliceFineCallback, SparsityCallback
from slicefine_pl.modules import CausalLanguageModel, ImageClassifier, TextClassifier, VideoClassifier

SMOKE = Path(__file__).parents[2] / "recipes" / "configs" / "smoke"
STEPS, BATCH = 6, 8
CLASSES, WORDS = 3, 20


def text(folder):
    examples = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in _tokens(9)]
    return TextClassifier(str(folder), num_classes=CLASSES, lr=0.01), examples


def causal_lm(folder):
    examples = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids} for ids in _tokens(9)]
    return CausalLanguageModel(str(folder), lr=0.01, samples=0), examples


def image(folder):
    examples = [{"images": torch.randn(3, 160, 160)} for _ in range(STEPS * BATCH)]
    return ImageClassifier("timm/test_vit@random", num_classes=CLASSES, lr=0.01), examples


def video(folder):
    examples = [{"video": torch.randint(256, (1, 3, 8, 32, 32), dtype=torch.uint8)} for _ in range(STEPS * BATCH)]
    module = VideoClassifier(str(SMOKE / "tiny_videomae"), num_classes=CLASSES, num_frames=8, crop_size=32, lr=0.01)
    return module, examples


def _tokens(length):
    return torch.randint(6, WORDS, (STEPS * BATCH, length))


PRUNED = {"text": r"(query|key|value|dense)\.weight$", "causal_lm": r"_proj\.weight$"}  # too small to go by default
MODALITIES = {"text": text, "causal_lm": causal_lm, "image": image, "video": video}


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
        callback = SliceFineCallback(rank=4, interval=2)
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
        chosen = {name: state["index"].tolist() for name, state in callback.state_dict()["slices"]["slices"].items()}
    return {name: value.numpy() for name, value in weights.items()}, chosen


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
