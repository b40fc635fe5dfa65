"""Synthetic videos in the layout of Kinetics: mp4 files in which a patch moves, and only the motion shows the class.

Position, angle and size of the patch are periodic and start at random values. So a single frame has the same
distribution in all classes. The class is which of these quantities changes, and in which direction.

Shapes:  H height · W width, in pixels · T frames
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slicefine_pl.data.cache import cache_folder, read_checked, write_checked
from slicefine_pl.inputs import VideoInput

# Changes per second: vertical and horizontal position (in frame sizes), angle (in turns), size (in doublings)
MOTIONS = {
    "clockwise": (0.0, 0.0, 0.4, 0.0),
    "counterclockwise": (0.0, 0.0, -0.4, 0.0),
    "down": (0.3, 0.0, 0.0, 0.0),
    "grow": (0.0, 0.0, 0.0, 0.6),
    "left": (0.0, -0.3, 0.0, 0.0),
    "right": (0.0, 0.3, 0.0, 0.0),
    "shrink": (0.0, 0.0, 0.0, -0.6),
    "up": (-0.3, 0.0, 0.0, 0.0),
}
HEIGHT, WIDTH, FRAMES, FRAME_RATE = 96, 96, 30, 12
INPUT = VideoInput(num_frames=16, clip_seconds=2.0, crop_size=64, test_clips=2, test_crops=1)
FRACTIONS = {"train": 0.6, "val": 0.1, "test": 0.3}


@dataclass(frozen=True)
class Appearance:
    """The random properties of a video. They are independent of the motion.

    Attributes:
        start: Position (down, across), angle and size at time 0, each in [0, 1).
        speed: Factor on the motion.
        background: Gray clouds, shape ``(H, W, 3)``, in [0, 255].
        colors: Colors of the two kinds of stripes, shape ``(2, 3)``.
        stripes: Number of stripes on the patch.
        slim: Width of the patch as a fraction of its length.
    """

    start: NDArray[np.float64]
    speed: float
    background: NDArray[np.float64]
    colors: NDArray[np.float64]
    stripes: float
    slim: float


def draw_appearance(rng: np.random.Generator) -> Appearance:
    """Draw the appearance of a video."""
    coarse = rng.uniform(40, 180, (5, 6, 3)) + rng.uniform(-20, 20, (1, 1, 3))
    down, across = np.linspace(0, 3.999, HEIGHT), np.linspace(0, 4.999, WIDTH)
    rows, columns = down.astype(int), across.astype(int)
    part_down, part_across = (down - rows)[:, None, None], (across - columns)[None, :, None]
    upper = coarse[rows][:, columns] * (1 - part_across) + coarse[rows][:, columns + 1] * part_across
    lower = coarse[rows + 1][:, columns] * (1 - part_across) + coarse[rows + 1][:, columns + 1] * part_across
    return Appearance(
        start=rng.uniform(size=4),
        speed=rng.uniform(0.8, 1.25),
        background=upper * (1 - part_down) + lower * part_down,
        colors=np.stack([rng.uniform(150, 255, 3), rng.uniform(0, 90, 3)]),
        stripes=rng.uniform(1.0, 2.0),
        slim=rng.uniform(0.35, 0.6),
    )


def render_frame(appearance: Appearance, motion: str, seconds: float) -> NDArray[np.uint8]:
    """Return the frame at some time, shape ``(H, W, 3)``."""
    down, across, turn, size = (appearance.start + appearance.speed * seconds * np.array(MOTIONS[motion])) % 1.0
    length = HEIGHT * 0.22 * 2.0**size  # half the length of the patch; doubles, then starts again
    angle = 2 * np.pi * turn
    y = (np.arange(HEIGHT)[:, None] - down * HEIGHT + HEIGHT / 2) % HEIGHT - HEIGHT / 2  # leaves at one side,
    x = (np.arange(WIDTH)[None, :] - across * WIDTH + WIDTH / 2) % WIDTH - WIDTH / 2  # enters at the other
    along = (np.cos(angle) * x + np.sin(angle) * y) / length
    aside = (np.cos(angle) * y - np.sin(angle) * x) / (length * appearance.slim)
    inside = ((np.abs(along) < 1) & (np.abs(aside) < 1 - 0.35 * (along + 1)))[
        ..., None
    ]  # a wedge, so that front and back differ
    stripe = (np.sin(2 * np.pi * appearance.stripes * along) > 0)[..., None]
    patch = np.where(stripe, appearance.colors[0], appearance.colors[1])
    return np.where(inside, patch, appearance.background).clip(0, 255).astype(np.uint8)


def encode(path: Path, frames: list[NDArray[np.uint8]], rate: int = FRAME_RATE) -> None:
    """Write frames of shape ``(H, W, 3)`` as an H.264 file, without sound."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "20"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_demo(per_class: int) -> Path:
    """Make the videos in the cache folder, unless they are there and undamaged. Return their root folder.

    Args:
        per_class: Number of videos of each of the eight classes, over all splits.
    """
    root = demo_root(per_class)
    if _is_intact(root):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        for label, motion in enumerate(MOTIONS):
            for number in range(per_class):
                appearance = draw_appearance(np.random.default_rng((label, number)))
                folder = Path(scratch) / "new" / _split(number, per_class) / motion
                folder.mkdir(parents=True, exist_ok=True)
                frames = [render_frame(appearance, motion, time / FRAME_RATE) for time in range(FRAMES)]
                encode(folder / f"{motion}_{number:04d}.mp4", frames)
        _install(Path(scratch) / "new", root, Path(scratch) / "old")
    return root


def demo_root(per_class: int) -> Path:
    """Return the root folder of the videos."""
    return cache_folder() / f"motion-1-{per_class}"


def _install(new: Path, root: Path, old: Path) -> None:
    """Move new videos to ``root``, unless another process was faster. Damaged videos there are moved to ``old``."""
    digest = _digest(new)
    if _is_intact(root):
        return
    if root.is_dir():
        os.rename(root, old)
    os.rename(new, root)
    write_checked(_checksum_file(root), digest)


def _is_intact(root: Path) -> bool:
    return root.is_dir() and read_checked(_checksum_file(root)) == _digest(root)


def _checksum_file(root: Path) -> Path:
    return root.with_name(f"{root.name}.sha256")


def _digest(root: Path) -> bytes:
    """Return a digest of the names and contents of all videos."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.mp4")):
        digest.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()


def _split(number: int, per_class: int) -> str:
    place = (number + 0.5) / per_class
    return "train" if place < FRACTIONS["train"] else "val" if place < FRACTIONS["train"] + FRACTIONS["val"] else "test"
