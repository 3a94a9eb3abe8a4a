"""Packed datasets: images in a few tar files, read by range from a disk or from an address.

The folder that `rfdetr pack` writes (`packing.py`), or an fsspec address of a copy of it, holds

    images-00000.tar, ...   the image files, in shards of bounded size
    images.npz              where in the shards each one is, its SHA-256, what its header says
    labels.tar.gz           the dataset's label files as they are
    rfdetr-pack.json        written last: sizes and checksums of the others

Labels are unpacked once, into the user's cache, with an empty file in the place of each image: so
the readers of every layout find the folder that was packed, and give the same index. Pixels come
from the shards: what stands for a path is then a `PackedFile`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.files import leaves
from rfdetr.data.findings import DatasetError
from rfdetr.errors import MissingPackageError
from rfdetr.files import digest_of
from rfdetr.weights.download import cache_dir

MANIFEST, LABELS, TABLE = "rfdetr-pack.json", "labels.tar.gz", "images.npz"
FORMAT = "rfdetr-pack-1"
ROW = np.dtype(
    [("shard", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("header", "<i4", 4), ("sha256", "V32")]
)
"""An image: in which shard, from which byte, how many; upright height, width, EXIF orientation, and
whether it has more than 8 bits a gray value.
"""
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]+):/+(.*)", re.DOTALL)  # a Path of "s3://x" has one stroke
_WAITS = (1, 3, 9)  # seconds before a read over the network is tried again
_AT_ONCE = 16  # shards that are asked for their size


@dataclass(frozen=True)
class PackedFile:
    """An image file in a shard: what decoding takes in place of a path."""

    shard: str
    name: str
    offset: int
    size: int
    sha256: bytes

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def read_bytes(self) -> bytes:
        """The file's bytes. What is not those that were packed is a `DatasetError`, for which no
        other image stands in.
        """
        with _told(f"{self} (of {self.size:,} bytes)"):
            data = _read(self.shard, self.offset, self.size)
        if len(data) != self.size:
            found = f"{len(data):,} bytes came in place of {self.size:,}"
            reason = "the server does not honour ranges" if len(data) > self.size else "it is cut"
            raise DatasetError(f"{self}: {found}: {reason}")
        if hashlib.sha256(data).digest() != self.sha256:
            found = "its SHA-256 is not the one of the image that was packed"
            raise DatasetError(f"{self}: {found}: the shard is damaged; copy it again")
        return data


class PackedFiles(NamedTuple):
    """The images of a split in a packed dataset."""

    shards: tuple[str, ...]
    folder: Path  # the unpacked labels
    rows: NDArray[Any]  # (N,) ROW

    def get(self, image: int, path: Path) -> PackedFile:
        """The file that `path`, in the folder of labels, stands for."""
        row = self.rows[image]
        name = os.path.relpath(path, self.folder).replace(os.sep, "/")
        at = int(row["offset"]), int(row["size"])
        return PackedFile(self.shards[row["shard"]], name, *at, row["sha256"].tobytes())


@dataclass(frozen=True)
class Pack:
    """A packed dataset whose labels are unpacked: `folder` is as the packed one, without pixels."""

    shards: tuple[str, ...]
    folder: Path
    dataset_file: str
    names: list[str]
    rows: NDArray[Any]

    def files_of(self, root: Path, names: Sequence[str]) -> PackedFiles:
        """Those that a reader has listed, their `names` from `root`."""
        known = {name: row for row, name in enumerate(self.names)}
        start = os.path.relpath(root, self.folder)
        paths = (os.path.normpath(os.path.join(start, name)) for name in names)
        wanted = [path.replace(os.sep, "/") for path in paths]
        if absent := [name for name in wanted if name not in known]:
            told = f"{absent[0]} is not in the pack; are its labels' paths absolute?"
            raise DatasetError(f"{self.folder}: {told}")
        return PackedFiles(self.shards, self.folder, self.rows[[known[name] for name in wanted]])


def key_of(folder: Path, path: Path) -> str:
    """An image's name in a pack: its path from the dataset's folder."""
    return os.path.relpath(os.path.abspath(path), os.path.abspath(folder)).replace(os.sep, "/")


def address_of(place: str | os.PathLike[str]) -> str | None:
    """The fsspec address that a text or path means, such as s3://bucket/set; None for a path."""
    match = _ADDRESS.fullmatch(os.fspath(place))
    return f"{match[1]}://{match[2]}".rstrip("/") if match else None


