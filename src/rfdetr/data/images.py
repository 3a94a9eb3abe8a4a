"""Pixels: any image file to upright RGB, the one resize and the one normalisation of all images.

JPEG goes through simplejpeg, everything else through Pillow, and an EXIF orientation is applied.
Of other modes: alpha is dropped, as Pillow's `convert("RGB")` and OpenCV do, so that colours are
those other tools train on; palettes are expanded; gray of 16 or 32 bits is brought to 8 by
`_deep_gray`; of 16-bit colours the upper 8 bits are kept; of an animation the first frame.
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
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rfdetr.data.files import IMAGE_FORMATS
from rfdetr.errors import InputError

if TYPE_CHECKING:
    from rfdetr.data.packs import PackedFile

logger = logging.getLogger(__name__)
_warn_once = functools.cache(logger.warning)

Pixels = TypeVar("Pixels", NDArray[np.uint8], NDArray[np.bool_])

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 178_956_970  # 512 MiB as RGB, and where Pillow too speaks of a decompression bomb

_JPEG_START, _JPEG_SCAN, _JPEG_END, _EXIF_MARKER = b"\xff\xd8", b"\xff\xda", b"\xff\xd9", 0xE1
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of the segment with the size
_ORIENTATION_TAG, _PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 0x0112, 0x0106, 0
# What Pillow's readers are seen to raise for damaged files; other code is not run under it.
_PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError),
    *(RuntimeError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError),
)


class ImageError(InputError):
    """A file that is not a readable image; the message names it."""


class ImageHeader(NamedTuple):
    """What the first bytes of an image file say; height and width are those before turning."""

    height: int
    width: int
    channels: int
    orientation: int  # EXIF's: 1 upright, 2 to 8 mirrored or turned
    deep: bool = False  # more than 8 bits a gray value

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width after the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(source: Path | bytes, name: str = "image bytes") -> ImageHeader:
    """Size and orientation of an image file, or of bytes that messages call `name`, without
    decoding it (tens of microseconds).

    `ImageError` where it is none, or of more than `MAX_PIXELS`.
    """
    what = name if isinstance(source, bytes) else source
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise ImageError(f"{source}: not a file")  # a pipe or a device would never end
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        try:
            header = _jpeg_header(stream)
            if header is None:
                stream.seek(0)
                with Image.open(stream, formats=_pillow_formats()) as image:
                    header = _pillow_header(image)
            check_size(header.height, header.width)
            return header
        except _PILLOW_ERRORS as error:
            raise ImageError(f"{what}: not a readable image: {_reason(error)}") from error


def decode_image(source: Path | PackedFile | bytes, name: str = "image bytes") -> NDArray[np.uint8]:
    """Decode a file, or bytes that messages call `name`, to upright RGB (H, W, 3).

    `ImageError` where that cannot be done, `OSError` where the file cannot be read.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    header = _jpeg_header(io.BytesIO(data))
    try:
        if header and header.channels in (1, 3):  # Pillow knows Adobe's inverted inks (4)
            check_size(header.height, header.width)
            # What is damaged goes on to Pillow, which forgives what viewers do.
            with contextlib.suppress(ValueError):
                return turned(simplejpeg.decode_jpeg(data), header.orientation)
        if header and lacks_end_marker(data) and _has_all_scans(data, header.channels):
            # simplejpeg, unlike Pillow, refuses a file with the marker if pixels are missing.
            with contextlib.suppress(ValueError):
                simplejpeg.decode_jpeg(data + _JPEG_END, "CMYK" if header.channels == 4 else "RGB")
                data += _JPEG_END
        with Image.open(io.BytesIO(data), formats=_pillow_formats()) as image:
            return upright_rgb(image)
    except _PILLOW_ERRORS as error:
        reason = f"{_reason(error) if data else 'it is empty'}; replace or remove the file"
        what = name if isinstance(source, bytes) else source
        raise ImageError(f"{what}: cannot be decoded as an image: {reason}") from error


