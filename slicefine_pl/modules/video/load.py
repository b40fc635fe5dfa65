"""Load video networks: those of pytorchvideo, I3D, exported folders and, in its own file, those of transformers.

Shapes:  N clips · T frames · S height and width of a frame, in pixels · C classes
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from slicefine_pl.modules.video.backbone import FACEBOOK, SYMMETRIC, VideoBackbone
from slicefine_pl.modules.weights import weights_in
from slicefine_pl.optional import optional_imports, require
from slicefine_pl.pretrained import locate, read_config

ALPHA = 4  # SlowFast's fast pathway has ALPHA times as many frames as its slow one
MVIT = {
    "embed_dim_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "atten_head_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "pool_q_stride_size": [[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
    "pool_kv_stride_adaptive": [1, 8, 8],
    "pool_kvq_kernel": [3, 3, 3],
}
# Name: builder in pytorchvideo.models, settings of the published network
PYTORCHVIDEO: dict[str, tuple[str, dict[str, Any]]] = {
    "mvit_base_16x4": ("vision_transformers.create_multiscale_vision_transformers", MVIT),
    "mvit_base_32x3": ("vision_transformers.create_multiscale_vision_transformers", MVIT),
    "slow_r50": ("resnet.create_resnet", {"stem_conv_kernel_size": [1, 7, 7], "model_depth": 50}),
    "slowfast_r50": ("slowfast.create_slowfast", {"model_depth": 50}),
    "slowfast_r101": (
        "slowfast.create_slowfast",
        {"model_depth": 101, "slowfast_fusion_conv_kernel_size": [5, 1, 1]},
    ),
    "x3d_xs": ("x3d.create_x3d", {}),
    "x3d_s": ("x3d.create_x3d", {}),
    "x3d_m": ("x3d.create_x3d", {}),
    "x3d_l": ("x3d.create_x3d", {"depth_factor": 5.0}),
}
KINETICS_CLASSES = 400


def load_backbone(
    name: str, weights: str | None, num_classes: int | None, *, num_frames: int, crop_size: int
) -> VideoBackbone:
    """Load a network, and replace its head if it does not fit the classes.

    Args:
        name: ``"pytorchvideo/<name>"``; or a folder, hub name or ``"package:<package>/<folder>"``.
        weights: File with the weights of a pytorchvideo network; ``None`` means random weights.
        num_classes: Number of classes (C); ``None`` takes that of the weights.
        num_frames: Number of frames in a clip (T).
        crop_size: Height and width of a frame, in pixels (S).

    Raises:
        ValueError: The name is unknown, or weights and settings do not match.
        FileNotFoundError, ModuleNotFoundError: The files do not exist, or a package is not installed.
    """
    if name.startswith("pytorchvideo/"):
        config = _published(name.removeprefix("pytorchvideo/"), num_classes, num_frames, crop_size)
        return _from_pytorchvideo(config, None if weights is None else Path(weights))
    place = Path(locate(name))
    if weights is not None:
        raise ValueError(f"weights={weights!r} need a pytorchvideo network; backbone={name!r} has its own weights.")
    if place.is_dir() and any((place / file).is_file() for file in ("i3d.py", "i3d-kinetics-400.ckpt")):
        return _i3d(place, num_classes)
    settings = read_config(str(place))
    if settings.get("library") == "pytorchvideo":
        config = {**settings, "settings": _with_classes(dict(_mapping(settings["settings"])), num_classes)}
        file = place / "model.safetensors"
        return _from_pytorchvideo(config, file if file.is_file() else None)
    with optional_imports():
        from slicefine_pl.modules.video.transformers_backbones import from_transformers

    return from_transformers(name, str(place), num_classes, num_frames=num_frames, crop_size=crop_size)


def pathways(clips: Tensor) -> list[Tensor]:
    """Return the inputs of SlowFast's two pathways: every fourth frame, and all frames."""
    frames = clips.shape[2]
    slow = torch.linspace(0, frames - 1, frames // ALPHA, device=clips.device).long()
    return [clips.index_select(2, slow), clips]


def _published(name: str, num_classes: int | None, num_frames: int, crop_size: int) -> dict[str, Any]:
    if name not in PYTORCHVIDEO:
        raise ValueError(f"backbone='pytorchvideo/{name}' is unknown; choose one of {sorted(PYTORCHVIDEO)}.")
    builder, given = PYTORCHVIDEO[name]
    settings = dict(given)
    pooled = [max(1, crop_size // 32)] * 2
    if "vision" in builder:
        settings |= {"spatial_size": crop_size, "temporal_size": num_frames}
    elif "x3d" in builder:
        settings |= {"input_clip_length": num_frames, "input_crop_size": crop_size, "head_activation": None}
    elif "slowfast" in builder:
        if num_frames % ALPHA:
            raise ValueError(f"num_frames={num_frames} must be a multiple of {ALPHA} for SlowFast; choose e.g. 32.")
        settings |= {"head_pool_kernel_sizes": [[num_frames // ALPHA, *pooled], [num_frames, *pooled]]}
    else:
        settings |= {"head_pool_kernel_size": [num_frames, *pooled]}
    settings["head_num_classes" if "vision" in builder else "model_num_class"] = num_classes or KINETICS_CLASSES
    return {"library": "pytorchvideo", "builder": builder, "settings": settings}


def _with_classes(settings: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    if num_classes is not None:
        settings["head_num_classes" if "head_num_classes" in settings else "model_num_class"] = num_classes
    return settings


def _from_pytorchvideo(config: dict[str, Any], weights: Path | None) -> VideoBackbone:
    require("pytorchvideo")
    module, function = config["builder"].split(".")
    model = getattr(import_module(f"pytorchvideo.models.{module}"), function)(**config["settings"])
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    new_head = weights is None or _load_weights(model, head, weights_in(str(weights)), str(weights))
    return VideoBackbone(
        model=model,
        head=head,
        format_input=pathways if module == "slowfast" else _unchanged,
        normalization=FACEBOOK,
        config=config,
        new_head=new_head,
        pretrained=weights is not None,
        label_names=config.get("label_names") if not new_head else None,
    )


def _i3d(folder: Path, num_classes: int | None) -> VideoBackbone:
    with optional_imports():
        from slicefine_pl.modules.video.i3d import I3D, WEIGHTS, kinetics_state

    exported = (folder / "i3d.py").is_file()
    config = json.loads((folder / "config.json").read_text("utf-8")) if exported else {"library": "i3d", "settings": {}}
    found = load_file(folder / "model.safetensors") if exported else kinetics_state(folder / WEIGHTS)
    classes = num_classes or len(found["head.proj.bias"])
    model = I3D(classes)
    head = model.head.proj
    assert isinstance(head, nn.Linear)
    new_head = _load_weights(model, head, found, str(folder))
    names = config.get("label_names")
    return VideoBackbone(
        model=model,
        head=head,
        format_input=_unchanged,
        normalization=SYMMETRIC,
        config={**config, "settings": {"num_classes": classes}},
        new_head=new_head,
        pretrained=True,
        label_names=names if isinstance(names, list) and not new_head else None,
    )


def _load_weights(model: nn.Module, head: nn.Linear, found: dict[str, Tensor], source: str) -> bool:
    """Copy weights into a network, except those of a head with other shapes. Return whether the head stays new."""
    names = {id(value): name for name, value in model.named_parameters()}
    own = {names[id(value)] for value in head.parameters()}
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    new_head = any(name in found and found[name].shape != shapes[name] for name in own)
    if new_head:
        found = {name: value for name, value in found.items() if name not in own}
    expected = set(shapes) - (own if new_head else set())
    wrong = sorted(expected ^ set(found)) or sorted(name for name in expected if found[name].shape != shapes[name])
    if wrong:
        raise ValueError(
            f"{source!r} contains the weights of another network: {len(wrong)} names or shapes differ, such as "
            f"{wrong[0]!r}; give the backbone, num_frames and crop_size it was trained with."
        )
    model.load_state_dict(found, strict=not new_head)
    return new_head


def _unchanged(clips: Tensor) -> Tensor:
    return clips


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"config.json has no mapping under 'settings' but {value!r}; export the model again.")
    return value
