"""What a recipe's output leaves out, and how it shows warnings.

Left out are lines of libraries about which the user of a recipe can do nothing: an advertisement, the notice that a
loader is made early, and a deprecation inside Lightning itself (``LeafSpec``, seen with Lightning 2.6.6, torch 2.15).
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = "lightning.pytorch.utilities.rank_zero"
UNWANTED = ("💡 Tip: ", "Loading `train_dataloader` to estimate")
DEPRECATED = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


@contextmanager
def recipe_output() -> Iterator[None]:
    """Leave out the lines above, and show a warning as one line without its place in the code."""
    log, shown = logging.getLogger(LOGGER), warnings.formatwarning
    log.addFilter(_wanted)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=DEPRECATED)
            yield
    finally:
        log.removeFilter(_wanted)
        warnings.formatwarning = shown


def _wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(UNWANTED)
