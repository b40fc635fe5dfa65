"""Which errors a command reports in one sentence, because the user can act on them, and which keep their trace."""

import errno
import os
import pickle
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from slicefine_pl.cli.recipe.report import RunReport
from slicefine_pl.files.safe_load import describe_unpickling_error

USER_ERRORS = (ValueError, OSError, ImportError, MisconfigurationException)  # settings, files, missing packages
WEIGHT_ERRORS = (pickle.UnpicklingError, SafetensorError)  # damaged files, or files that bring code along
EARLY_ERRORS = (RuntimeError, *WEIGHT_ERRORS)  # likewise, before the first batch
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def sentence(error: Exception, report: RunReport) -> str | None:
    """What to print for an error instead of its trace; ``None`` if it may be a fault of the program.

    Args:
        error: One of ``USER_ERRORS`` or ``EARLY_ERRORS``.
        report: How far the command came.
    """
    disk = isinstance(error, OSError) and (report.done or error.errno in DISK_ERRORS)
    late = report.steps or (report.batches and isinstance(error, EARLY_ERRORS))
    if os.environ.get("SLICEFINE_DEBUG") or (late and not disk):
        return None
    message = in_words(error)
    if isinstance(error, IsADirectoryError) and report.checkpoint and Path(report.checkpoint).is_dir():
        return (
            f"ckpt_path={report.checkpoint!r} is a distributed checkpoint, which only fit, validate and test can read,"
            " with --trainer.strategy fsdp2."
        )
    if report.checkpoint and "loading state_dict" in message:
        return (
            f"ckpt_path={report.checkpoint!r} does not fit this module ({message[:300]}); give the settings of the "
            "run that wrote it, or another checkpoint."
        )
    return message


def in_words(error: Exception) -> str:
    """An error's message, with the advice that belongs to it."""
    message = " ".join(str(error).split()) if isinstance(error, EARLY_ERRORS) else str(error)
    if isinstance(error, SafetensorError):
        return f"a .safetensors file is damaged ({message}); export or download the model again."
    if isinstance(error, pickle.UnpicklingError):
        return f"a file of weights {describe_unpickling_error(error)}"
    return ". ".join([message.removesuffix("."), *notes]) if (notes := getattr(error, "__notes__", [])) else message