def open_pack(place: Path) -> Pack | None:
    """The packed dataset in a folder or at an address; None for a folder that holds none.

    A `DatasetError` names what is missing or not of the size that was packed.
    """
    address = address_of(place)
    if address is None and not (place / MANIFEST).is_file():
        return None
    base = address or str(place)
    with _told(f"{base}/{MANIFEST}"):
        content = _read(f"{base}/{MANIFEST}")
    cause: Exception | None = None
    try:
        manifest = json.loads(content)
        sizes, digests = dict(manifest["sizes"]), dict(manifest["sha256"])
        form, dataset_file = manifest["format"], str(manifest["dataset_file"])
    except (ValueError, KeyError, TypeError) as error:
        form, cause = f"{type(error).__name__}: {error}", error
    if form != FORMAT:
        told = f"no packed data set that this version reads ({form}, expected {FORMAT})"
        raise DatasetError(f"{base}/{MANIFEST}: {told}; pack it again") from cause
    shards = tuple(f"{base}/{name}" for name in sorted(sizes.keys() - digests.keys()))
    with _fetched(f"{base}/{TABLE}", digests[TABLE]) as path, np.load(path) as arrays:
        rows, text = arrays["rows"], arrays["names"].tobytes()
    names = [os.fsdecode(name) for name in text.split(b"\0")]
    _check_sizes(shards, [sizes[shard.rpartition("/")[2]] for shard in shards], names, rows)
    folder = cache_dir() / "packs" / hashlib.sha256(content).hexdigest()[:32]
    if not folder.is_dir():
        with _fetched(f"{base}/{LABELS}", digests[LABELS]) as path:
            _unpack(path, names, folder)
    pack = Pack(shards, folder, dataset_file, names, rows)
    PackedFiles(shards, folder, rows).get(0, folder / names[0]).read_bytes()  # are ranges honoured?
    return pack


def _check_sizes(
    shards: Sequence[str], sizes: Sequence[int], names: list[str], rows: NDArray[Any]
) -> None:
    def size_of(shard: str) -> int | None:
        if address_of(shard) is None:
            return os.stat(shard).st_size
        system, path = _system(shard)
        size: int | None = system.info(path)["size"]
        return size

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = [pool.submit(size_of, shard) for shard in shards]
    for number, (shard, expected) in enumerate(zip(shards, sizes, strict=True)):
        images = np.flatnonzero(rows["shard"] == number)
        whose = f"{shard}, which holds {names[images[0]]} and {len(images) - 1:,} other images"
        with _told(whose):
            size = found[number].result()
        if size is not None and size != expected:  # None: a server that does not tell
            told = f"is {size:,} bytes long, expected {expected:,}: it is truncated, or another's"
            raise DatasetError(f"{whose}, {told}; copy it again")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of a disk or a network, of whatever class, as a `DatasetError` of `what`."""
    try:
        yield
    except (DatasetError, MissingPackageError):
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"{what}: there is no such file") from error
    except Exception as error:  # clients have classes of their own
        found = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{what}: cannot be read: {found}") from error


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address, which fsspec keeps for each process, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(address)
    except ImportError as error:
        told = f"{address} needs a client: {error}; for http://, pip install"
        raise MissingPackageError(f"{told} 'rfdetr-finetune[remote]'") from error
    return system, path


def _read(place: str, start: int = 0, size: int | None = None) -> bytes:
    """Bytes of a file or an address, which is tried again where the network fails."""
    if address_of(place) is None:
        with open(place, "rb") as stream:
            stream.seek(start)
            return stream.read(-1 if size is None else size)
    system, path = _system(place)
    waits = iter(_WAITS)
    while True:
        try:
            part = {} if size is None else {"start": start, "end": start + size}
            data: bytes = system.cat_file(path, **part)
            return data
        except Exception as error:
            wait = next(waits, None)
            if wait is None or isinstance(error, FileNotFoundError | PermissionError):
                raise
            time.sleep(wait)


@contextmanager
def _fetched(place: str, sha256: str) -> Iterator[Path]:
    """A local path of a file of the pack, which must be as its manifest says."""
    with tempfile.TemporaryDirectory() as folder, _told(place):
        path = Path(place)
        if address_of(place) is not None:
            system, inside = _system(place)
            path = Path(folder, "copy")
            system.get_file(inside, str(path))
        if digest_of(path) != sha256:
            raise DatasetError(f"{place}: not what {MANIFEST} says by its SHA-256; copy it again")
        yield path


def _unpack(labels: Path, names: list[str], folder: Path) -> None:
    """Makes the folder of labels, whole or not at all; another process may be doing the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    made: set[Path] = set()

    def place_of(name: str) -> Path:
        path = temporary / name
        if leaves(temporary, path):
            raise DatasetError(f"{labels}: {name} would be written outside of its folder")
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        return path

    try:
        with tarfile.open(labels, "r|gz") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                if content := archive.extractfile(member):
                    with place_of(member.name).open("wb") as out:
                        shutil.copyfileobj(content, out)
        for name in names:
            place_of(name).open("ab").close()
        with suppress(OSError):  # there by now: it is the same
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def table_bytes(names: Sequence[str], rows: NDArray[Any]) -> bytes:
    """The content of `TABLE`."""
    text, stream = b"\0".join(map(os.fsencode, names)), io.BytesIO()
    np.savez(stream, rows=rows, names=np.frombuffer(text, np.uint8))
    return stream.getvalue()
