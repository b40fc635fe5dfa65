"""Keep the best checkpoint of a run that resumes in another folder.

Lightning forgets the best checkpoint when the folder changes (``ModelCheckpoint.load_state_dict``, Lightning 2.6), and
a new run has a new folder by default.
"""

import math
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from slicefine_pl.files.atomic import open_atomic
from slicefine_pl.files.local import is_local
from slicefine_pl.trainer_callbacks import checkpoint_callbacks

SaverState = dict[str, Any]
UNREADABLE = (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile)


class CopyBestCheckpoint(Callback):
    """Copy the best checkpoints into the folder of a resumed run, so that it ends with the best of the whole run.

    **When.** ``on_load_checkpoint`` of a fit, before each ``ModelCheckpoint`` restores its state. The files with the
    best scores are taken from the folder of the checkpoint, or from where they were written.
    **Limits.** If a file is missing, or a later part of the first run has overwritten it, a warning says so, and the
    best of the resumed part is kept. Remote folders are not copied.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Copy the files, and change the states of the ``ModelCheckpoint`` callbacks to their new folder."""
        for saver in checkpoint_callbacks(trainer):
            state = checkpoint["callbacks"].get(saver.state_key)
            if not state:
                continue
            if trainer.state.fn != TrainerFn.FITTING:
                del checkpoint["callbacks"][saver.state_key]  # nothing is saved, so the best is not needed
            elif is_local(str(state["dirpath"])) and is_local(str(saver.dirpath)):
                _move_state(trainer, saver, state, checkpoint["global_step"])


def _move_state(trainer: Trainer, saver: ModelCheckpoint, state: SaverState, step: int) -> None:
    """Copy the files that a saver's state names, and change the state. All processes call it."""
    scores: dict[str, torch.Tensor] = state["best_k_models"]
    best_alone = [state["best_model_path"]] if state["best_model_path"] else []  # empty before the first score
    wanted = best_alone if saver.save_top_k == -1 else list(scores)
    copies: dict[str, str] = {}
    if trainer.is_global_zero:
        for path in wanted if saver.monitor is not None else ():
            if copy := _copy(path, Path(str(trainer.ckpt_path)).parent, saver, state, step):
                copies[path] = copy
    copies = trainer.strategy.broadcast(copies)
    if saver.monitor is not None:
        state["best_k_models"] = {copies[path]: score for path, score in scores.items() if path in copies}
        best = copies.get(state["best_model_path"], "")
        if scores and not best:
            rank_zero_warn(
                f"The best checkpoint so far ({_score(saver, state)}) is not at {state['best_model_path']!r} any more;"
                " from now on, the best of the resumed part is kept."
            )
            state["best_k_models"], state["best_model_score"] = {}, None
        elif best != state["best_model_path"]:
            rank_zero_info(f"The best checkpoint so far ({_score(saver, state)}) was copied to {best!r}.")
        state["best_model_path"], state["kth_best_model_path"] = best, copies.get(state["kth_best_model_path"], "")
    state["dirpath"], state["last_model_path"] = saver.dirpath, ""


def _copy(path: str, resumed: Path, saver: ModelCheckpoint, state: SaverState, step: int) -> str | None:
    """Copy a checkpoint of the first run; return its new path, or ``None`` if it is not found."""
    name = os.path.relpath(path, state["dirpath"])
    target = Path(str(saver.dirpath)) / name
    for source in (resumed / name, Path(path)):
        if _has_score(source, saver.state_key, state["best_k_models"][path], step):
            if source.resolve() != target.resolve():
                with open_atomic(target) as file, source.open("rb") as content:
                    shutil.copyfileobj(content, file)
            return str(target)
    return None


def _has_score(path: Path, key: str, score: torch.Tensor, step: int) -> bool:
    """Whether a file is the checkpoint with this score at this step or before, and not a later one of the same name."""
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UNREADABLE:
        return False
    own = saved.get("callbacks", {}).get(key)  # missing if only weights are saved
    return bool(saved.get("global_step", math.inf) <= step and (own is None or own["current_score"] == score))


def _score(saver: ModelCheckpoint, state: SaverState) -> str:
    return f"{saver.monitor}={float(state['best_model_score']):.4f}"
