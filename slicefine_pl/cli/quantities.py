"""How large, how much, how fast: what the user writes on the command line, as numbers.

Answers one question: how many parameters, images, tokens or FLOPs are meant?  Models are counted on the meta device,
from their settings alone: no weight is read.

Units:   single parameters, images or tokens; FLOP/s
"""

import argparse
from typing import NamedTuple

import torch
from torch import nn

from slicefine_pl.pretrained import folder_settings, image_backbone, split_gguf
from slicefine_pl.sparsity.targets import POSITIONS

SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


class Device(NamedTuple):
    """What one device can do.

    Attributes:
        peak: FLOP/s of dense matrix products in 16 bits with sums in 32, without sparsity.
        two_four: Whether it has 2:4 matrix products.
        source: Where the number stands.
    """

    peak: float
    two_four: bool
    source: str


DEVICES = {
    "v100": Device(125e12, False, "NVIDIA V100 datasheet, 2020 (SXM2, fp16)"),
    "t4": Device(65e12, False, "NVIDIA T4 datasheet, 2019 (fp16)"),
    "a100": Device(312e12, True, "NVIDIA A100 datasheet, 2021 (bf16)"),
    "l4": Device(121e12, True, "NVIDIA L4 datasheet, 2023 (half of the 242 TFLOP/s given with sparsity)"),
    "rtx3090": Device(71e12, True, "NVIDIA GA102 white paper, 2020 (fp16, sums in fp32)"),
    "rtx4090": Device(165.2e12, True, "NVIDIA Ada white paper, 2022 (fp16, sums in fp32)"),
    "h100": Device(989.4e12, True, "NVIDIA H100 datasheet, 2023 (SXM5, half of the 1,979 given with sparsity)"),
    "h200": Device(989.4e12, True, "NVIDIA H200 datasheet, 2024 (as H100)"),
    "tpu-v4": Device(275e12, False, "Jouppi et al., arXiv:2304.01433 (bf16)"),
    "cpu-core": Device(96e9, False, "3 GHz, two fused multiply-adds of eight fp32 numbers a cycle (AVX2)"),
}


def quantity(text: str) -> float:
    """A positive number with or without K, M, B (or G), T: ``"22M"`` is 22e6.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    factor = SUFFIXES.get(text[-1:].upper(), 1.0)
    try:
        number = float(text if factor == 1.0 else text[:-1]) * factor
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number; write it as 22e6, 22000000 or 22M.")
    return number


def readable(number: float) -> str:
    """A count as people write it, to three significant digits: 85e6 is ``"85M"``, 8.63e19 is ``"8.63e19"``."""
    rounded = float(f"{number:.3g}")
    if not 1e3 <= rounded < 1e15:
        return f"{rounded:.3g}".replace("e+", "e")
    suffix, factor = max(((name, size) for name, size in SUFFIXES.items() if size <= rounded), key=lambda pair: pair[1])
    return f"{rounded / factor:.3g}{suffix}"


def plain(number: float) -> str:
    """A number to three significant digits, without an exponent where it is large: 54600 is ``"54,600"``."""
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.3g}"


def percent(share: float) -> str:
    """A share in percent: 1.0 is ``"100 %"``."""
    return f"{plain(100 * share)} %"


def parameters_of(model: str) -> float:
    """Parameters of a model without its embeddings and without a head where the library can leave it out.

    Args:
        model: Whatever ``slicefine_pl.pretrained`` understands: a hub name, a folder, ``"timm/<name>"``,
            ``"torchvision/<name>"``, ``"package:<package>/<place>"``.

    Raises:
        ValueError: No settings of such a model can be read.
    """
    try:
        with torch.device("meta"):
            network = _network(model)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"model={model!r} cannot be counted ({first}); give a folder with config.json, a name, or --parameters."
        ) from error
    return float(sum(parameter.numel() for parameter in without_embeddings(network).values()))


def without_embeddings(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name that the laws count: all but tables of tokens and of positions."""
    tables = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if id(parameter) not in tables and not POSITIONS.search(name)
    }


def _network(model: str) -> nn.Module:
    backbone = image_backbone(model)
    if backbone.library == "timm":
        import timm

        name = folder_settings(backbone.name).get("architecture", backbone.name)
        return timm.create_model(str(name), pretrained=False, num_classes=0)
    if backbone.library == "torchvision":
        from torchvision.models import get_model

        return get_model(backbone.name, weights=None)  # type: ignore[no-any-return]
    from transformers import AutoConfig, AutoModel

    folder, gguf = split_gguf(backbone.name)
    settings = AutoConfig.from_pretrained(folder, gguf_file=gguf) if gguf else AutoConfig.from_pretrained(folder)
    return AutoModel.from_config(settings)  # type: ignore[no-any-return, no-untyped-call]


def flops_of(hours: float, device: str, devices: int, utilisation: float) -> float:
    """FLOPs that hours on so many devices give, at a share of their peak.

    Raises:
        ValueError: An unknown device, no device at all, or a utilisation that is not a share.
    """
    if device not in DEVICES:
        raise ValueError(
            f"device={device!r} is unknown; choose one of {', '.join(DEVICES)}, or give --compute in FLOPs."
        )
    if devices < 1 or not 0 < utilisation <= 1:
        raise ValueError(
            f"devices={devices}, utilisation={utilisation} are not possible; give devices >= 1, utilisation in (0, 1]."
        )
    return hours * 3600 * DEVICES[device].peak * devices * utilisation
