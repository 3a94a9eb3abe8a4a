"""Pixels: any image file to upright RGB, the one resize and the one normalisation that training and
predict share.

JPEG goes through simplejpeg, everything else through Pillow. What is kept of other modes: alpha is
dropped, as Pillow's `convert("RGB")` and OpenCV do, so that colours are those other tools train on;
palettes are expanded; gray of 16 or 32 bits is brought to 8 by `_deep_gray` (of 16-bit colours
Pillow keeps the upper 8 bits); of an animation only the first frame is read. An EXIF orientation is
applied: images come out upright.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import math
import multiprocessing
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rfdetr.data.files import IMAGE_FORMATS
from rfdetr.errors import InputError

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PIXELS = 178_956_970  # 512 MiB as RGB, and where Pillow too speaks of a decompression bomb

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {
    0xC4,
    0xC8,
    0xCC,
}  # start-of-frame markers, which hold the size
_EXIF_MARKER = 0xE1
_ORIENTATION_TAG, _PHOTOMETRIC_TAG = 0x0112, 0x0106
_WHITE_IS_ZERO = 0  # of the photometric tag
# What Pillow's readers are seen to raise for damaged files.
_PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError),
    *(RuntimeError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError),
)


class ImageError(InputError):
    """A file that is not a readable image; the message names it."""


class ImageHeader(NamedTuple):
    """What the first bytes of an image file say. `orientation` is EXIF's: 1 upright, 2 to 8
    mirrored or turned.

    Height and width are the stored ones. `deep`: more than 8 bits a gray value.
    """

    height: int
    width: int
    channels: int
    orientation: int
    deep: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width after the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(path: Path) -> ImageHeader:
    """Size and orientation of an image file without decoding it (tens of microseconds)."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would never end
        raise ImageError(f"{path}: not a file")
    with path.open("rb") as stream:
        try:
            header = _jpeg_header(stream)
            if header is None:
                stream.seek(0)
                with Image.open(stream, formats=_pillow_formats()) as image:
                    header = _pillow_header(image)
            check_size(header.height, header.width)
        except _PILLOW_ERRORS as error:
            raise ImageError(f"{path}: not a readable image: {_reason(error)}") from error
    return header


def decode_image(source: Path | bytes, name: str | None = None) -> NDArray[np.uint8]:
    """Decode a file, or its bytes, to upright RGB (H, W, 3); `name` stands for bytes in error
    messages.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    header = _jpeg_header(io.BytesIO(data))
    try:
        if header is not None and header.channels in (
            1,
            3,
        ):  # CMYK needs Pillow, which knows Adobe's inverted inks
            check_size(header.height, header.width)
            with contextlib.suppress(
                ValueError
            ):  # damaged: Pillow forgives what viewers do, and says more of the rest
                return turned(simplejpeg.decode_jpeg(data), header.orientation)
        if header is not None and lacks_end_marker(data) and _has_all_scans(data, header.channels):
            with contextlib.suppress(
                ValueError
            ):  # simplejpeg, unlike Pillow, refuses it if pixels are missing
                simplejpeg.decode_jpeg(data + _JPEG_END, "CMYK" if header.channels == 4 else "RGB")
                data += _JPEG_END
        with Image.open(io.BytesIO(data), formats=_pillow_formats()) as image:
            return upright_rgb(image)
    except _PILLOW_ERRORS as error:
        what = name or ("image bytes" if isinstance(source, bytes) else source)
        reason = _reason(error) if data else "it is empty"
        raise ImageError(
            f"{what}: cannot be decoded as an image: {reason}; replace or remove the file"
        ) from error


def lacks_end_marker(data: bytes) -> bool:
    """Whether these are the bytes of a JPEG without the marker that ends it; the picture itself may
    be whole.
    """
    stream = io.BytesIO(data)
    return (
        _jpeg_header(stream) is not None and data.rfind(_JPEG_END, stream.tell()) < 0
    )  # a thumbnail lies before


def _has_all_scans(data: bytes, channels: int) -> bool:
    """Whether the scans of a JPEG, of which a progressive one has many, bring every coefficient to
    its last bit.
    """
    sent: set[tuple[int, int]] = set()
    at = data.find(_JPEG_SCAN)
    while 0 <= at < len(data) - 10:
        count = data[at + 4]  # of components; then the identifiers of each and of its tables
        first, last, bits = (*data[at + 5 + 2 * count : at + 8 + 2 * count], 0, 0, 1)[:3]
        if bits & 15 == 0:
            sent.update(
                itertools.product(data[at + 5 : at + 5 + 2 * count : 2], range(first, last + 1))
            )
        at = data.find(_JPEG_SCAN, at + 2)
    return len(sent) >= 64 * channels


def check_size(height: int, width: int, what: str = "it") -> None:
    """Refuses an image without pixels, or with more than `MAX_PIXELS`."""
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"{what} is {width} x {height}: expected 1 to {MAX_PIXELS:,} pixels")


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image of any mode as upright RGB (H, W, 3)."""
    check_size(image.height, image.width)
    orientation = _pillow_orientation(image)
    if is_deep(image.mode):
        if multiprocessing.parent_process() is None:  # workers would each tell it
            _tell_deep()
        pixels = np.repeat(_deep_gray(image)[..., None], 3, axis=2)
    else:
        if (
            "transparency" in image.info
        ):  # Pillow warns where a palette's alpha is dropped in one step
            image = image.convert("RGBA")
        pixels = np.array(image.convert("RGB"))
    return turned(pixels, orientation)


def is_deep(mode: str) -> bool:
    """Whether a Pillow mode has more than 8 bits a gray value."""
    return mode == "F" or mode.startswith("I")


