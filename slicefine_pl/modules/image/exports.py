"""What training saw, in the words of each image library, and the lines of Python that predict without this package.

Answers: how do timm, transformers and torchvision say size, crop and normalization?  Exports carry a copy of the file
with which the data module reads images, so that the lines see the same colours.  Knows no module, and imports nothing
of the data.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from slicefine_pl.inputs import ImageInput

READER = Path(__file__).parents[2] / "data" / "image" / "decoding.py"  # stands on Pillow and numpy alone
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers


def write_reader(folder: Path) -> None:
    """Write ``read_image.py`` into an export."""
    shutil.copyfile(READER, folder / "read_image.py")


def timm_settings(seen: ImageInput) -> dict[str, Any]:
    """Return what timm's ``pretrained_cfg`` says of the input."""
    exact = math.floor(seen.size / seen.crop) == seen.edge  # timm takes no account of rounding errors
    return {
        "input_size": (3, seen.size, seen.size),
        "mean": seen.mean,
        "std": seen.std,
        "crop_pct": seen.crop if exact else seen.size / (seen.edge + 0.5),
        "crop_mode": seen.crop_mode,
        "interpolation": seen.interpolation,
        "test_input_size": None,  # of the weights it started from
        "test_crop_pct": None,
    }


def image_processor(seen: ImageInput) -> Any:
    """Return the image processor of transformers that does what training's evaluation did, and nothing else.

    CLIP's resizes, crops, rescales and normalises as its settings say. Those of other models have steps of their own.
    """
    from transformers import CLIPImageProcessor

    square = {"height": seen.edge, "width": seen.edge}
    return CLIPImageProcessor(
        size=square if seen.crop_mode == "squash" else {"shortest_edge": seen.edge},
        crop_size={"height": seen.size, "width": seen.size},
        resample=RESAMPLING[seen.interpolation],
        image_mean=list(seen.mean),
        image_std=list(seen.std),
        rescale_factor=1 / 255,
        do_resize=True,
        do_center_crop=True,
        do_rescale=True,
        do_normalize=True,
        do_convert_rgb=True,
    )


def timm_lines(folder: str, named: bool) -> str:
    """Return lines of Python that classify ``photo.jpg`` with timm alone."""
    load = (
        f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()\n'
        "view = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))"
    )
    return _prediction("timm, torch", folder, load, 'model.pretrained_cfg["label_names"]' if named else None)


def transformers_lines(folder: str) -> str:
    """Return lines of Python that classify ``photo.jpg`` with transformers alone."""
    return (
        "import sys\n"
        "from transformers import pipeline\n"
        f"{_reading(folder)}\n"
        f'classify = pipeline("image-classification", model="{folder}")\n'
        'photo = read_rgb("photo.jpg")\n'
        "print(classify(photo))"
    )


def plain_lines(folder: str, named: bool, build: str, view: str) -> str:
    """Return lines of Python that classify ``photo.jpg`` with a network that ``build`` makes and ``view`` feeds."""
    load = f'{build}\nsafetensors.torch.load_model(model, "{folder}/model.safetensors")\nmodel.eval()\n{view}'
    names = f'json.loads(pathlib.Path("{folder}/config.json").read_text())["label_names"]' if named else None
    return _prediction("json, pathlib, safetensors.torch, torch, torchvision", folder, load, names)


def torchvision_view(seen: ImageInput) -> str:
    """Return lines of Python that make a ``view`` of torchvision's transforms: what training's evaluation did."""
    edge = f"({seen.edge}, {seen.edge})" if seen.crop_mode == "squash" else f"{seen.edge}"
    return (
        "from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor\n"
        f'view = Compose([Resize({edge}, InterpolationMode("{seen.interpolation}")), CenterCrop({seen.size}), '
        f"ToTensor(),\n                Normalize({list(seen.mean)}, {list(seen.std)})])"
    )


def _reading(folder: str) -> str:
    return f'sys.path.insert(0, "{folder}")\nfrom read_image import read_rgb  # of the same folder'


def _prediction(imports: str, folder: str, load: str, names: str | None) -> str:
    return (
        f"import sys, {imports}\n"
        f"{_reading(folder)}\n"
        f"{load}\n"
        'photo = read_rgb("photo.jpg")\n'
        "with torch.inference_mode():\n"
        "    shares = model(view(photo)[None]).softmax(-1)[0].tolist()\n"
        f"print(dict({'enumerate(shares)' if names is None else f'zip({names}, shares)'}))"
    )
