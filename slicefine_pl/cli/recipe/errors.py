"""Errors that a recipe reports in one sentence, and errors that keep their traceback."""

import errno
import os
import pickle
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from slicefine_pl.cli.errors import USER_ERRORS, message_of
from slicefine_pl.cli.recipe.adapter import NoAdapterError
from slicefine_pl.cli.recipe.run_report import RunReport
from slicefine_pl.files.safe_load import describe_unpickling_error

WEIGHT_ERRORS = (pickle.UnpicklingError, SafetensorError)  # damaged files, or files that contain code
SETUP_ERRORS = (*USER_ERRORS, MisconfigurationException, *WEIGHT_ERRORS, RuntimeError)
LIBRARY_ERRORS = (*WEIGHT_ERRORS, RuntimeError)  # the user's only before the first batch
UNION_ERROR = "Does not validate against any of the Union subtypes"  # of jsonargparse, for SliceFineCallback | None
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def sentence(error: Exception, report: RunReport) -> str | None:
    """Return what to print for an error; ``None`` if it may be a bug and its traceback is needed.

    Args:
        error: One of ``SETUP_ERRORS``.
        report: How far the command came.
    """
    disk = isinstance(error, OSError) and (report.training_ended or error.errno in DISK_ERRORS)
    late = report.steps or (report.batches and isinstance(error, LIBRARY_ERRORS))
    expected = disk or isinstance(error, NoAdapterError)
    if os.environ.get("SLICEFINE_DEBUG") or (late and not expected):
        return None
    message = describe(error)
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


def describe(error: Exception) -> str:
    """Return an error's message, with a remedy where a library's message has none."""
    if str(error).startswith(UNION_ERROR) and isinstance(error.__cause__, Exception):
        return describe(error.__cause__)  # what the callback itself says; the other type is None
    if isinstance(error, SafetensorError):
        return f"a .safetensors file is damaged ({' '.join(str(error).split())}); export or download the model again."
    if isinstance(error, pickle.UnpicklingError):
        return f"a file of weights {describe_unpickling_error(error)}"
    message = message_of(error)
    return " ".join(message.split()) if isinstance(error, RuntimeError) else message
