"""Small encoded films whose every frame tells its number, for the tests of video."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH, RATE = 48, 64, 10


def picture(number: int) -> np.ndarray:
    """Gray of 10 + 4 x number, brighter by 40 in the right half: frames and sides can be distinguished."""
    gray = np.full((HEIGHT, WIDTH, 3), 10 + 4 * number, np.uint8)
    gray[:, WIDTH // 2 :] += 40
    return gray


def bars(number: int) -> np.ndarray:
    """The six digits of a binary number as black and white bars, which survive any encoder."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(6):
        pixels[:, 10 * bit : 10 * bit + 10] = 255 * (number >> bit & 1)
    return pixels


def film(
    path: Path,
    frames: int = 30,
    codec: str = "libx264",
    stamps=None,
    rotation: int = 0,
    header_first=False,
    tone=0.0,
    title="",
    options=None,
    draw=picture,
    pixels="yuv420p",
) -> Path:
    """Encode ``frames`` pictures at 10 per second, or at the given time stamps in millis; and ``tone`` seconds
    of silence, and with further ``options`` of the encoder."""
    flags = {"movflags": "faststart"} if header_first else {}
    with av.open(str(path), "w", options=flags) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=RATE, options={"g": "12", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        stream.codec_context.thread_count = 1
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if tone:
            silence(container, tone)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(pictures) -> list[int]:
    """The numbers in pictures of ``bars``, shape (..., height, WIDTH, 3)."""
    return [
        sum(int(picture[len(picture) // 2, 10 * bit + 4 : 10 * bit + 6].mean() > 127) << bit for bit in range(6))
        for picture in pictures
    ]


def linear(path: Path) -> list[tuple[float, int]]:
    """When each frame begins, in seconds from the first, and its number, by decoding all of the file."""
    with av.open(str(path)) as container:
        frames = [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        base = float(container.streams.video[0].time_base)
    return [((stamp - frames[0][0]) * base, read([picture])[0]) for stamp, picture in frames]


def on_show(frames: list[tuple[float, int]], times: list[float]) -> list[int]:
    """Number of the last frame that begins at each time or before."""
    return [[number for begins, number in frames if begins <= time + 1e-6][-1] for time in times]


def sound(path: Path) -> Path:
    """Half a second of silence: no picture."""
    with av.open(str(path), "w") as container:
        silence(container, 0.5)
    return path


def silence(container, seconds: float) -> None:
    """A track of sound."""
    stream = container.add_stream("aac", rate=16000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, int(16000 * seconds)), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def halve(path: Path) -> Path:
    """Cut a file in half, as a broken download leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def broken(folder: Path) -> dict[str, Path]:
    """Files that are not videos, by what is wrong with them."""
    whole = film(folder / "whole.mp4").read_bytes()
    contents = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"this is not a video\n" * 50}
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    (folder / "whole.mp4").unlink()
    return {**{name: folder / f"{name}.mp4" for name in contents}, "sound": sound(folder / "sound.mp4")}
