import logging

import pytest


@pytest.fixture(autouse=True)
def lightning_messages():
    """Checks of benchmarks.gpu silence Lightning in their process; here it is the process of all tests."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)
