"""A Lightning run that is saved, rebuilt and loaded, against an uninterrupted one."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from benchmarks.gpu.right.lightning_run import SETTINGS, loader, module, trainer
from benchmarks.gpu.right.measured import Measured, differing
from benchmarks.harness.results import Row
from slicefine_pl import SliceFineCallback


def resumed_run(device: str) -> Row:
    """A run that was saved, rebuilt and loaded equals an uninterrupted one, bit for bit, with dropout.

    The run is saved after an epoch, between two moves; deterministic algorithms are on. Slices move by importance, so
    their scores must be restored as well. On a GPU, deterministic products need ``CUBLAS_WORKSPACE_CONFIG``, which must
    be set before the first product of the process.
    """
    measured = Measured()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with tempfile.TemporaryDirectory() as folder:
            uninterrupted, resumed = Path(folder) / "uninterrupted", Path(folder) / "resumed"
            _run_deterministic(device, uninterrupted, None)
            _run_deterministic(device, resumed, uninterrupted / "epoch=0.ckpt")
            load = partial(torch.load, map_location="cpu", weights_only=True)
            ours, theirs = (load(each / "epoch=2.ckpt") for each in (resumed, uninterrupted))
            early = load(uninterrupted / "epoch=0.ckpt")
    finally:
        torch.use_deterministic_algorithms(deterministic)
    for part in ("state_dict", "optimizer_states"):
        wrong = differences(ours[part], theirs[part])
        measured.at_most(f"{part}: differences", len(wrong), 0, "; ".join(wrong[:3]))
        measured.at_most(f"{part}: not trained after the checkpoint", not differences(early[part], theirs[part]), 0)
    slices = [checkpoint["callbacks"]["SliceFineCallback"] for checkpoint in (ours, theirs)]
    wrong = differences(*slices)
    measured.at_most("slices: differences", len(wrong), 0, "; ".join(wrong[:3]))
    return measured.result()


def _run_deterministic(device: str, folder: Path, ckpt_path: Path | None) -> None:
    slices = SliceFineCallback(**SETTINGS, interval=3, order="importance")
    saved = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    settings = {"deterministic": True, "enable_checkpointing": True, "max_epochs": 3}
    torch.manual_seed(0 if ckpt_path is None else 1)  # the random state comes from the checkpoint
    trainer(device, slices, saved, **settings).fit(module(), loader(), ckpt_path=ckpt_path)


def differences(a: Any, b: Any) -> list[str]:
    """Names of the values that differ between two nested collections; tensors are compared bit for bit."""
    ours, theirs = (dict(tree_flatten_with_path(each)[0]) for each in (a, b))
    names = {path: "".join(map(str, path)) for path in (*ours, *theirs)}
    missing = [names[path] for path in ours.keys() ^ theirs.keys()]
    return missing + [names[path] for path in ours.keys() & theirs.keys() if not _same(ours[path], theirs[path])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and differing(a, b) == 0
    return type(a) is type(b) and bool(a == b)
