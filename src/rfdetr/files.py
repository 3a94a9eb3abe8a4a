"""How bytes reach the disk: files written whole or not at all, and the SHA-256 of checkpoints
beside them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

CHECKSUMS_FILE = "checksums.json"
_BLOCK = 1 << 20


def read_checksums(folder: Path) -> dict[str, Any] | None:
    """What a folder's checksums.json says, by file name; None where that is another program's file."""
    try:
        content = json.loads((folder / CHECKSUMS_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def sidecar(path: str | os.PathLike[str]) -> Path:
    """Where earlier versions kept the checksum of a file: beside it, as `sha256sum -c` reads it."""
    return Path(f"{os.fspath(path)}.sha256")


def recorded_digests(path: str | os.PathLike[str]) -> list[str]:
    """The digests that a file may have: two while it is being replaced, none where nobody noted
    any.
    """
    path = Path(path)
    if isinstance(text := (read_checksums(path.parent) or {}).get(path.name), str):
        return text.split()
    try:
        lines = sidecar(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.strip()]


def digest_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_damaged(path: str | os.PathLike[str]) -> bool:
    """Whether the file differs from what its checksum says; a file without one is taken as it is."""
    digests = recorded_digests(path)
    return bool(digests) and digest_of(path) not in digests


def newest_good(path: str | os.PathLike[str]) -> Path | None:
    """The newest other checkpoint beside a file that its checksum proves whole; `.ckpt` only beside
    a `.ckpt`.
    """
    path = Path(path)
    kinds = (".ckpt",) if path.suffix == ".ckpt" else (".pth", ".pt", ".safetensors", ".ckpt")
    others = [other for kind in kinds for other in path.parent.glob(f"*{kind}") if other != path]
    others.sort(key=lambda other: other.stat().st_mtime_ns, reverse=True)
    return next(
        (other for other in others if recorded_digests(other) and not is_damaged(other)), None
    )


def advice(path: str | os.PathLike[str]) -> str:
    """What to use in place of a damaged file, as the end of a message."""
    other = newest_good(path)
    return (
        f"; the newest good checkpoint beside it is {other}"
        if other
        else "; there is no good checkpoint beside it"
    )


_threads = threading.Lock()


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFullError(OSError):
    """A file that found no room; the message says how much it needs. What was there under its name
    still is.
    """


def atomic_write(
    path: str | os.PathLike[str], writer: Callable[[BinaryIO], object], *, checksum: bool = False
) -> None:
    """Writes a file so that a reader, or a crash, meets the old content or the new, never a part.

    The temporary file lies beside `path` under a name of its own; a symbolic link at `path` is
    replaced, not followed. With `checksum`, the file's SHA-256 goes to the folder's checksums.json.
    `writer` is called again to measure what finds no room.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    target: _HashingWriter | None = None
    try:
        with open(temporary, "xb") as stream:
            target = _HashingWriter(stream)
            writer(cast(BinaryIO, target) if checksum else stream)
            stream.flush()
            os.fsync(stream.fileno())
        if checksum:  # until the file is replaced, both are right: a crash in between must not make it look damaged
            record_digests(path, [target.digest.hexdigest(), *recorded_digests(path)])
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt, too, must leave no temporary file behind
        temporary.unlink(missing_ok=True)
        cause = error if target is None or target.error is None else target.error
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            raise DiskFullError(_room_needed(path, writer)) from error
        raise
    _sync_directory(path.parent)
    if checksum:
        record_digests(path, [target.digest.hexdigest()])


def link_checkpoint(source: Path, path: Path) -> None:
    """Gives a checkpoint a second name that takes no room; a copy where the file system has no
    links.
    """
    if path.exists() and path.samefile(source):  # the same link again, which no rename replaces
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        os.link(source, temporary)
    except OSError:
        atomic_write(path, lambda stream: _copy(source, stream), checksum=True)
        return
    digests = recorded_digests(source) or [digest_of(source)]
    record_digests(path, [*digests, *recorded_digests(path)])
    os.replace(temporary, path)
    _sync_directory(path.parent)
    record_digests(path, digests)


def record_digests(path: str | os.PathLike[str], digests: list[str]) -> None:
    """Notes the digests that a file may have; none: it is forgotten. Writers of other files in the
    folder wait.
    """
    path = Path(path)
    with _sole_writer(path.parent):
        content = read_checksums(path.parent)
        if content is not None:
            content.pop(path.name, None)
            content |= {path.name: " ".join(dict.fromkeys(digests))} if digests else {}
            text = json.dumps(dict(sorted(content.items())), indent=2) + "\n"
            if content:
                atomic_write(
                    path.parent / CHECKSUMS_FILE, lambda stream: stream.write(text.encode())
                )
            else:
                (path.parent / CHECKSUMS_FILE).unlink(missing_ok=True)
    sidecar(path).unlink(missing_ok=True)


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Keeps other threads from a folder's checksums.json, and other processes where folders can be
    locked.
    """
    with _threads:
        descriptor = None
        with suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _copy(source: Path, stream: BinaryIO) -> None:
    with open(source, "rb") as content:
        shutil.copyfileobj(content, stream)


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files of writes that were killed; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", path.name):
            path.unlink(missing_ok=True)


class _HashingWriter:
    """Passes on what is written, and remembers its digest and the error, which torch.save may hide."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.stream.flush()


class _Counter:
    size = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.size += size
        return size

    def flush(self) -> None:
        pass


def _room_needed(path: Path, writer: Callable[[BinaryIO], object]) -> str:
    counter = _Counter()
    writer(cast(BinaryIO, counter))
    free = shutil.disk_usage(path.parent).free
    return (
        f"{path} could not be written: it needs {counter.size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free on its "
        "disk (or a quota or limit is reached)"
    )


def _sync_directory(folder: Path) -> None:
    """Makes the rename itself survive a power cut, where the system can."""
    with suppress(OSError):  # Windows opens no directories, some network file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
