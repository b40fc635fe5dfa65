"""Check in ``setup`` whether a plot can be drawn at the end of the run."""

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.optional import require


def can_plot(callback: Callback, file: str) -> bool:
    """Whether matplotlib is installed; warns that a callback will not draw ``file`` if it is not."""
    try:
        require("matplotlib")
    except ModuleNotFoundError as error:
        rank_zero_warn(f"{type(callback).__name__} will not draw {file}: {error}.")
        return False
    return True