def lacks_end_marker(data: bytes) -> bool:
    """Whether `data` is a JPEG without the marker that ends it; its picture may still be whole."""
    stream = io.BytesIO(data)
    is_jpeg = _jpeg_header(stream) is not None
    return is_jpeg and data.rfind(_JPEG_END, stream.tell()) < 0  # that of a thumbnail lies before


def _has_all_scans(data: bytes, channels: int) -> bool:
    """Whether a JPEG's scans (a progressive one has many) bring each coefficient's last bit."""
    sent: set[tuple[int, int]] = set()
    at = data.find(_JPEG_SCAN)
    while 0 <= at < len(data) - 10:
        # Marker (2), length (2), number of channels, two bytes for each, range of coefficients, bit
        end = at + 5 + 2 * data[at + 4]
        first, last, bits = (*data[end : end + 3], 0, 0, 1)[:3]
        if bits & 15 == 0:
            sent.update(itertools.product(data[at + 5 : end : 2], range(first, last + 1)))
        at = data.find(_JPEG_SCAN, at + 2)
    return len(sent) >= 64 * channels


def check_size(height: int, width: int, what: str = "it") -> None:
    """`ImageError` for an image `what` without pixels, or with more than `MAX_PIXELS`."""
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"{what} is {width} x {height}: expected 1 to {MAX_PIXELS:,} pixels")


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image of any mode as upright RGB (H, W, 3)."""
    check_size(image.height, image.width)
    orientation = _pillow_orientation(image)
    if is_deep(image.mode):
        if multiprocessing.parent_process() is None:  # workers would each tell it
            how = "each is scaled to 8 bits by its largest value"
            _warn_once(f"there are images of 16 or 32 bits a gray value: {how}")
        return turned(np.repeat(_deep_gray(image)[..., None], 3, axis=2), orientation)
    if "transparency" in image.info:  # Pillow warns where a palette's alpha is dropped in one step
        image = image.convert("RGBA")
    return turned(np.array(image.convert("RGB")), orientation)


def is_deep(mode: str) -> bool:
    """Whether a Pillow mode has more than 8 bits a gray value."""
    return mode == "F" or mode.startswith("I")


def resize(image: NDArray[np.uint8], size: int | tuple[int, int]) -> Tensor:
    """Stretch (H, W, 3) to a (3, height, width) uint8 tensor: bilinear, antialiased. `size` is
    (height, width), or the side of a square.
    """
    pixels = torch.from_numpy(image if image.flags.writeable else image.copy())
    channels_last = pixels.permute(2, 0, 1)[None]  # which torch has a fast uint8 path for
    return F.interpolate(channels_last, size, mode="bilinear", antialias=True)[0]


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB (B, 3, H, W) to float32 by ImageNet's mean and deviation; floats stay."""
    if images.is_floating_point():
        return images
    mean, scale = _normalization(images.device)
    return images.sub(mean).mul_(scale)


