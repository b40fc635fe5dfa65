"""Which library messages a recipe hides, and how it prints warnings.

Hidden are messages that the user of a recipe cannot act on: an advertisement, a notice that a data loader is created
early, and a deprecation inside Lightning (``LeafSpec``, with Lightning 2.6.6 and torch 2.15).
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = "lightning.pytorch.utilities.rank_zero"
HIDDEN = ("💡 Tip: ", "Loading `train_dataloader` to estimate")
DEPRECATED = r"`isinstance\(treespec, LeafSpec\)` is deprecated"


@contextmanager
def recipe_output() -> Iterator[None]:
    """Hide these messages, and print a warning as one line without its source code."""
    log, shown = logging.getLogger(LOGGER), warnings.formatwarning
    log.addFilter(_is_shown)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=DEPRECATED)
            yield
    finally:
        log.removeFilter(_is_shown)
        warnings.formatwarning = shown


def _is_shown(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(HIDDEN)
