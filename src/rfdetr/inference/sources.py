"""What `predict` accepts, as upright uint8 RGB arrays: files, folders, patterns, addresses, PIL,
NumPy, torch.
"""

from __future__ import annotations

import glob
import http.client
import logging
import os
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from rfdetr.checks import check_path
from rfdetr.data.files import IMAGE_SUFFIXES, is_hidden, is_image
from rfdetr.data.images import ImageError, check_size, decode_image, upright_rgb
from rfdetr.errors import InputError, InputTypeError

logger = logging.getLogger(__name__)

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor"
ImageSources: TypeAlias = "ImageSource | Iterable[ImageSource]"

DOWNLOAD_TIMEOUT = 30  # seconds without an answer
_UNREADABLE = (ValueError, TypeError, OSError)  # an ImageError is a ValueError
DOWNLOAD_LIMIT = 256 * 2**20  # bytes; a larger answer is no picture


def is_single(images: ImageSources) -> bool:
    """Whether this is one image (one result) rather than a folder, a pattern or an iterable (a list
    of results).
    """
    if isinstance(images, str | os.PathLike):
        return _is_address(images) or not (os.path.isdir(_local(images)) or _is_pattern(images))
    if isinstance(images, Image.Image | np.ndarray | torch.Tensor):
        return True
    if isinstance(images, bytes | Mapping) or not isinstance(images, Iterable):
        raise InputTypeError(f"{type(images).__name__} is no image: {_ACCEPTED}")
    return False


class Loaded(NamedTuple):
    """An image that was read: its path or address (None: from memory), its pixels, and why it has
    none.
    """

    name: str | None
    image: np.ndarray
    error: str | None = None


def load_images(images: ImageSources, skip: bool) -> Iterator[Loaded]:
    """Every image of `images`; one that cannot be read is an error that says which it is, or is
    told and skipped.
    """
    several = not is_single(images) and not isinstance(images, str | os.PathLike)
    items: Iterable[Any] = images if several else expand(images)  # type: ignore[assignment]  # is_single says so
    total = f" of {len(images)}" if several and isinstance(images, Sized) else ""
    for number, item in enumerate(items, 1):
        place = f"image {number}{total}: " if several else ""
        for source in _sources_of(item):
            try:
                if isinstance(source, Exception):
                    raise source
                loaded = Loaded(source_name(source), load_image(source))
            except _UNREADABLE as error:
                if len(error.args) == 1:
                    error.args = (f"{place}{error}",)
                if not skip:
                    raise
                logger.warning("%s; skipped", error)
                name = None if isinstance(source, Exception) else source_name(source)
                loaded = Loaded(name, np.zeros((0, 0, 3), np.uint8), str(error))
            yield loaded


def _sources_of(item: Any) -> list[ImageSource | Exception]:
    """What one entry of a list stands for: an image, the files of a folder, or the error that it is
    neither.
    """
    try:
        return [*expand([item])]
    except _UNREADABLE as error:
        return [error]


def expand(images: ImageSources) -> Iterator[ImageSource]:
    """Every single image of `images`, folders and patterns replaced by their files in the order of
    their names.
    """
    if is_single(images):
        yield images  # type: ignore[misc]  # is_single says so
    elif isinstance(images, str | os.PathLike):
        yield from list_files(images)
    else:
        for item in images:  # type: ignore[union-attr]  # an iterable, says is_single
            if not isinstance(item, str | os.PathLike) and not is_single(item):
                raise InputTypeError(
                    f"{type(item).__name__} inside a list is no image: {_ACCEPTED}"
                )
            yield from expand(item)


