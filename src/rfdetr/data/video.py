"""Frames of films, cameras and streams, by PyAV: decoded one by one, upright, with their times."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.checks import check_count, check_path
from rfdetr.errors import InputError, needs_extra

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "udp://")


class Frame(NamedTuple):
    """One picture of a film: its number from 0, its time in seconds, its pixels (H, W, 3)."""

    number: int
    seconds: float
    image: NDArray[np.uint8]


def is_video(source: Any) -> bool:
    """Whether `source` names a film (by its suffix), a stream, or a camera by its number; a folder
    of that name is none.
    """
    text = str(source)
    if text.isdecimal():
        return not Path(text).exists()
    return text.startswith(_STREAMS) or Path(text.split("?")[0]).suffix.lower() in VIDEO_SUFFIXES


def read_frames(source: Any, every: int = 1) -> Iterator[Frame]:
    """Every `every`-th frame of a film, of a stream (rtsp://...), or of a camera (0); never more
    than one is in memory.

    Times are those of the film, whose frames may come at a variable rate, and a rotation that it
    asks for is applied. A film that is damaged somewhere ends there, with a warning; one without a
    frame that can be read is an `InputError`.
    """
    check_count("every", every)
    with needs_extra("video", "films"):
        import av
    name, text, format_name = str(source), str(source), None
    if text.isdecimal():
        text, format_name = f"/dev/video{text}", "v4l2"
    elif "://" not in text:
        text = str(check_path("the film", source))
        if not Path(text).is_file():
            raise InputError(f"{name}: no such film")
    count = -1
    try:
        with av.open(text, format=format_name) as container:
            if not container.streams.video:
                raise InputError(f"{name}: no pictures in it, only sound or data")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or 25)
            for count, frame in enumerate(container.decode(stream)):
                if count % every == 0:
                    image: Any = frame.to_ndarray(format="rgb24")
                    turns = round(frame.rotation / 90)  # counterclockwise
                    image = np.ascontiguousarray(np.rot90(image, turns)) if turns % 4 else image
                    yield Frame(count, count / rate if frame.time is None else frame.time, image)
    except (av.error.FFmpegError, OSError) as error:
        if count < 0:
            raise InputError(f"{name}: cannot be read as a film: {error}") from error
        logger.warning("%s: ends after %d frames: %s", name, count + 1, error)
    if count < 0:
        raise InputError(f"{name}: a film without a frame that can be read")


class FilmWriter:
    """Writes pictures (H, W, 3) with their times to a film, H.264 in .mp4."""

    def __init__(self, path: Path) -> None:
        import av

        self._av: Any = av
        self._stream: Any = None
        self._last = -1
        self._file: Any = av.open(str(path), "w")

    def write(self, image: NDArray[np.uint8], seconds: float) -> None:
        """Add a picture; all have the size of the first, less an odd row or column."""
        from fractions import Fraction

        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._file.add_stream(codec, rate=1000)
            self._stream.height, self._stream.width = (side // 2 * 2 for side in image.shape[:2])
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, 1000)
        shown = np.ascontiguousarray(image[: self._stream.height, : self._stream.width])
        frame = self._av.VideoFrame.from_ndarray(shown, format="rgb24")
        self._last = max(round(seconds * 1000), self._last + 1)  # times have to rise
        frame.pts, frame.time_base = self._last, Fraction(1, 1000)
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._stream is not None:
            self._file.mux(self._stream.encode())
        self._file.close()
