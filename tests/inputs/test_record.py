"""Which settings win, which contradict each other, and what happens to damaged records."""

import json
import math

import pytest
import torch

from slicefine_pl.inputs import ImageInput, VideoInput, parse_input, resolve_input, stored_input

IMAGE = ImageInput(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop=0.9)
VIDEO = VideoInput(8, 1.5, 32, 2, 1)


def never():
    raise AssertionError("the backbone was asked, though training says it")


def test_given_settings_win_then_training_then_the_backbone():
    nothing = {"size": None, "mean": None, "std": None}
    assert resolve_input(nothing, IMAGE, never, binding=True) == IMAGE
    assert resolve_input(nothing, None, lambda: IMAGE, binding=False) == IMAGE
    same = {"size": 48, "mean": [0.1, 0.2, 0.3], "std": None}
    assert resolve_input(same, IMAGE, never, binding=True) == IMAGE
    other = resolve_input({**nothing, "size": 64}, IMAGE, never, binding=False)
    assert (other.size, other.mean, other.crop) == (64, IMAGE.mean, 0.9)
    assert resolve_input({**nothing, "size": 64}, None, lambda: IMAGE, binding=True).size == 64


@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        (IMAGE, {"size": 64}, "data.size=64 contradicts .* saw data.size=48; leave data.size out, or train again"),
        (IMAGE, {"mean": [0, 0, 0]}, r"data.mean=\[0.0, 0.0, 0.0\] contradicts .* data.mean=\[0.1, 0.2, 0.3\]"),
        (VIDEO, {"num_frames": 16}, "data.num_frames=16 contradicts .* data.num_frames=8"),
        (VIDEO, {"clip_seconds": 2.0}, "data.clip_seconds=2.0 contradicts .* data.clip_seconds=1.5"),
        (VIDEO, {"crop_size": 64}, "data.crop_size=64 contradicts .* data.crop_size=32"),
    ],
)
def test_contradictions(trained, given, message):
    with pytest.raises(ValueError, match=message):
        resolve_input(given, trained, never, binding=True)


def test_views_are_a_choice_of_each_evaluation():
    assert resolve_input({"test_clips": 9}, VIDEO, never, binding=True) == VideoInput(8, 1.5, 32, 9, 1)


def test_records_of_checkpoints_and_folders(tmp_path):
    record = json.loads(json.dumps(vars(IMAGE)))
    (tmp_path / "config.json").write_text(json.dumps({"input": record}))
    torch.save({"input": vars(IMAGE)}, tmp_path / "a.ckpt")
    for place in (tmp_path, tmp_path / "a.ckpt"):
        assert stored_input(str(place), ImageInput) == IMAGE
    (tmp_path / "config.json").write_text(json.dumps({"input": {**record, "color": 1}}))
    with pytest.raises(ValueError, match=r"input=.*color.* has other fields than \['size', .*export the model again"):
        stored_input(str(tmp_path), ImageInput)
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "a.ckpt")
    for place in (tmp_path, tmp_path / "a.ckpt", "some-hub/name"):
        assert stored_input(str(place), ImageInput) is None


@pytest.mark.parametrize("name", ["timm/a@package:b/c.pth", "torchvision/a@/b/c.pth", "pytorchvideo/x3d_s"])
def test_networks_of_a_library_have_no_record(name):
    assert stored_input(name, ImageInput) is None


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        (ImageInput, {"size": 64, "crop": 0}, "crop=0 must be a finite number above 0"),
        (ImageInput, {"size": -1}, "size=-1 must be"),
        (ImageInput, {"size": 64, "mean": [0, 0]}, "must be three finite numbers each"),
        (ImageInput, {"size": 64, "mean": [0, 0, math.nan]}, "must be three finite numbers each"),
        (ImageInput, {"size": 64, "std": [0, 1, 1]}, r"std=\[0.0, 1.0, 1.0\] must be three numbers above 0"),
        (ImageInput, {"size": 64, "interpolation": "weird"}, "interpolation='weird' is unknown; choose one of"),
        (VideoInput, {"num_frames": 8, "clip_seconds": math.nan, "crop_size": 32}, "clip_seconds=nan must be"),
        (VideoInput, {"num_frames": 8, "clip_seconds": math.inf, "crop_size": 32}, "clip_seconds=inf must be"),
        (VideoInput, {"num_frames": 0, "clip_seconds": 1.0, "crop_size": 32}, "num_frames=0 must be"),
    ],
)
def test_an_input_that_no_network_can_see_is_refused(kind, record, message):
    colors = {"mean": [0, 0, 0], "std": [1, 1, 1]} if kind is ImageInput else {}
    with pytest.raises(ValueError, match=message):
        parse_input({**colors, **record}, kind)
