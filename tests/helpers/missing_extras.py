"""What a user sees without an extra, for tests/test_optional.py and .ci/wheel.py. Only the standard library is used."""

NEEDS = {  # code that needs an optional package, and the extra that installs it; "glue" needs "text" first
    "from slicefine_pl.modules import TextClassifier": "text",
    "from slicefine_pl.modules import CausalLanguageModel": "text",
    "from slicefine_pl.modules import ImageClassifier": "image",
    "from slicefine_pl.modules import VideoClassifier": "video",
    "from slicefine_pl.data import TextDataModule": "text",
    "ImageDataModule('data', size=32).setup('fit')": "image",
    "KineticsDataModule('data').setup('fit')": "video",
    "from slicefine_pl.cli import run": "recipes",
    "main(['fit-law', 'runs.csv'])": "scaling",
    "main(['advise', '--law', 't5', '--parameters', '62M', '--data', '10B', '--plot', 'law.png'])": "plots",
    "main(['advise', '--law', 't5', '--model', 'bert-base-uncased', '--data', '10B'])": "text",
    "main(['diagnose', '--model', 'bert-base-uncased'])": "text",
}
# Runs each of them in an empty folder, and prints one line per error to stderr.
CASES = f"""
import sys
from pathlib import Path
from slicefine_pl.cli.main import main
from slicefine_pl.data import ImageDataModule, KineticsDataModule

grid = [(s, n, d) for s in (0.0, 0.5, 0.75) for n in (2e6, 8e6, 32e6) for d in (1e7, 1e8, 1e9)]
runs = [f"{{s}},{{n}},{{d}},{{(1 - s) / n**0.4 + 1e3 / d**0.5}}" for s, n, d in grid]
for folder in ("train/a", "train/b", "val/a", "val/b"):
    Path("data", folder).mkdir(parents=True)
    Path("data", folder, "clip.mp4").touch()
Path("runs.csv").write_text("\\n".join(["sparsity,nonzero_params,data,loss", *runs]))

for code in {[*NEEDS]!r}:
    try:
        exec(code)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
"""


def check_messages(errors: str) -> None:
    """Check the messages of ``CASES``: each names the extra that its code needs.

    Args:
        errors: What ``CASES`` printed to stderr.

    Raises:
        ValueError: A message is missing, or names another extra.
    """
    lines = [line for line in errors.splitlines() if "slicefine-pl[" in line]
    for (code, extra), line in zip(NEEDS.items(), [*lines, *[""] * len(NEEDS)], strict=False):
        if not line.endswith(f'is not installed; run: pip install "slicefine-pl[{extra}]"'):
            raise ValueError(f"without the extra {extra!r}, {code!r} says {line!r} instead of its install command")
