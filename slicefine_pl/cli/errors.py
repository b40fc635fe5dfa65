"""Which errors a command tells in one sentence, because the user can act on them, and which keep their trace."""

import errno
import os
import pickle

from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from slicefine_pl.cli.report import RunReport

USER_ERRORS = (ValueError, OSError, ImportError, MisconfigurationException)  # settings, files, missing packages
EARLY_ERRORS = (RuntimeError, pickle.UnpicklingError, SafetensorError)  # likewise, before the first batch
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def sentence(error: Exception, report: RunReport) -> str | None:
    """What to tell of an error instead of its trace; ``None`` if it may be a fault of the program.

    Args:
        error: One of ``USER_ERRORS`` or ``EARLY_ERRORS``.
        report: How far the command came.
    """
    disk = isinstance(error, OSError) and (report.done or error.errno in DISK_ERRORS)
    late = report.steps or (report.batches and isinstance(error, EARLY_ERRORS))
    if os.environ.get("SLICEFINE_DEBUG") or (late and not disk):
        return None
    told = " ".join(str(error).split()) if isinstance(error, EARLY_ERRORS) else str(error)
    if isinstance(error, SafetensorError):
        return f"a .safetensors file is damaged ({told}); export or download the model again."
    if isinstance(error, pickle.UnpicklingError):  # not its words: they advise to run whatever the file holds
        return f"ckpt_path={report.checkpoint!r} holds other objects than a checkpoint does; give one that a fit wrote."
    if report.checkpoint and "loading state_dict" in told:
        return (
            f"ckpt_path={report.checkpoint!r} does not fit this module ({told[:300]}); give the settings of the "
            "run that wrote it, or another checkpoint."
        )
    return ". ".join([told, *getattr(error, "__notes__", ())])
