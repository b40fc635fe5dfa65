"""Write checkpoints so that a crash cannot destroy an earlier one; Lightning decides when.

**Why.** Lightning saves through ``fsspec``, whose ``LocalFileOpener`` writes to the temporary folder and then calls
``shutil.move``. If the output folder is on another device, that copies *over* the old checkpoint. A kill or a full
disk during the copy destroys both, and leaves a file in the temporary folder
(``lightning.fabric.utilities.cloud_io._atomic_save``, fsspec 2026.9, Lightning 2.6). ``ModelCheckpoint`` with
``save_last="link"`` removes its link before it makes a new one.
"""

import io
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from slicefine_pl.callbacks.support.metrics_file import use_atomic_metrics
from slicefine_pl.files.atomic import open_atomic, replace_link, write_atomic
from slicefine_pl.files.local import is_local, local_path
from slicefine_pl.trainer_callbacks import checkpoint_callbacks


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replace a checkpoint only when the new one is complete and on the disk; Lightning handles remote paths.

    ``SliceFineCallback``, ``SparsityCallback`` and ``PreemptionCheckpoint`` install it in a trainer without a
    ``CheckpointIO`` of its own.
    """

    def __init__(self) -> None:
        self._newest: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: It cannot be written. The message names the file; an earlier file of this name is unchanged.
        """
        if storage_options is not None or not is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # not the file itself: torch reports a full disk as "unexpected pos 768 vs 662"
        torch.save(checkpoint, content)
        self._newest = write_atomic(local_path(path), content.getbuffer())

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; a link to it, such as ``last.ckpt``, then links to the newest checkpoint."""
        if is_local(path) and self._newest is not None and self._newest.exists():
            old = local_path(path).absolute()
            for link in [each for each in old.parent.glob("*") if each.is_symlink()]:
                if link != old and link.resolve() == old.resolve():
                    replace_link(link, self._newest)
        super().remove_checkpoint(path)


def use_atomic_files(trainer: Trainer) -> None:
    """Have a trainer write checkpoints and metrics atomically, unless the user has chosen another ``CheckpointIO``."""
    owner: Any = trainer.strategy
    plugin: Any = trainer.strategy.checkpoint_io
    while isinstance(plugin, _WrappingCheckpointIO):  # such as AsyncCheckpointIO; Lightning has no public base class
        owner, plugin = plugin, plugin.checkpoint_io
    if type(plugin) is TorchCheckpointIO:
        owner._checkpoint_io = AtomicCheckpointIO()  # the public setter of a wrapper refuses a second plugin
    for saver in checkpoint_callbacks(trainer):
        saver.__dict__["_link_checkpoint"] = _link  # ModelCheckpoint has no public hook for its link
    use_atomic_metrics(trainer)


def _link(trainer: Trainer, filepath: str, linkpath: str) -> None:
    """Replace ``ModelCheckpoint._link_checkpoint``: the old link stays until the new one takes its place."""
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
