"""Checkpoints that a crash cannot destroy: Lightning decides when one is written, this file decides how.

**Why.** Lightning saves through ``fsspec``, whose ``LocalFileOpener`` writes to the temporary folder and then calls
``shutil.move``.  Where the output folder is on another device, that copies *over* the old checkpoint: a kill or a full
disk in the middle leaves neither the old one nor the new one, and a copy stays in the temporary folder
(``lightning.fabric.utilities.cloud_io._atomic_save``, fsspec 2026.9, Lightning 2.6).  ``ModelCheckpoint`` with
``save_last="link"`` removes its link before it makes a new one.
"""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from slicefine_pl.callbacks.support.metrics_file import use_atomic_metrics
from slicefine_pl.files.atomic import open_atomic, replace_link, write_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replace a checkpoint only when the new one is complete and on the disk; remote paths are left to Lightning.

    ``SliceFineCallback``, ``SparsityCallback`` and ``PreemptionCheckpoint`` give it to a trainer that has no
    ``CheckpointIO`` of its own.
    """

    def __init__(self) -> None:
        self._newest: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: It cannot be written.  The message names the file, and an earlier one of this name is unchanged.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # not the file itself: torch reports a full disk as "unexpected pos 768 vs 662"
        torch.save(checkpoint, content)
        self._newest = write_atomic(_local(path), content.getbuffer())

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint; a link that leads to it, such as ``last.ckpt``, leads to the newest one from now on."""
        if _is_local_file_protocol(path) and self._newest is not None and self._newest.exists():
            old = _local(path).absolute()
            for link in [each for each in old.parent.glob("*") if each.is_symlink()]:
                if link != old and link.resolve() == old.resolve():
                    replace_link(link, self._newest)
        super().remove_checkpoint(path)


def use_atomic_files(trainer: Trainer) -> None:
    """Have a trainer write its checkpoints and metrics whole, unless the user has chosen another ``CheckpointIO``."""
    holder: Any = trainer.strategy
    plugin: Any = trainer.strategy.checkpoint_io
    while isinstance(plugin, _WrappingCheckpointIO):  # such as AsyncCheckpointIO
        holder, plugin = plugin, plugin.checkpoint_io
    if type(plugin) is TorchCheckpointIO:
        holder._checkpoint_io = AtomicCheckpointIO()
    for saver in getattr(trainer, "checkpoint_callbacks"):  # noqa: B009  (Trainer does not declare it)
        if isinstance(saver, ModelCheckpoint):
            saver.__dict__["_link_checkpoint"] = _link
    use_atomic_metrics(trainer)


def _link(trainer: Trainer, filepath: str, linkpath: str) -> None:
    """As ``ModelCheckpoint._link_checkpoint``, but the old link stays until the new one takes its place."""
    link, target = Path(linkpath).absolute(), Path(filepath).absolute()
    if trainer.is_global_zero and link != target:
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)
        try:
            replace_link(link, target)
        except OSError:  # a file system without links
            with open_atomic(link) as file, target.open("rb") as source:
                shutil.copyfileobj(source, file)
    trainer.strategy.barrier()


def _local(path: _PATH) -> Path:
    return Path(os.fspath(path).removeprefix("file://")).expanduser()
