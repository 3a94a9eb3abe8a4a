"""Files of a dataset: which are images, which are no data at all, and how a folder is walked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from pathlib import Path

_JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"})
IMAGE_FORMATS: dict[str, Set[str]] = {  # what Pillow may try; others are no photographs, or run an interpreter (EPS)
    "JPEG": _JPEG, "MPO": _JPEG, "PNG": {".png"}, "BMP": {".bmp"}, "DIB": {".bmp"}, "WEBP": {".webp"},
    "TIFF": {".tif", ".tiff"}, "GIF": {".gif"}, "JPEG2000": {".jp2"}, "AVIF": {".avif"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
}  # fmt: skip
IMAGE_SUFFIXES = frozenset(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes)


def is_image(path: Path) -> bool:
    """Whether a file is an image by the suffix of its name."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a name is what systems leave behind: `._x.jpg`, `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files in a folder and below it, without hidden names.

    Links to folders are followed, unless they lead to a folder that they are in; `above` are the
    real paths of those.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_hidden(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False) or (
            entry.is_symlink() and os.path.isdir(entry.path)
        ):
            yield from walk(Path(entry.path), (*above, real))
        else:
            yield Path(entry.path)


def with_slashes(folder: Path, name: str) -> str:
    r"""A name written on Windows (`images\1.jpg`) with slashes, unless a file has the name as it
    stands.
    """
    return name if "\\" not in name or os.path.exists(folder / name) else name.replace("\\", "/")
