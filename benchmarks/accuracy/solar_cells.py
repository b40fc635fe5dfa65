"""Photos of solar cells, sound or defective, as an image folder with one subfolder per class.

2,624 electroluminescence photos, 300 x 300, of the package elpv-dataset (Buerhop-Lutz et al., 2018; Deitsch et al.,
2019), each with the probability of a defect, here split at 0.5. The license, CC BY-NC-SA 4.0, forbids commercial use,
so this project does not depend on the package: ``uv pip install --no-deps elpv-dataset==1.0.0.post1``.
"""

import random
from pathlib import Path

from slicefine_pl.data.cache import cache_folder
from slicefine_pl.pretrained import locate

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}


def photos() -> Path:
    """Make the folder ``{train,val,test}/{sound,defective}`` of links to the photos; the split is fixed.

    Raises:
        ImportError: The package is not installed.
    """
    source, folder = Path(locate("package:elpv_dataset/data")), cache_folder() / "solar_cells"
    lines = [line.split() for line in (source / "labels.csv").read_text().splitlines()]
    random.Random(0).shuffle(lines)
    ends = [round(len(lines) * share) for share in (SHARES["train"], SHARES["train"] + SHARES["val"])]
    for number, (name, probability, _) in enumerate(lines):
        split = list(SHARES)[sum(number >= end for end in ends)]
        link = folder / split / ("defective" if float(probability) > 0.5 else "sound") / Path(name).name
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)  # may point into a deleted environment
            link.symlink_to(source / name)
    return folder
