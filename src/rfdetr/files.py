"""How bytes reach the disk: files that are written whole or not at all, the SHA-256 of checkpoints
beside them, and the lock of a folder that one process alone may write to.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

CHECKSUMS_FILE = "checksums.json"
_CHECKPOINTS = (".pth", ".pt", ".safetensors", ".ckpt")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_threads = threading.Lock()
_held: dict[Path, int] = {}  # lock file -> the process, which its own record locks do not stop


class DiskFullError(OSError):
    """A file that found no room; what was there under its name still is."""


class LockHeldError(BlockingIOError):
    """A lock that another holds; the message says who."""


def atomic_write(
    path: str | os.PathLike[str], writer: Callable[[BinaryIO], object], *, checksum: bool = False
) -> None:
    """Writes a file so that a reader, or a crash, meets the old content or the new, never a part.

    `writer` gets the open stream of a temporary file beside `path`. A symbolic link at `path` is
    replaced, not followed. With `checksum`, the file's SHA-256 goes to the folder's checksums.json.
    Raises `DiskFullError` where there is no room.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, hashing = _temporary(path), None
    try:
        with open(temporary, "xb") as stream:
            hashing = _HashingWriter(stream)
            writer(cast(BinaryIO, hashing) if checksum else stream)
            stream.flush()
            os.fsync(stream.fileno())
        put(temporary, path, [hashing.digest.hexdigest()] if checksum else [])
    except BaseException as error:  # an interrupt, too, must leave no temporary file behind
        temporary.unlink(missing_ok=True)
        cause = error if hashing is None or hashing.error is None else hashing.error
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            free = shutil.disk_usage(path.parent).free / 1e6
            told = f"{path} could not be written: {cause.strerror}; {free:,.1f} MB are free there"
            raise DiskFullError(told) from error
        raise


def link_checkpoint(source: Path, path: Path) -> None:
    """Gives a checkpoint a second name; a copy where the file system has no links."""
    if path.exists() and path.samefile(source):  # the same link again, which no rename replaces
        return
    temporary = _temporary(path)
    try:
        os.link(source, temporary)
    except OSError:
        with open(source, "rb") as content:
            atomic_write(path, lambda stream: shutil.copyfileobj(content, stream), checksum=True)
    else:
        put(temporary, path, recorded_digests(source) or [digest_of(source)])


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files of writes that were killed; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", path.name):
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A new name beside `path`, of the form that `remove_leftovers` knows."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def put(temporary: Path, path: Path, digests: list[str]) -> None:
    """Renames a finished file to `path` and notes its digests. In between both the old file's and
    the new one's are right: a crash there must not make either look damaged.
    """
    if digests:
        record_digests(path, [*digests, *recorded_digests(path)])
    os.replace(temporary, path)
    with suppress(OSError), ExitStack() as stack:  # Windows opens no folders, some NFS syncs none
        folder = os.open(path.parent, os.O_RDONLY)
        stack.callback(os.close, folder)
        os.fsync(folder)  # makes the rename itself survive a power cut
    if digests:
        record_digests(path, digests)


class _HashingWriter:
    """Passes on what is written; keeps its digest, and its error, which torch.save may hide."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.flush = stream, stream.flush
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise


def digest_of(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """The sum of a file's bytes, in hexadecimal."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_checksums(folder: Path) -> dict[str, Any] | None:
    """What a folder's checksums.json says, by file name; None where that is another program's."""
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
    """The digests that a file may have: two while it is being replaced, [] where none is noted."""
    path = Path(path)
    if isinstance(text := (read_checksums(path.parent) or {}).get(path.name), str):
        return text.split()
    try:
        lines = sidecar(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.strip()]