def list_files(folder_or_pattern: str | os.PathLike[str]) -> list[Path]:
    """Image files of a folder (not of its subfolders) or of a pattern such as "shots/**/*.jpg";
    none is an error.

    Folders of a pattern that exist as they are written are taken literally, brackets included.
    """
    place = _local(folder_or_pattern)
    if place.is_dir():
        found: Iterable[Path] = (path for path in place.iterdir() if not is_hidden(path.name))
    else:
        literal = next(
            folder for folder in place.parents if os.path.exists(folder)
        )  # such as "[set 1]"
        found = map(
            Path,
            glob.glob(
                os.path.join(glob.escape(str(literal)), place.relative_to(literal)), recursive=True
            ),
        )
    files = sorted(path for path in found if is_image(path) and path.is_file())
    if not files:
        raise InputError(
            f"{folder_or_pattern}: no image files there ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return files


def load_image(source: ImageSource) -> np.ndarray:
    """One source as an upright (H, W, 3) uint8 RGB array; what cannot be read is an error that
    names it.
    """
    if isinstance(source, np.ndarray):
        return _rgb_from_array(
            source, f"NumPy image of shape {source.shape}", "(height, width[, 1, 3 or 4])"
        )
    if isinstance(source, torch.Tensor):
        if source.layout is not torch.strided or source.is_meta or source.is_quantized:
            raise InputTypeError(
                f"torch image of layout {source.layout}, {source.dtype}: expected a dense tensor with data"
            )
        array = source.detach().to(
            "cpu", torch.float32 if source.is_floating_point() else source.dtype
        )
        moved = array.movedim(0, -1) if array.ndim == 3 else array
        wanted = "(1, 3 or 4, height, width); a batch goes in as list(batch)"
        return _rgb_from_array(moved.numpy(), f"torch image of shape {tuple(source.shape)}", wanted)
    if isinstance(source, Image.Image):
        try:
            return upright_rgb(source)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow decodes at the first use
            raise ImageError(f"PIL image {source.mode} {source.size}: {error}") from error
    if _is_address(source):
        return decode_image(_download(str(source)), name=str(source))
    return decode_image(_read(source), name=str(source))


def source_name(source: ImageSource) -> str | None:
    """Path or address of a source; None for an image in memory."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


_ACCEPTED = "expected a path, an http(s) address, a folder, a PIL image, a NumPy array, a torch tensor, or several"


def _is_address(source: str | os.PathLike[str]) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def _is_pattern(source: str | os.PathLike[str]) -> bool:
    return glob.has_magic(os.fspath(source)) and not os.path.exists(_local(source))


def _local(source: str | os.PathLike[str]) -> Path:
    return check_path("the image's path", source)


def _read(source: str | os.PathLike[str]) -> bytes:
    if "://" in str(source):
        raise InputError(f"{source}: expected an http:// or https:// address, or a path")
    path = _local(source)
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise ImageError(f"{path}: not a file")
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file or folder") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error


def _download(address: str) -> bytes:
    quoted = urllib.parse.quote(
        address, safe=":/?#[]@!$&'()*+,;=%~"
    )  # browsers take spaces and accents too
    try:
        request = urllib.request.Request(quoted, headers={"User-Agent": "rfdetr"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as answer:
            content: bytes = answer.read(DOWNLOAD_LIMIT + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(
            f"{address}: could not be downloaded: {error}; check the address and the network"
        ) from error
    if len(content) > DOWNLOAD_LIMIT:
        raise InputError(f"{address}: larger than {DOWNLOAD_LIMIT // 2**20} MiB")
    return content


def _rgb_from_array(array: np.ndarray, what: str, wanted: str) -> np.ndarray:
    """Gray, gray + axis, RGB or RGBA (alpha dropped); uint8, or floats in [0, 1]."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise InputError(f"{what}: expected {wanted}")
    check_size(array.shape[0], array.shape[1], what)
    if np.issubdtype(array.dtype, np.floating):
        array = _quantize(array, what)
    elif array.dtype != np.uint8:
        raise InputError(f"{what} and type {array.dtype}: expected uint8, or floats in [0, 1]")
    return np.ascontiguousarray(
        array[..., :3] if array.shape[2] > 1 else np.repeat(array, 3, axis=2)
    )


def _quantize(array: np.ndarray, what: str) -> np.ndarray:
    """[0, 1] to uint8, so that an image divided by 255 gives the very detections of the image
    itself.
    """
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{what} holds NaN or infinite values: expected floats in [0, 1]")
    if low < 0 or high > 1:
        raise InputError(
            f"{what} has values from {low:g} to {high:g}: expected floats in [0, 1], or uint8"
        )
    quantized: np.ndarray = np.rint(array * 255).astype(np.uint8)
    return quantized
