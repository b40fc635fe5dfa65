"""The best checkpoint of a run that is resumed in another folder.

Answers one question: which checkpoint is the best of the whole run?  Lightning forgets it as soon as the folder changes
(``ModelCheckpoint.load_state_dict``, Lightning 2.6), and a new run has a new folder by default.
"""

import math
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from slicefine_pl.files.atomic import open_atomic

State = dict[str, Any]
UNREADABLE = (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile)


class CopyBestCheckpoint(Callback):
    """Let a resumed run end with the best checkpoint that an uninterrupted run ends with.

    **When.** As a fit loads its checkpoint, before each ``ModelCheckpoint`` restores its state: the files with the best
    scores are copied into the folder of the resumed run, with their scores.  They are taken from the folder of the
    checkpoint, or from where they were written.
    **Limits.** A file that is gone, or that a later part of the first run has overwritten, is reported, and the best of
    the resumed part is kept.  Remote folders are left to Lightning.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Rewrite the states of all savers for their new folder."""
        for saver in getattr(trainer, "checkpoint_callbacks"):  # noqa: B009  (Trainer does not declare it)
            state = checkpoint["callbacks"].get(saver.state_key)
            if not state or not isinstance(saver, ModelCheckpoint):
                continue
            if trainer.state.fn != TrainerFn.FITTING:
                del checkpoint["callbacks"][saver.state_key]  # nothing is saved, so nobody asks for the best
            elif _is_local_file_protocol(str(state["dirpath"])) and _is_local_file_protocol(str(saver.dirpath)):
                _move(trainer, saver, state, checkpoint["global_step"])


def _move(trainer: Trainer, saver: ModelCheckpoint, state: State, step: int) -> None:
    """Copy the files that a saver's state names, and rewrite the state; all processes call it."""
    scores: dict[str, torch.Tensor] = state["best_k_models"]
    best_alone = [state["best_model_path"]] if state["best_model_path"] else []  # none before the first score
    wanted = best_alone if saver.save_top_k == -1 else list(scores)
    copies: dict[str, str] = {}
    if trainer.is_global_zero:
        for path in wanted if saver.monitor is not None else ():
            if copy := _copied(path, Path(str(trainer.ckpt_path)).parent, saver, state, step):
                copies[path] = copy
    copies = trainer.strategy.broadcast(copies)
    if saver.monitor is not None:
        state["best_k_models"] = {copies[path]: score for path, score in scores.items() if path in copies}
        best = copies.get(state["best_model_path"], "")
        if scores and not best:
            rank_zero_warn(
                f"The best checkpoint so far ({_score(saver, state)}) is not at {state['best_model_path']!r} any more;"
                " from here on, the best of the resumed part is kept."
            )
            state["best_k_models"], state["best_model_score"] = {}, None
        elif best != state["best_model_path"]:
            rank_zero_info(f"The best checkpoint so far ({_score(saver, state)}) was copied to {best!r}.")
        state["best_model_path"], state["kth_best_model_path"] = best, copies.get(state["kth_best_model_path"], "")
    state["dirpath"], state["last_model_path"] = saver.dirpath, ""


def _copied(path: str, resumed: Path, saver: ModelCheckpoint, state: State, step: int) -> str | None:
    """Where a checkpoint of the first run lies in the folder of this one; ``None`` if it cannot be found."""
    name = os.path.relpath(path, state["dirpath"])
    target = Path(str(saver.dirpath)) / name
    for source in (resumed / name, Path(path)):
        if _holds(source, saver.state_key, state["best_k_models"][path], step):
            if source.resolve() != target.resolve():
                with open_atomic(target) as file, source.open("rb") as content:
                    shutil.copyfileobj(content, file)
            return str(target)
    return None


def _holds(path: Path, key: str, score: torch.Tensor, step: int) -> bool:
    """Whether a file is the checkpoint that got this score by this step, and no later one of the same name."""
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UNREADABLE:
        return False
    own = saved.get("callbacks", {}).get(key)  # absent where a saver writes weights alone
    return bool(saved.get("global_step", math.inf) <= step and (own is None or own["current_score"] == score))


def _score(saver: ModelCheckpoint, state: State) -> str:
    return f"{saver.monitor}={float(state['best_model_score']):.4f}"
