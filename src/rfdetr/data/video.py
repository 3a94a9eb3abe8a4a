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

STREAM_TIMEOUT = 20.0
"""Seconds that an address may take to answer, and then to send more."""
VIDEO_SUFFIXES = {
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".vob", ".webm", ".wmv"),
}
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
    asks for is applied. Frames that are damaged are left out and keep their numbers; where nothing
    more can be read, the film ends, perhaps well before its header says: all are warnings. One
    without a frame that can be read is an `InputError`, and so is an address that does not answer
    for `STREAM_TIMEOUT`.
    """
    check_count("every", every)
    with needs_extra("video", "films"):
        import av
    name, number, damaged, ended, seconds = str(source), -1, 0, "", 0.0
    text, how = _address_of(source)
    try:
        with av.open(text, **how) as container:
            if not container.streams.video:
                raise InputError(f"{name}: no pictures in it, only sound or data")
            rate = float(container.streams.video[0].average_rate or 25)
            for number, frame in enumerate(_decoded(container)):
                if frame is None:
                    damaged += 1
                    continue
                seconds = number / rate if frame.time is None else frame.time
                if number % every == 0:
                    pixels = frame.to_ndarray(format="rgb24")
                    turned = np.rot90(pixels, round(frame.rotation / 90))  # counterclockwise
                    yield Frame(number, seconds, np.ascontiguousarray(turned))
            ended = _what_is_missing(container, seconds)
    except (av.error.FFmpegError, OSError) as error:
        ended = str(error)
    read = number + 1 - damaged
    if read <= 0:
        why = f"cannot be read as a film: {ended}" if ended else "a film without a frame to be read"
        raise InputError(f"{name}: {why}")
    if damaged:
        logger.warning("%s: %d damaged frames are left out, %d are read", name, damaged, read)
    if ended:
        logger.warning("%s: ends after %d frames: %s", name, read, ended)


def _address_of(source: Any) -> tuple[str, dict[str, Any]]:
    """What PyAV opens for a film, a stream or a camera, and how; `InputError` where none is."""
    text = str(source)
    if text.isdecimal():
        device = f"/dev/video{text}"
        if not Path(device).exists():
            raise InputError(f"camera {text}: there is no {device}; `ls /dev/video*` shows what is")
        return device, {"format": "v4l2"}
    if "://" in text:
        return text, {"timeout": STREAM_TIMEOUT}
    path = check_path("the film", source)
    if not path.is_file():
        raise InputError(f"{text}: no such film")
    return str(path.absolute()), {}  # "a:b.mp4" alone is a protocol to FFmpeg


def _what_is_missing(container: Any, seconds: float) -> str:
    """What to tell of a film whose last frame is of `seconds`, if its header says that pictures go
    on for longer by a second and a tenth; "" if not.
    """
    stream, length, start, unit = container.streams.video[0], container.duration, 0, 1e-6
    if stream.duration is not None:
        length, start, unit = stream.duration, stream.start_time or 0, float(stream.time_base)
    told = ((length or 0) + start) * unit
    missing = seconds < told - max(1.0, told / 10)
    return f"its header says that it goes on to {told:.1f} s" if missing else ""


def _decoded(container: Any) -> Iterator[Any]:
    """The frames of the first stream of pictures, None for each that is damaged."""
    import av

    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            yield None


class FilmWriter:
    """Writes pictures (H, W, 3) with their times to a film, H.264 in .mp4."""

    def __init__(self, path: Path) -> None:
        import av

        self._av: Any = av
        self._stream: Any = None
        self._last, self._step, self._shift = -1, 1, 0  # milliseconds
        self._size = (0, 0)
        self._file: Any = av.open(str(path.absolute()), "w")

    def write(self, image: NDArray[np.uint8], seconds: float) -> None:
        """Add a picture; all get the size of the first, less an odd row or column. Times that go
        back (of a film that was put together) go on after the last one.
        """
        from fractions import Fraction

        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._file.add_stream(codec, rate=1000)
            self._size = image.shape[:2]
            self._stream.height, self._stream.width = (side // 2 * 2 for side in self._size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, 1000)
        height, width = self._stream.height, self._stream.width
        shown = image[:height, :width] if image.shape[:2] == self._size else image
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")
        frame = frame.reformat(width, height)
        now = round(seconds * 1000) + self._shift
        if now <= self._last:
            self._shift += self._last + self._step - now
            now = self._last + self._step
        self._step = now - self._last if self._last >= 0 else 1
        self._last = now
        frame.pts, frame.time_base = self._last, Fraction(1, 1000)
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._stream is not None:
            self._file.mux(self._stream.encode())
        self._file.close()
