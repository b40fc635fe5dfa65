"""How many training clips per second does one process decode: ours, pytorchvideo, plain PyAV, torchcodec?

python benchmarks/video_decode.py --rounds 12 --out benchmarks/results/video_decode.json

The job: a random 2-second clip of a 10-second H.264 file, 16 frames, the middle square at 224 x 224 pixels, as uint8.
All contestants do it in turn within each round, for the same clip, so that a machine that slows down slows all of them.
Before anything is timed, the frames of all are compared.

Reported per contestant and size: median clips per second, and the median of its ratio to pytorchvideo in the same round
with the 16th and 84th percentile.  A contestant that cannot run is left out, with the reason.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from machine import commit
from numpy.typing import NDArray
from pytorchvideo.data.clip_sampling import ClipInfo
from pytorchvideo.data.encoded_video import EncodedVideo
from pytorchvideo.data.labeled_video_dataset import LabeledVideoDataset
from torch import Tensor

from slicefine_pl.data.video.decoding import Box, Video

SIZES = {"340x256": (340, 256), "1280x720": (1280, 720)}
SECONDS, RATE, SPAN, FRAMES, EDGE = 10, 30, 2.0, 16, 224
Contestant = Callable[[Path, float], Tensor]  # file and start in seconds to (T, 3, S, S), uint8


def make_file(path: Path, width: int, height: int) -> None:
    """Drifting noise at two scales, encoded as x264 does by default."""
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
    """Middle square of float frames, shape (T, 3, H, W), at the wanted size."""
    height, width = frames.shape[-2:]
    left = (width - height) // 2
    part = frames[..., left : left + height]
    return F.interpolate(part, size=(EDGE, EDGE), mode="bilinear", antialias=True).round().clamp(0, 255).byte()


def ours(path: Path, start: float) -> Tensor:
    with Video(path) as video:
        return torch.from_numpy(video.frames(times(start), square, EDGE)[0]).permute(0, 3, 1, 2)


def encoded_video(path: Path, start: float) -> Tensor:
    video = EncodedVideo.from_path(str(path), decode_audio=False, decoder="pyav")
    clip = video.get_clip(start, start + SPAN)["video"]
    video.close()
    chosen = torch.tensor([int(number * clip.shape[1] / FRAMES) for number in range(FRAMES)])
    return shrunk(clip[:, chosen].transpose(0, 1))


class _Fixed:
    """A clip sampler that takes the start it is told."""

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
    chosen = torch.tensor([int(number * clip.shape[1] / FRAMES) for number in range(FRAMES)])
    return shrunk(clip[:, chosen].transpose(0, 1))


def plain_pyav(path: Path, start: float) -> Tensor:
    """Seek, decode all up to the last wanted frame, convert the wanted ones at full size."""
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


CONTESTANTS: dict[str, Contestant] = {
    "pytorchvideo, EncodedVideo": encoded_video,
    "pytorchvideo, LabeledVideoDataset": labeled_video_dataset,
    "plain PyAV": plain_pyav,
    "torchcodec": torchcodec,
    "slicefine_pl": ours,
}
REFERENCE = "pytorchvideo, EncodedVideo"


def able(path: Path) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that run here, after a look at their frames; the others with the reason."""
    expected = plain_pyav(path, 1.0).float()
    running, left_out = {}, {}
    for name, contestant in CONTESTANTS.items():
        try:
            frames = contestant(path, 1.0).float()
        except (ImportError, RuntimeError, OSError) as error:
            left_out[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        difference = (frames - expected).abs().mean().item()
        if difference > 6:  # grey levels: filters differ a little, another frame differs by more than 20
            raise ValueError(f"{name} shows other frames: {difference:.1f} grey levels on average.")
        running[name] = contestant
    return running, left_out


def compete(contestants: dict[str, Contestant], path: Path, rounds: int) -> list[dict[str, float]]:
    """Seconds per clip of every round, all contestants in turn; the first two rounds warm up."""
    starts = np.random.default_rng(1).uniform(0, SECONDS - SPAN - 0.1, rounds + 2).tolist()
    rows = []
    for number, start in enumerate(starts):
        row = {}
        for name, contestant in contestants.items():
            began = time.perf_counter()
            contestant(path, start)
            row[name] = time.perf_counter() - began
        if number >= 2:
            rows.append(row)
            print(f"{path.stem}, round {number - 1}/{rounds}: {row}", file=sys.stderr)
    return rows


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    places = {"p16": 0.16, "median": 0.5, "p84": 0.84}
    return {name: round(ordered[round(place * last)], 3) for name, place in places.items()}


def measure(rounds: int) -> dict[str, object]:
    """Run the whole comparison."""
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size, (width, height) in SIZES.items():
            path = Path(folder) / f"{size}.mp4"
            make_file(path, width, height)
            contestants, left_out = able(path)
            rows = compete(contestants, path, rounds)
            result[size] = {
                "rows": {
                    name: {
                        "clips_per_second": round(1 / statistics.median(row[name] for row in rows), 2),
                        "speed_vs_pytorchvideo": percentiles([row[REFERENCE] / row[name] for row in rows]),
                    }
                    for name in contestants
                },
                "left_out": left_out,
            }
    return result


def machine() -> dict[str, object]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "device": f"CPU, 1 process, {torch.get_num_threads()} threads",
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "av": av.__version__,
    }


def table(result: dict[str, object]) -> str:
    """The result as a Markdown table."""
    lines = ["| size | decoder | clips/s | times pytorchvideo |", "|---|---|---|---|"]
    for size, measured in result.items():
        for name, row in measured["rows"].items():  # type: ignore[index]
            ratio = row["speed_vs_pytorchvideo"]
            told = f"{ratio['median']:.2f} ({ratio['p16']:.2f}-{ratio['p84']:.2f})"
            lines.append(f"| {size} | {name} | {row['clips_per_second']} | {told} |")
        lines += [f"| {size} | {name} | left out: {why} | |" for name, why in measured["left_out"].items()]  # type: ignore[index]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
