"""What `predict` accepts, as upright uint8 RGB arrays (height, width, 3).

Files, folders, patterns, http(s) addresses, PIL images, NumPy arrays, torch tensors, and iterables
of these.
"""

from __future__ import annotations

import glob
import http.client
import logging
import os
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image

from rfdetr.checks import check_path
from rfdetr.data.files import IMAGE_SUFFIXES, is_hidden, is_image
from rfdetr.data.images import ImageError, check_size, decode_image, upright_rgb
from rfdetr.data.packs import PackedFile
from rfdetr.data.video import VIDEO_SUFFIXES
from rfdetr.errors import InputError, InputTypeError

logger = logging.getLogger(__name__)

T = TypeVar("T")

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor"
ImageSources: TypeAlias = "ImageSource | Iterable[ImageSource]"

DOWNLOAD_TIMEOUT = 30  # seconds without an answer
DOWNLOAD_LIMIT = 256 * 2**20  # bytes; a larger answer is no picture
_UNREADABLE = (ValueError, TypeError, OSError)  # an ImageError is a ValueError
_ACCEPTED = (
    "expected a path, an http(s) address, a folder, a PIL image, a NumPy array, a torch tensor, "
    "or several"
)


class Request(NamedTuple):
    """The images that are meant, after one look at the file system."""

    single: bool  # one image, which has one result and not a list
    sources: Iterator[tuple[str, ImageSource | Exception]]
    """Each with its place in the user's list ("image 3 of 7: "), or why there is none."""


class Loaded(NamedTuple):
    """An image that was read: its path or address (None: from memory) and its pixels (H, W, 3)."""

    name: str | None
    image: np.ndarray
    error: str | None = None  # why it could not be read; then it has no pixels


def look_up(images: ImageSources | Request) -> Request:
    """Which images are meant; a folder or pattern without images is an error."""
    if isinstance(images, Request):
        return images
    single = is_single(images)
    if not single and not isinstance(images, str | os.PathLike):
        return Request(False, _numbered(images))  # type: ignore[arg-type]  # an iterable, then
    found: Iterable[Any] = [images] if single else list_files(images)  # type: ignore[arg-type]
    return Request(single, (("", source) for source in found))


def expand(images: ImageSources) -> Iterator[ImageSource]:
    """Every image of `images`; a folder or pattern becomes its files, ordered by name."""
    for _, source in look_up(images).sources:
        if isinstance(source, Exception):
            raise source
        yield source


def _numbered(items: Iterable[Any]) -> Iterator[tuple[str, ImageSource | Exception]]:
    total = f" of {len(items)}" if isinstance(items, Sized) else ""
    for number, item in enumerate(items, 1):
        found: list[Any] = [item]
        try:
            if not is_single(item):
                if not isinstance(item, str | os.PathLike):
                    kind = type(item).__name__
                    raise InputTypeError(f"{kind} inside a list is no image: {_ACCEPTED}")
                found = list_files(item)
        except _UNREADABLE as error:
            found = [error]
        for source in found:
            yield f"image {number}{total}: ", source


def load_images(request: Request, skip: bool) -> Iterator[Loaded]:
    """Read every image. One that cannot be read is an error that says which, or with `skip` told.

    A skipped image is logged as a warning, and its place is kept: it has `error` and no pixels.
    """
    for place, source in request.sources:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        try:
            if isinstance(source, Exception):
                raise source
            loaded = Loaded(name, load_image(source))
        except _UNREADABLE as error:
            if len(error.args) == 1:
                error.args = (f"{place}{error}",)
            if not skip:
                raise
            logger.warning("%s; skipped", error)
            loaded = Loaded(name, np.zeros((0, 0, 3), np.uint8), str(error))
        yield loaded


def in_batches(
    items: Iterable[T], size: int, alone: Callable[[T], bool] | None = None
) -> Iterator[list[T]]:
    """Consecutive lists of `size` items; the last may be shorter, and so may one before an item
    that is to be `alone`.
    """
    batch: list[T] = []
    for item in items:
        single = alone is not None and alone(item)
        if batch and single:
            yield batch
            batch = []
        batch.append(item)
        if single or len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item


def is_single(images: ImageSources) -> bool:
    """Whether this is one image rather than a folder, a pattern or an iterable of images."""
    if isinstance(images, str | os.PathLike):
        if _is_address(images):
            return True
        path = check_path("the image's path", images)
        is_pattern = glob.has_magic(os.fspath(images)) and not os.path.exists(path)
        return not (is_pattern or os.path.isdir(path))
    if isinstance(images, Image.Image | np.ndarray | torch.Tensor):
        return True
    if isinstance(images, bytes | Mapping) or not isinstance(images, Iterable):
        raise InputTypeError(f"{type(images).__name__} is no image: {_ACCEPTED}")
    return False