def record_digests(path: str | os.PathLike[str], digests: list[str]) -> None:
    """Notes the digests that a file may have; with [], the file is forgotten. Other threads wait,
    and other processes where folders can be locked.
    """
    path = Path(path)
    with _threads, ExitStack() as stack:
        with suppress(ImportError, OSError):
            import fcntl

            stack.callback(os.close, folder := os.open(path.parent, os.O_RDONLY))
            fcntl.flock(folder, fcntl.LOCK_EX)
        content = read_checksums(path.parent)
        if content is not None:
            content.pop(path.name, None)
            content |= {path.name: " ".join(dict.fromkeys(digests))} if digests else {}
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            if content:
                atomic_write(path.parent / CHECKSUMS_FILE, lambda file: file.write(text.encode()))
            else:
                (path.parent / CHECKSUMS_FILE).unlink(missing_ok=True)
    sidecar(path).unlink(missing_ok=True)


def is_damaged(path: str | os.PathLike[str]) -> bool:
    """Whether a file differs from what its checksum says; one without a checksum does not."""
    digests = recorded_digests(path)
    return bool(digests) and digest_of(path) not in digests


def newest_good(path: str | os.PathLike[str]) -> Path | None:
    """The newest other checkpoint beside a file that its checksum proves whole; beside a `.ckpt`,
    which a run resumes from, another `.ckpt`.
    """
    path = Path(path)
    kinds = (".ckpt",) if path.suffix == ".ckpt" else _CHECKPOINTS
    others = [file for file in path.parent.glob("*.*") if file.suffix in kinds and file != path]
    others.sort(key=lambda file: file.stat().st_mtime_ns, reverse=True)
    return next((file for file in others if recorded_digests(file) and not is_damaged(file)), None)


def advice(path: str | os.PathLike[str]) -> str:
    """What to use in place of a damaged file, as the end of a message."""
    if other := newest_good(path):
        return f"; the newest good checkpoint beside it is {other}"
    return "; there is no good checkpoint beside it"


class RecordLock:
    """An exclusive lock on a small file that tells its holder; the system frees it when that
    process ends, however it ends.

    A POSIX record lock: unlike flock's, it is not inherited by the processes that load images, and
    it holds on NFS.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock, unless this object holds it already. Raises `LockHeldError` where
        another does, `OSError` where the file cannot be made.
        """
        if self._descriptor is not None:
            return
        if _held.get(self.path) == os.getpid():
            raise LockHeldError("this same process")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        with ExitStack() as undo:
            undo.callback(os.close, descriptor)
            owner = lock_owner(self.path)
            try:
                _lock(descriptor)
            except (BlockingIOError, PermissionError) as error:
                raise LockHeldError(_OWNER.format_map(owner)) from error
            except OSError as error:  # a file system without locks: what the file says has to do
                if _is_alive(owner):
                    raise LockHeldError(_OWNER.format_map(owner)) from error
            if not (self.path.exists() and os.path.samefile(self.path, descriptor)):
                raise LockHeldError("it has just ended or begun: try again")
            undo.pop_all()
        owner = {"pid": os.getpid(), "host": platform.node()}
        owner |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "command": shlex.join(sys.argv)}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
        self._descriptor, _held[self.path] = descriptor, os.getpid()

    def release(self) -> None:
        """Removes the file and gives the lock back; nothing where it is not held."""
        if self._descriptor is not None:
            _held.pop(self.path, None)
            with suppress(OSError):  # Windows deletes no open file
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether a living process of this host says that it holds the lock `path`. Nobody's lock is
    touched: to try another's could make it fail, and to open our own's file would lose it.
    """
    return _held.get(path) == os.getpid() or _is_alive(lock_owner(path))


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind the text, which others should read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_OWNER = "process {pid} on {host} since {since}: {command}"


def lock_owner(path: Path) -> dict[str, Any]:
    """What a lock's file says of its holder: pid, host, since, command; "?" for what it does not.

    Not for a lock of this same process, which would lose it: `is_locked` tells.
    """
    unknown = dict.fromkeys(("pid", "host", "since", "command"), "?")
    with suppress(OSError, ValueError, TypeError):
        return {**unknown, **json.loads(path.read_bytes())}
    return unknown


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether a lock's holder is another process of this host that still runs."""
    pid = owner["pid"]
    here = owner["host"] == platform.node() and sys.platform != "win32"
    if not here or not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:  # another user's process cannot be signalled, but is there
        return isinstance(error, PermissionError)
    return True
