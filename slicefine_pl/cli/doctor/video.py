"""Video decoding: a clip is encoded and decoded in memory."""

import io

from slicefine_pl.cli.doctor.finding import LIBRARY_ERRORS, Finding, Verdict, first_line

FRAMES, SIDE = 8, 64  # frames of the clip, and their height and width in pixels


def check_video() -> Finding:
    """Encode and decode frames of increasing brightness."""
    name, remedy = "H.264 with PyAV", 'pip install "slicefine-pl[video]"'
    try:
        levels = decoded_levels()
    except ModuleNotFoundError:
        return Finding("video", name, "not installed", Verdict.ABSENT, remedy)
    except LIBRARY_ERRORS as error:
        return Finding("video", name, first_line(error), Verdict.WARNING, f"{remedy}, again")
    if len(levels) != FRAMES or levels != sorted(levels):
        found = f"{len(levels)} of {FRAMES} frames were decoded, with brightness {[round(level) for level in levels]}"
        return Finding("video", name, found, Verdict.WARNING, f"{remedy}, again")
    return Finding("video", name, f"{FRAMES} frames encoded and decoded, in order")


def decoded_levels() -> list[float]:
    """Return the mean brightness of each decoded frame, in [0, 255]."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for index in range(FRAMES):
            frame = np.full((SIDE, SIDE, 3), 20 + 25 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        return [float(frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