def resize_square(image: NDArray[np.uint8], size: int) -> Tensor:
    """(H, W, 3) to a (3, size, size) uint8 tensor: bilinear, antialiased, stretched to the square."""
    if not image.flags.writeable:
        image = image.copy()
    channels_last = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)  # torch's fast uint8 path
    return F.interpolate(channels_last, (size, size), mode="bilinear", antialias=True)[0]


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB (B, 3, H, W) to float32 with ImageNet mean and deviation; floats are taken as
    normalised already.
    """
    if images.is_floating_point():
        return images
    mean, scale = _normalization(images.device)
    return images.sub(mean).mul_(scale)


@functools.lru_cache
def _normalization(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # cached: the first caller's mode must not mark the constants
        mean = (
            torch.tensor(IMAGENET_MEAN, dtype=torch.float32, device=device).mul(255).view(3, 1, 1)
        )
        scale = (
            torch.tensor(IMAGENET_STD, dtype=torch.float32, device=device)
            .mul(255)
            .reciprocal()
            .view(3, 1, 1)
        )
    return mean, scale


@functools.cache
def _pillow_formats() -> list[str]:
    Image.init()  # else formats that were not used yet are unknown; builds of Pillow differ in which they have
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def _reason(error: Exception) -> str:
    return (
        "no known image format"
        if isinstance(error, UnidentifiedImageError)
        else str(error) or type(error).__name__
    )


def _deep_gray(image: Image.Image) -> NDArray[np.uint8]:
    """Gray of 16 or 32 bits, integers or floats, to 8 bits: over the power of two that its largest
    value just needs.

    4095 of a 12-bit camera and 65535 of a 16-bit one are both white, so that the same picture comes
    out the same from files of 8, 12 and 16 bits; values up to 255 stay. Negative values are lifted
    to start at 0, NaN and infinity are 0.
    """
    values = np.nan_to_num(np.array(image, np.float32), nan=0, posinf=0, neginf=0)
    values -= min(values.min(), 0)
    least = 0.0 if image.mode == "F" else 256.0
    scale = max(2.0 ** math.ceil(math.log2(values.max() or 1)), least)
    pixels: NDArray[np.uint8] = np.minimum(values * np.float32(256 / scale), 255).astype(np.uint8)
    white_is_zero = (
        getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
    )  # Pillow inverts 8 bits only
    return ~pixels if white_is_zero else pixels


@functools.cache
def _tell_deep() -> None:
    logger.warning(
        "there are images of 16 or 32 bits a gray value: each is scaled to 8 bits by its largest value"
    )


Pixels = TypeVar("Pixels", NDArray[np.uint8], NDArray[np.bool_])


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation: 5 to 8 are stored transposed; then rows, columns or both are
    reversed.
    """
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turned_points(points: NDArray[Any], orientation: int, sizes: NDArray[np.int64]) -> NDArray[Any]:
    """Where `turned` takes points (n, 2) x y of a stored image, for orientations 5 to 8.

    `sizes` (n, 2) or (2,) are height and width of the upright image: with orientation 6, the point
    (10, 0) of an image stored 100 wide and 40 high is (40, 10) of the upright one, 40 wide and 100
    high.
    """
    moved = points[:, ::-1].copy()
    if orientation in (7, 8):
        moved[:, 1] = sizes[..., 0] - moved[:, 1]
    if orientation in (6, 7):
        moved[:, 0] = sizes[..., 1] - moved[:, 0]
    return moved


def _jpeg_header(stream: BinaryIO) -> ImageHeader | None:
    """Walk the segments of a JPEG up to its frame; None: no JPEG, or one that Pillow should judge."""
    if stream.read(2) != _JPEG_START:
        return None
    orientation = 1
    while len(start := stream.read(4)) == 4 and start[0] == 0xFF:
        marker, length = start[1], int.from_bytes(start[2:], "big") - 2
        if marker in _JPEG_FRAMES:
            frame = stream.read(6)  # precision, height, width, components
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            return (
                ImageHeader(height, width, frame[5], orientation)
                if len(frame) == 6 and height and width
                else None
            )
        if length < 0:
            return None
        if marker == _EXIF_MARKER and orientation == 1:
            orientation = _exif_orientation(stream.read(length))
        else:
            stream.seek(length, io.SEEK_CUR)
    return None


def _pillow_header(image: Image.Image) -> ImageHeader:
    height, width, orientation = image.height, image.width, _pillow_orientation(image)
    if image.format == "TIFF":
        tag = getattr(image, "tag_v2", {}).get(_ORIENTATION_TAG)
        orientation = int(tag) if tag is not None and tag in range(1, 9) else 1
        height, width = (width, height) if orientation >= 5 else (height, width)
    return ImageHeader(height, width, len(image.getbands()), orientation, is_deep(image.mode))


def _pillow_orientation(image: Image.Image) -> int:
    """Orientation still to be applied: Pillow turns TIFF files itself and lists no "exif" for them."""
    exif = image.info.get("exif", b"")
    return _exif_orientation(exif if exif.startswith(b"Exif") else b"Exif\0\0" + exif)


def _exif_orientation(exif: bytes) -> int:
    """Orientation entry of the first directory; 1 where there is none or it is damaged (slices
    never raise).
    """
    if not exif.startswith((b"Exif\0\0II", b"Exif\0\0MM")):
        return 1

    def number(at: int, length: int) -> int:
        return int.from_bytes(exif[at : at + length], "little" if exif[6:7] == b"I" else "big")

    directory = 6 + number(10, 4)
    end = min(
        directory + 2 + 12 * number(directory, 2), len(exif) - 11
    )  # a count may promise more than there is
    for entry in range(directory + 2, end, 12):
        if number(entry, 2) == _ORIENTATION_TAG:
            orientation = number(entry + 8, 2)
            return orientation if 1 <= orientation <= 8 else 1
    return 1