@functools.lru_cache
def _normalization(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation of uint8 values, (3, 1, 1) each."""
    with torch.inference_mode(False):  # cached: the first caller's mode must not mark the constants
        constants = torch.tensor((IMAGENET_MEAN, IMAGENET_STD), dtype=torch.float32, device=device)
        mean, deviation = constants.mul(255).view(2, 3, 1, 1)
        return mean, deviation.reciprocal()


@functools.cache
def _pillow_formats() -> list[str]:
    Image.init()  # else formats not used yet are unknown; builds of Pillow differ in what they have
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def _reason(error: Exception) -> str:
    unknown = isinstance(error, UnidentifiedImageError)
    return "no known image format" if unknown else str(error) or type(error).__name__


def _deep_gray(image: Image.Image) -> NDArray[np.uint8]:
    """Gray of 16 or 32 bits to 8: divided by the power of two that its largest value just needs.

    4095 of a 12-bit camera and 65535 of a 16-bit one are both white, so that the same picture comes
    out the same from files of 8, 12 and 16 bits; whole values up to 255 stay. Negative values are
    lifted to start at 0; NaN and infinity are 0.
    """
    values = np.nan_to_num(np.array(image, np.float32), nan=0, posinf=0, neginf=0)
    values -= min(values.min(), 0)
    least = 0.0 if image.mode == "F" else 256.0
    scale = max(2.0 ** math.ceil(math.log2(values.max() or 1)), least)
    pixels: NDArray[np.uint8] = np.minimum(values * np.float32(256 / scale), 255).astype(np.uint8)
    photometric = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_TAG)
    return ~pixels if photometric == _WHITE_IS_ZERO else pixels  # Pillow inverts 8 bits only


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation: 5 to 8 are stored transposed, some with an axis reversed."""
    if orientation == 1:
        return pixels
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return np.ascontiguousarray(pixels)


def turned_points(points: NDArray[Any], orientation: int, sizes: NDArray[np.int64]) -> NDArray[Any]:
    """Where `turned` takes points (n, 2) x y of a stored image, for orientations 5 to 8.

    `sizes` (n, 2) or (2,) are height and width of the upright image. With orientation 6, the point
    (10, 0) of an image stored 100 wide and 40 high is (40, 10) of the upright one of 40 x 100.
    """
    moved = points[:, ::-1].copy()
    if orientation in (7, 8):
        moved[:, 1] = sizes[..., 0] - moved[:, 1]
    if orientation in (6, 7):
        moved[:, 0] = sizes[..., 1] - moved[:, 0]
    return moved


def _jpeg_header(stream: BinaryIO) -> ImageHeader | None:
    """Walk a JPEG's segments up to the frame; None: no JPEG, or one that Pillow should judge."""
    if stream.read(2) != _JPEG_START:
        return None
    orientation = 1
    while len(start := stream.read(4)) == 4 and start[0] == 0xFF:
        marker, length = start[1], int.from_bytes(start[2:], "big") - 2
        if marker in _JPEG_FRAMES:
            if len(frame := stream.read(6)) < 6:
                return None
            _precision, height, width, channels = struct.unpack(">BHHB", frame)
            return ImageHeader(height, width, channels, orientation) if height and width else None
        if length < 0:
            return None
        if marker == _EXIF_MARKER and orientation == 1:
            orientation = _exif_orientation(stream.read(length))
        else:
            stream.seek(length, io.SEEK_CUR)
    return None


def _pillow_header(image: Image.Image) -> ImageHeader:
    height, width, orientation = image.height, image.width, _pillow_orientation(image)
    if image.format == "TIFF":  # of which Pillow tells the upright size
        tag = getattr(image, "tag_v2", {}).get(_ORIENTATION_TAG)
        orientation = int(tag) if tag is not None and tag in range(1, 9) else 1
        height, width = (width, height) if orientation >= 5 else (height, width)
    return ImageHeader(height, width, len(image.getbands()), orientation, is_deep(image.mode))


def _pillow_orientation(image: Image.Image) -> int:
    """Orientation still to be applied: Pillow turns TIFF itself, and lists no "exif" of it."""
    exif = image.info.get("exif", b"")
    return _exif_orientation(exif if exif.startswith(b"Exif") else b"Exif\0\0" + exif)


def _exif_orientation(exif: bytes) -> int:
    """Orientation in the first directory of an EXIF block; 1 if there is none or it is damaged."""
    order = {b"Exif\0\0II": "<", b"Exif\0\0MM": ">"}.get(exif[:8])
    if order:
        with contextlib.suppress(struct.error):  # the block ends before what it promises
            (directory,) = struct.unpack_from(order + "I", exif, 10)
            (count,) = struct.unpack_from(order + "H", exif, 6 + directory)
            for entry in range(count):
                tag, value = struct.unpack_from(order + "H6xH2x", exif, 8 + directory + 12 * entry)
                if tag == _ORIENTATION_TAG:
                    return value if 1 <= value <= 8 else 1
    return 1
