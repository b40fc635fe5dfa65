"""Exports of video networks: a copy of the video reader, and code that predicts without this package.

The reader consists of copies of the data module's own files, so an exported network sees a video as in the tests.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slicefine_pl.inputs import VideoInput
from slicefine_pl.modules.video.backbone import VideoBackbone
from slicefine_pl.modules.video.load import ALPHA

DATA = Path(__file__).parents[2] / "data" / "video"  # these files import only PyAV, numpy and torch
READER = ("read_clips", "decoding", "extent", "track")


def write_reader(folder: Path) -> None:
    """Write the package ``read_clips`` into an export."""
    place = folder / "read_clips"
    place.mkdir()
    for name in READER:
        text = (DATA / f"{name}.py").read_text("utf-8").replace("from slicefine_pl.data.video.", "from .")
        (place / f"{'__init__' if name == place.name else name}.py").write_text(text, "utf-8")


def video_lines(folder: str, loaded: VideoBackbone, spec: VideoInput | None, names: Sequence[str] | None) -> str:
    """Return Python code that prints the probability of each class for ``video.mp4``.

    Args:
        folder: The export.
        loaded: The network.
        spec: What training saw. If it is not known, the code only loads the network.
        names: Names of the classes; ``None`` prints their indices.
    """
    mean, std = (list(numbers) for numbers in loaded.normalization)
    imports, load, call = _network(folder, loaded.config)
    read = f'config = json.loads(pathlib.Path("{folder}/config.json").read_text())'
    lines = [f"import {imports}", f'sys.path.insert(0, "{folder}")', read, load]
    if spec is None:
        return "\n".join([*lines, f"# takes clips (N, 3, T, S, S) as (rgb / 255 - {mean}) / {std}: {call}"])
    listed = "model.config.id2label.values()" if loaded.config is None else 'config["label_names"]'
    lines += [
        "from read_clips import read_clips  # of the same folder; needs PyAV",
        'clips = read_clips("video.mp4", **config["input"])  # (N, 3, T, S, S), 0 to 255',
        f"mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in ({mean}, {std}))",
        "clips = (clips / 255 - mean) / std",
        "with torch.inference_mode():",
        f"    shares = {call}.softmax(-1).mean(0).tolist()",
        f"print(dict({'enumerate(shares)' if names is None else f'zip({listed}, shares)'}))",
    ]
    return "\n".join(lines)


def _network(folder: str, config: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Return the modules to import, code that loads ``model``, and code that calls it with ``clips``."""
    if config is None:
        build = f'model = AutoModelForVideoClassification.from_pretrained("{folder}").eval()'
        load = f"from transformers import AutoModelForVideoClassification\n{build}"
        return "json, pathlib, sys, torch", load, "model(clips.transpose(1, 2)).logits"
    call, builder = "model(clips)", "from i3d import I3D as build"
    if config["library"] != "i3d":
        module, function = config["builder"].split(".")
        builder = f"from pytorchvideo.models.{module} import {function} as build"
        if module == "slowfast":
            slow = f"torch.linspace(0, clips.shape[2] - 1, clips.shape[2] // {ALPHA}).long()"
            call = f"model([clips[:, :, {slow}], clips])"
    load = (
        f"{builder}\n"
        f'model = build(**config["settings"]).eval()\n'
        f'safetensors.torch.load_model(model, "{folder}/model.safetensors")'
    )
    return "json, pathlib, safetensors.torch, sys, torch", load, call
