"""Exports of image networks: the record of training as settings of each library, and code that predicts with them.

An export contains a copy of the file with which the data module decodes images, so that predictions see the same
colors. The code runs without this package.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from slicefine_pl.inputs import ImageInput

READER = Path(__file__).parents[2] / "data" / "image" / "decoding.py"  # imports only Pillow and numpy
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's constants


def write_reader(folder: Path) -> None:
    """Write ``read_image.py`` into an export."""
    shutil.copyfile(READER, folder / "read_image.py")


def timm_settings(spec: ImageInput) -> dict[str, Any]:
    """Return the settings of the input in timm's ``pretrained_cfg``."""
    exact = math.floor(spec.size / spec.crop) == spec.resize_size  # timm rounds down, whatever the rounding error is
    return {
        "input_size": (3, spec.size, spec.size),
        "mean": spec.mean,
        "std": spec.std,
        "crop_pct": spec.crop if exact else spec.size / (spec.resize_size + 0.5),
        "crop_mode": spec.crop_mode,
        "interpolation": spec.interpolation,
        "test_input_size": None,  # would be that of the original weights
        "test_crop_pct": None,
    }


def image_processor(spec: ImageInput) -> Any:
    """Return an image processor of transformers that presents images as the evaluation during training did.

    It is CLIP's, which resizes, crops, rescales and normalizes by its settings. Other processors have further steps.
    """
    from transformers import CLIPImageProcessor

    square = {"height": spec.resize_size, "width": spec.resize_size}
    return CLIPImageProcessor(
        size=square if spec.crop_mode == "squash" else {"shortest_edge": spec.resize_size},
        crop_size={"height": spec.size, "width": spec.size},
        resample=RESAMPLING[spec.interpolation],
        image_mean=list(spec.mean),
        image_std=list(spec.std),
        rescale_factor=1 / 255,
        do_resize=True,
        do_center_crop=True,
        do_rescale=True,
        do_normalize=True,
        do_convert_rgb=True,
    )


def timm_lines(folder: str, named: bool) -> str:
    """Return Python code that classifies ``photo.jpg`` with timm."""
    load = (
        f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()\n'
        "view = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))"
    )
    return _prediction("timm, torch", folder, load, 'model.pretrained_cfg["label_names"]' if named else None)


def transformers_lines(folder: str) -> str:
    """Return Python code that classifies ``photo.jpg`` with transformers."""
    return (
        "import sys\n"
        "from transformers import pipeline\n"
        f"{_reading(folder)}\n"
        f'classify = pipeline("image-classification", model="{folder}")\n'
        'photo = read_rgb("photo.jpg")\n'
        "print(classify(photo))"
    )


def plain_lines(folder: str, named: bool, build: str, view: str) -> str:
    """Return Python code that classifies ``photo.jpg`` with torch.

    Args:
        folder: The export.
        named: Whether ``config.json`` contains class names.
        build: Code that makes ``model``.
        view: Code that makes ``view``, a function from an image to a tensor.
    """
    load = f'{build}\nsafetensors.torch.load_model(model, "{folder}/model.safetensors")\nmodel.eval()\n{view}'
    names = f'json.loads(pathlib.Path("{folder}/config.json").read_text())["label_names"]' if named else None
    return _prediction("json, pathlib, safetensors.torch, torch, torchvision", folder, load, names)


def torchvision_view(spec: ImageInput) -> str:
    """Return Python code that makes a ``view`` with torchvision's transforms."""
    size = f"({spec.resize_size}, {spec.resize_size})" if spec.crop_mode == "squash" else f"{spec.resize_size}"
    return (
        "from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor\n"
        f'view = Compose([Resize({size}, InterpolationMode("{spec.interpolation}")), CenterCrop({spec.size}), '
        f"ToTensor(),\n                Normalize({list(spec.mean)}, {list(spec.std)})])"
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