def list_files(folder_or_pattern: str | os.PathLike[str]) -> list[Path]:
    """Image files of a folder (not of its subfolders) or of a pattern such as "shots/**/*.jpg".

    None is an error. Folders of a pattern that exist as they are written are taken literally, such
    as "[set 1]" in "[set 1]/*.jpg".
    """
    place = check_path("the image's path", folder_or_pattern)
    if place.is_dir():
        found = [path for path in place.iterdir() if not is_hidden(path.name)]
    else:
        literal = next(folder for folder in place.parents if os.path.exists(folder))
        pattern = os.path.join(glob.escape(str(literal)), place.relative_to(literal))
        found = [*map(Path, glob.glob(pattern, recursive=True))]
    if files := sorted(path for path in found if is_image(path) and path.is_file()):
        return files
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    raise InputError(f"{folder_or_pattern}: no image files there ({suffixes})")


def load_image(source: ImageSource) -> np.ndarray:
    """One source as an upright (H, W, 3) uint8 RGB array.

    Arrays are gray, RGB or RGBA (alpha is dropped), uint8 or floats in [0, 1]. What cannot be read
    is an `InputError`, `ImageError` or `FileNotFoundError` that names it.
    """
    if isinstance(source, np.ndarray):
        what = f"NumPy image of shape {source.shape}"
        return _rgb_from_array(source, what, "(height, width[, 1, 3 or 4])")
    if isinstance(source, torch.Tensor):
        return _rgb_from_tensor(source)
    if isinstance(source, Image.Image):
        try:
            return upright_rgb(source)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow decodes at the first use
            raise ImageError(f"PIL image {source.mode} {source.size}: {error}") from error
    if isinstance(source, PackedFile):
        return decode_image(source)
    content = _download(source) if _is_address(source) else _read(source)
    return decode_image(content, name=str(source))


def _is_address(source: str | os.PathLike[str]) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def _read(source: str | os.PathLike[str]) -> bytes:
    if "://" in str(source):
        raise InputError(f"{source}: expected an http:// or https:// address, or a path")
    path = check_path("the image's path", source)
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise ImageError(f"{path}: not a file")
        if path.exists() and path.suffix.lower() in VIDEO_SUFFIXES:
            raise ImageError(f"{path}: a film, which predict_film reads, and no image")
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file or folder") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error


def _download(address: Any) -> bytes:
    quoted = urllib.parse.quote(address, safe=":/?#[]@!$&'()*+,;=%~")  # browsers take spaces too
    try:
        request = urllib.request.Request(quoted, headers={"User-Agent": "rfdetr"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as answer:
            content: bytes = answer.read(DOWNLOAD_LIMIT + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        what = f"{address}: could not be downloaded: {error}"
        raise InputError(f"{what}; check the address and the network") from error
    if len(content) > DOWNLOAD_LIMIT:
        raise InputError(f"{address}: larger than {DOWNLOAD_LIMIT // 2**20} MiB")
    return content


def _rgb_from_tensor(image: torch.Tensor) -> np.ndarray:
    if image.layout is not torch.strided or image.is_meta or image.is_quantized:
        what = f"torch image of layout {image.layout}, {image.dtype}"
        raise InputTypeError(f"{what}: expected a dense tensor with data")
    # NumPy has no bfloat16.
    array = image.detach().to("cpu", torch.float32 if image.is_floating_point() else image.dtype)
    moved = array.movedim(0, -1) if array.ndim == 3 else array
    wanted = "(1, 3 or 4, height, width); a batch goes in as list(batch)"
    return _rgb_from_array(moved.numpy(), f"torch image of shape {tuple(image.shape)}", wanted)


def _rgb_from_array(array: np.ndarray, what: str, wanted: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise InputError(f"{what}: expected {wanted}")
    check_size(array.shape[0], array.shape[1], what)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"{what} holds NaN or infinite values: expected floats in [0, 1]")
        if low < 0 or high > 1:
            values = f"{what} has values from {low:g} to {high:g}"
            raise InputError(f"{values}: expected floats in [0, 1], or uint8")
        # Rounded, so that an image divided by 255 gives the very detections of the image itself.
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"{what} and type {array.dtype}: expected uint8, or floats in [0, 1]")
    rgb = array[..., :3] if array.shape[2] > 1 else np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(rgb)
