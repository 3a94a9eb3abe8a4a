"""Files of a dataset: which are images, which are no data at all, and how a folder is walked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TypeGuard

_JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"})
# What Pillow may try, with the suffixes; others are no photographs, or run an interpreter (EPS).
IMAGE_FORMATS: dict[str, Set[str]] = {
    **{"JPEG": _JPEG, "MPO": _JPEG, "PNG": {".png"}, "BMP": {".bmp"}, "DIB": {".bmp"}},
    **{"WEBP": {".webp"}, "TIFF": {".tif", ".tiff"}, "GIF": {".gif"}, "JPEG2000": {".jp2"}},
    **{"AVIF": {".avif"}, "PPM": {".ppm", ".pgm", ".pbm", ".pnm"}},
}
IMAGE_SUFFIXES = frozenset().union(*IMAGE_FORMATS.values())


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a name is what systems leave behind: `._x.jpg`, `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def is_file_name(name: object) -> TypeGuard[str]:
    """Whether a value can name a file: text without NUL that a file system can store."""
    try:
        return isinstance(name, str) and bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def with_slashes(folder: Path, name: str) -> str:
    r"""`images\1.jpg`, as written on Windows, with slashes, unless the file exists as it stands."""
    return name if "\\" not in name or os.path.exists(folder / name) else name.replace("\\", "/")


def leaves(folder: Path, path: Path) -> bool:
    """Whether a path is outside a folder, by its text: `set/../x.jpg` is outside `set`."""
    return not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def head_of(path: Path, size: int) -> bytes:
    """The first bytes of a file, which tell what it is."""
    with path.open("rb") as stream:
        return stream.read(size)


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files in a folder and below it, in order, without hidden names.

    Links to folders are followed, unless they lead to a folder that they are in: `above` has the
    real paths of those.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_hidden(entry.name):
            continue
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from walk(Path(entry.path), (*above, real))
        else:
            yield Path(entry.path)
