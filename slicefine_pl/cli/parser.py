"""The argument parser of the command ``slicefine`` and of a recipe's ``grid``."""

import argparse
from typing import NoReturn


class OneSentenceParser(argparse.ArgumentParser):
    """Argument parser that reports an error in one sentence; ``--help`` prints the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message to stderr and exit with code 2."""
        self.exit(2, f"{self.prog}: {message.strip()}\n")
