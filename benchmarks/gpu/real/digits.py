"""A small vision transformer on handwritten digits, from random weights: the same accuracies on GPU and CPU.

Source:  the 1,797 digits of 8 x 8 pixels that scikit-learn contains.
"""

import statistics
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.checks import NotHereError
from benchmarks.harness.results import Row
from slicefine_pl.slicing import slice_model

SEEDS = (0, 1, 2)
STEPS = {"cuda": 200, "cpu": 5}
BATCH, RANK, INTERVAL, RATE = 128, 32, 50, 3e-3
IN_FULL = ["patch_embed", "pos_embed", "cls_token", "norm", "head"]  # random as well, and small
TRAINED = 1400  # of the images; the others are tested
MOST_APART = 0.02  # mean accuracies; rounding differs, and with it which of some 400 digits are recognized
LEAST = 0.6  # accuracy after 200 steps; chance is 0.1


@dataclass(frozen=True)
class Digits:
    """Images in [0, 1], shape ``(N, 1, 8, 8)``, and their labels, shape ``(N,)``."""

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls) -> "Digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError as reason:
            raise NotHereError("The digits are part of scikit-learn, which is not installed.") from reason
        bunch = load_digits()
        images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
        return cls(images, torch.tensor(bunch.target))


def digits(device: str) -> Row:
    """Train slices of a transformer with each seed, on both devices."""
    data = Digits.load()
    found = {each: [train(data, seed, each, STEPS[device]) for seed in SEEDS] for each in (device, "cpu")}
    apart = abs(statistics.mean(found[device]) - statistics.mean(found["cpu"]))
    assert apart <= MOST_APART, (
        f"The accuracies differ by {apart:.4f} in the mean, at most {MOST_APART} is expected: {found}."
    )
    if device == "cuda":
        assert min(found[device]) >= LEAST, (
            f"Accuracies of at least {LEAST} are expected, but these are {found[device]}."
        )
    return {"accuracy": found[device], "accuracy_cpu": found["cpu"], "apart": round(apart, 4)}


def train(data: Digits, seed: int, device: str, steps: int) -> float:
    """Test accuracy after training from random weights; drawn on the CPU, so that devices start equally."""
    torch.manual_seed(seed)
    net: nn.Module = timm.create_model(
        "vit_base_patch16_224", num_classes=10, img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=2, num_heads=4
    ).to(device)
    handle = slice_model(net, rank=RANK, seed=seed, also_train=IN_FULL)
    optimizer = torch.optim.AdamW([each for each in net.parameters() if each.requires_grad], lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    images, labels = data.images.to(device), data.labels.to(device)
    order = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        chosen = torch.randint(TRAINED, (BATCH,), generator=order).to(device)
        optimizer.zero_grad()
        F.cross_entropy(net(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % INTERVAL == 0:
            for moved in handle.move():
                optimizer.state.pop(moved.parameter, None)
    handle.close()
    with torch.no_grad():
        correct = net.eval()(images[TRAINED:]).argmax(1) == labels[TRAINED:]
    return round(float(correct.float().mean()), 4)
