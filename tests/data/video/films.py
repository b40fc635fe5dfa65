"""Small encoded films whose every frame tells its number, for the tests of video."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH, RATE = 48, 64, 10


def picture(number: int) -> np.ndarray:
    """Grey of 10 + 4 x number, brighter by 40 in the right half: frames and sides can be told apart."""
    grey = np.full((HEIGHT, WIDTH, 3), 10 + 4 * number, np.uint8)
    grey[:, WIDTH // 2 :] += 40
    return grey


def film(
    path: Path, frames: int = 30, codec: str = "libx264", stamps=None, rotation: int = 0, header_first=False, tone=0.0
) -> Path:
    """Encode ``frames`` pictures at 10 per second, or at the given time stamps in milliseconds; beside ``tone`` seconds
    of silence."""
    flags = {"movflags": "faststart"} if header_first else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=RATE, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        if stamps is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if tone:
            silence(container, tone)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


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
    """Files that are no videos, by what is wrong with them."""
    whole = film(folder / "whole.mp4").read_bytes()
    contents = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"this is no video\n" * 50}
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    (folder / "whole.mp4").unlink()
    return {**{name: folder / f"{name}.mp4" for name in contents}, "sound": sound(folder / "sound.mp4")}
