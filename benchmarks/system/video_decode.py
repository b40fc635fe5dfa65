"""How many training clips per second does one process decode? Ours, pytorchvideo, plain PyAV, torchcodec.

python -m benchmarks.system.video_decode --rounds 12 --out benchmarks/results/video_decode.json

The job: decode a random 2-second clip of a 10-second H.264 file, 16 frames, and return the central square at 224 x 224
pixels as uint8. In each round all decoders decode the same clip, in a new random order, so that a machine that slows
down slows all of them. Before timing, their frames are compared.

Reported for each decoder and size: median clips per second, and the median of its ratio to pytorchvideo in the same
round, with the 16th and 84th percentile. A decoder that cannot run is left out, with the reason.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pytorchvideo.data.clip_sampling import ClipInfo
from pytorchvideo.data.encoded_video import EncodedVideo
from pytorchvideo.data.labeled_video_dataset import LabeledVideoDataset
from torch import Tensor

from benchmarks.harness.machine import machine, percentiles
from benchmarks.harness.results import Row, argument_parser, markdown_table, result_path, with_spread, write_result
from benchmarks.harness.rounds import WARM_UP, interleaved
from slicefine_pl.data.video.decoding import Box, Video

SIZES = {"340x256": (340, 256), "1280x720": (1280, 720)}
SECONDS, RATE, SPAN, FRAMES, EDGE = 10, 30, 2.0, 16, 224
Decoder = Callable[[Path, float], Tensor]  # from file and start in seconds to (T, 3, S, S), uint8


def make_file(path: Path, width: int, height: int) -> None:
    """Write drifting noise at two scales, encoded with x264's defaults."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 16 + 40, width // 16 + 80, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(SECONDS * RATE):
            picture = coarse[number : number + height, 3 * number : 3 * number + width]
            grain = rng.integers(0, 12, (height, width, 1), np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture // 2 + grain), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def times(start: float) -> list[float]:
    return [start + number * SPAN / FRAMES for number in range(FRAMES)]


def square(width: int, height: int) -> list[Box]:
    return [Box((width - height) // 2, 0, height, height)]


def shrunk(frames: Tensor) -> Tensor:
    """Central square of float frames, shape (T, 3, H, W), resized to ``EDGE``."""
    height, width = frames.shape[-2:]
    left = (width - height) // 2
    part = frames[..., left : left + height]
    return F.interpolate(part, size=(EDGE, EDGE), mode="bilinear", antialias=True).round().clamp(0, 255).byte()


def thinned(clip: Tensor) -> Tensor:
    """Evenly spaced frames of a float clip, shape (3, T, H, W), as uint8 of the right size."""
    chosen = torch.tensor([int(number * clip.shape[1] / FRAMES) for number in range(FRAMES)])
    return shrunk(clip[:, chosen].transpose(0, 1))


def ours(path: Path, start: float) -> Tensor:
    with Video(path) as video:
        return torch.from_numpy(video.frames(times(start), square, EDGE)[0]).permute(0, 3, 1, 2)


def encoded_video(path: Path, start: float) -> Tensor:
    video = EncodedVideo.from_path(str(path), decode_audio=False, decoder="pyav")
    clip = video.get_clip(start, start + SPAN)["video"]
    video.close()
    return thinned(clip)


class _Fixed:
    """A clip sampler with a fixed start."""

    def __init__(self, start: float) -> None:
        self.start = start

    def __call__(self, last: float, duration: float, annotation: object) -> ClipInfo:
        return ClipInfo(self.start, self.start + SPAN, 0, 0, True)

    def reset(self) -> None:
        pass


def labeled_video_dataset(path: Path, start: float) -> Tensor:
    dataset = LabeledVideoDataset(
        [(str(path), {"label": 0})],
        _Fixed(start),
        torch.utils.data.SequentialSampler,
        decode_audio=False,
        decoder="pyav",
    )
    clip = next(iter(dataset))["video"]
    return thinned(clip)


def plain_pyav(path: Path, start: float) -> Tensor:
    """Seek, decode up to the last wanted frame, and convert the wanted frames at full size."""
    found: list[NDArray[Any]] = []
    wanted = times(start)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        container.seek(int(start / stream.time_base), stream=stream)
        shown: av.VideoFrame | None = None
        for frame in container.decode(stream):
            while shown is not None and len(found) < FRAMES and wanted[len(found)] < float(frame.time or 0) - 1e-6:
                found.append(shown.to_ndarray(format="rgb24"))
            shown = frame
            if len(found) == FRAMES:
                break
    return shrunk(torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float())


def torchcodec(path: Path, start: float) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1)
    return shrunk(decoder.get_frames_played_at(times(start)).data.float())


DECODERS: dict[str, Decoder] = {
    "pytorchvideo, EncodedVideo": encoded_video,
    "pytorchvideo, LabeledVideoDataset": labeled_video_dataset,
    "plain PyAV": plain_pyav,
    "torchcodec": torchcodec,
    "slicefine_pl": ours,
}
REFERENCE = "pytorchvideo, EncodedVideo"


def working(path: Path) -> tuple[dict[str, Decoder], dict[str, str]]:
    """The decoders that run here and return the right frames, and why others are left out.

    Raises:
        ValueError: A decoder returns other frames.
    """
    expected = plain_pyav(path, 1.0).float()
    running, left_out = {}, {}
    for name, decode in DECODERS.items():
        try:
            frames = decode(path, 1.0).float()
        except (ImportError, RuntimeError, OSError) as error:
            left_out[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        difference = (frames - expected).abs().mean().item()
        if difference > 6:  # gray levels: filters differ a little, another frame differs by more than 20
            raise ValueError(f"{name} returns other frames: {difference:.1f} gray levels on average.")
        running[name] = decode
    return running, left_out


def measure(path: Path, rounds: int) -> Row:
    """Compare all decoders on one file."""
    decoders, left_out = working(path)
    starts = np.random.default_rng(1).uniform(0, SECONDS - SPAN - 0.1, rounds + WARM_UP).tolist()

    def seconds(name: str, number: int) -> float:
        began = time.perf_counter()
        decoders[name](path, starts[number])
        return time.perf_counter() - began

    times = list(interleaved(list(decoders), seconds, rounds))
    rows = {
        name: {
            "clips_per_second": round(1 / statistics.median(row[name] for row in times), 2),
            "speed_vs_pytorchvideo": percentiles([row[REFERENCE] / row[name] for row in times]),
        }
        for name in decoders
    }
    return {"rows": rows, "left_out": left_out}


def table(result: Row) -> str:
    """The result as a Markdown table."""
    lines = []
    for size in SIZES:
        for name, row in result[size]["rows"].items():
            ratio = with_spread(row["speed_vs_pytorchvideo"], ".2f")
            lines.append([size, name, str(row["clips_per_second"]), ratio])
        lines += [[size, name, f"left out: {reason}", ""] for name, reason in result[size]["left_out"].items()]
    return markdown_table(["size", "decoder", "clips/s", "speed / pytorchvideo"], lines)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=result_path, help="JSON file of the result")
    arguments = parser.parse_args()
    result: Row = {"machine": machine("cpu") | {"av": av.__version__}}
    with tempfile.TemporaryDirectory() as folder:
        for size, (width, height) in SIZES.items():
            path = Path(folder) / f"{size}.mp4"
            make_file(path, width, height)
            result[size] = measure(path, arguments.rounds)
    write_result(arguments.out, result)
    print(table(result))


if __name__ == "__main__":
    main()
