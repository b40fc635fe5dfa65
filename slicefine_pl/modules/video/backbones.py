"""Video networks of pytorchvideo and transformers, and I3D, behind one face.

Answers: which network does a name mean, where are its weights, its head and its normalization, and how does it want
its clips?

Shapes:  N clips · T frames · S edge of a frame, in pixels · C classes
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from slicefine_pl.modules.video.backbone import FACEBOOK, SYMMETRIC, Backbone
from slicefine_pl.modules.weights import weights_in
from slicefine_pl.pretrained import locate, read_config

ALPHA = 4  # SlowFast's fast pathway sees this many times the frames of its slow one
MVIT = {
    "embed_dim_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "atten_head_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "pool_q_stride_size": [[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
    "pool_kv_stride_adaptive": [1, 8, 8],
    "pool_kvq_kernel": [3, 3, 3],
}
# Name: builder inside pytorchvideo.models, settings of the published network
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
) -> Backbone:
    """Build a network, with its weights where there are some, and a new head where the classes do not fit.

    Args:
        name: ``"pytorchvideo/<name>"``; a folder, hub name or ``"package:<package>/<folder>"``.
        weights: File of a pytorchvideo network's weights; ``None`` starts at random.
        num_classes: Classes (C); ``None`` takes those of the weights.
        num_frames: Of a clip (T).
        crop_size: Edge of a frame (S).

    Raises:
        ValueError: The name is unknown, or weights and settings do not fit.
        FileNotFoundError, ModuleNotFoundError: There are no such files, or their package is not installed.
    """
    if name.startswith("pytorchvideo/"):
        config = _published(name.removeprefix("pytorchvideo/"), num_classes, num_frames, crop_size)
        return _from_pytorchvideo(config, None if weights is None else Path(weights))
    place = Path(locate(name))
    if weights is not None:
        raise ValueError(f"weights={weights!r} go with a pytorchvideo network; backbone={name!r} brings its own.")
    if place.is_dir() and any((place / file).is_file() for file in ("i3d.py", "i3d-kinetics-400.ckpt")):
        return _i3d(place, num_classes)
    settings = read_config(str(place))
    if settings.get("library") == "pytorchvideo":
        config = {**settings, "settings": _with_classes(dict(_mapping(settings["settings"])), num_classes)}
        file = place / "model.safetensors"
        return _from_pytorchvideo(config, file if file.is_file() else None)
    from slicefine_pl.modules.video.transformers import from_transformers

    return from_transformers(name, str(place), num_classes, num_frames=num_frames, crop_size=crop_size)


def pathways(clips: Tensor) -> list[Tensor]:
    """SlowFast's two views of clips: every fourth frame, and all."""
    frames = clips.shape[2]
    slow = torch.linspace(0, frames - 1, frames // ALPHA, device=clips.device).long()
    return [clips.index_select(2, slow), clips]


def _published(name: str, num_classes: int | None, num_frames: int, crop_size: int) -> dict[str, Any]:
    if name not in PYTORCHVIDEO:
        raise ValueError(f"backbone='pytorchvideo/{name}' is unknown; choose one of {sorted(PYTORCHVIDEO)}.")
    builder, given = PYTORCHVIDEO[name]
    settings = dict(given)
    places = [max(1, crop_size // 32)] * 2
    if "vision" in builder:
        settings |= {"spatial_size": crop_size, "temporal_size": num_frames}
    elif "x3d" in builder:
        settings |= {"input_clip_length": num_frames, "input_crop_size": crop_size, "head_activation": None}
    elif "slowfast" in builder:
        if num_frames % ALPHA:
            raise ValueError(f"num_frames={num_frames} does not divide by {ALPHA}, as SlowFast needs; choose e.g. 32.")
        settings |= {"head_pool_kernel_sizes": [[num_frames // ALPHA, *places], [num_frames, *places]]}
    else:
        settings |= {"head_pool_kernel_size": [num_frames, *places]}
    settings["head_num_classes" if "vision" in builder else "model_num_class"] = num_classes or KINETICS_CLASSES
    return {"library": "pytorchvideo", "builder": builder, "settings": settings}


def _with_classes(settings: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    if num_classes is not None:
        settings["head_num_classes" if "head_num_classes" in settings else "model_num_class"] = num_classes
    return settings


def _from_pytorchvideo(config: dict[str, Any], weights: Path | None) -> Backbone:
    module, function = config["builder"].split(".")
    model = getattr(import_module(f"pytorchvideo.models.{module}"), function)(**config["settings"])
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    new_head = weights is None or _fill(model, head, weights_in(str(weights)), str(weights))
    return Backbone(
        model=model,
        head=head,
        format_input=pathways if module == "slowfast" else _as_they_are,
        normalization=FACEBOOK,
        config=config,
        new_head=new_head,
        pretrained=weights is not None,
        label_names=config.get("label_names") if not new_head else None,
    )


def _i3d(folder: Path, num_classes: int | None) -> Backbone:
    from slicefine_pl.modules.video.i3d import I3D, WEIGHTS, kinetics_state

    exported = (folder / "i3d.py").is_file()
    config = json.loads((folder / "config.json").read_text("utf-8")) if exported else {"library": "i3d", "settings": {}}
    found = load_file(folder / "model.safetensors") if exported else kinetics_state(folder / WEIGHTS)
    classes = num_classes or len(found["head.proj.bias"])
    model = I3D(classes)
    head = model.head.proj
    assert isinstance(head, nn.Linear)
    new_head = _fill(model, head, found, str(folder))
    names = config.get("label_names")
    return Backbone(
        model=model,
        head=head,
        format_input=_as_they_are,
        normalization=SYMMETRIC,
        config={**config, "settings": {"num_classes": classes}},
        new_head=new_head,
        pretrained=True,
        label_names=names if isinstance(names, list) and not new_head else None,
    )


def _fill(model: nn.Module, head: nn.Linear, found: dict[str, Tensor], source: str) -> bool:
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
            f"{source!r} holds the weights of another network: {len(wrong)} names or shapes differ, such as "
            f"{wrong[0]!r}; give the backbone, num_frames and crop_size it was trained with."
        )
    model.load_state_dict(found, strict=not new_head)
    return new_head


def _as_they_are(clips: Tensor) -> Tensor:
    return clips


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"config.json has no mapping under 'settings' but {value!r}; export the model again.")
    return value
