"""Published files on this machine: found in the cache, or downloaded once, resumed and checked."""

from __future__ import annotations

import hashlib
import http
import http.client
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rfdetr.console import download_bar
from rfdetr.weights.registry import PUBLISHED, PublishedFile

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
_TIMEOUT_S = 30.0
_PAUSE_S = 1.0
_CHUNK_BYTES = 1 << 20


class DownloadError(ConnectionError):
    """A published file that is neither here nor to be had; the message says where it belongs."""


def fetch(name: str) -> Path:
    """The path of a published file: from the cache, else downloaded into it. Raises
    `DownloadError`.
    """
    return download(PUBLISHED[name], cache_dir())


def cache_dir() -> Path:
    """Where published files are kept: RFDETR_HOME, or a folder in the user's cache."""
    if home := os.environ.get("RFDETR_HOME"):
        return Path(home).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "rfdetr"


def download(file: PublishedFile, folder: Path) -> Path:
    """The verified file in `folder`, downloaded if it is not there. Raises `DownloadError`.

    A file of that name with another content is left alone and refused. An interrupted download
    continues where it stopped; processes that want the same file take turns. RFDETR_WEIGHTS_URL
    replaces the address but for the name.
    """
    target = folder / file.name
    if _is_verified(target, file):
        return target
    mirror = os.environ.get("RFDETR_WEIGHTS_URL")
    url = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder / f"{file.name}.rfdetr-lock"):
            if not _is_verified(target, file):  # another process may have brought it meanwhile
                _download(file, url, target)
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"cannot download {file.name} from {url}: {error}. It was looked for in {folder}. To place it by hand, get "
            f"{file.url} on a machine that can, and save it as {target} (MD5 {file.md5}); or pass "
            "pretrain_weights=PATH for a file of your own, pretrain_weights=None for random weights"
        ) from error
    return target


def _is_verified(target: Path, file: PublishedFile) -> bool:
    """Whether the published file is there; it is not hashed again while it has not changed."""
    if not target.exists():
        return False
    status = target.stat()
    stamp = f"{file.md5} {status.st_size} {status.st_mtime_ns}"
    marker = target.with_name(f"{file.name}.rfdetr-verified")
    if marker.is_file() and marker.read_text() == stamp:
        return True
    found = _md5(target)
    if found != file.md5:
        raise DownloadError(
            f"{target} is not the published {file.name}: its MD5 is {found}, expected {file.md5}. It was left as it "
            "is; move it away to have the published file downloaded, or give it another name and pass its path"
        )
    with suppress(OSError):  # a cache that cannot be written to is hashed every time
        marker.write_text(stamp)
    return True


def _download(file: PublishedFile, url: str, target: Path) -> None:
    """Fills the partial file and names it once its sum is right; a part that leads to a wrong sum
    is begun again.
    """
    partial = target.with_name(f"{file.name}.rfdetr-part")
    resumed = partial.exists()
    _transfer_with_retries(url, partial, file.name)
    found = _md5(partial)
    if found == file.md5:
        os.replace(partial, target)
        _is_verified(target, file)
        return
    partial.unlink()
    if not resumed:
        raise OSError(f"what came has MD5 {found}, expected {file.md5}, and was deleted")
    logger.warning("the partial %s was damaged; downloading it from the start", file.name)
    _download(file, url, target)


def _transfer_with_retries(url: str, partial: Path, name: str) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _transfer(url, partial, name)
        except (OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS or not _is_temporary(error):
                raise
            logger.info("%s: %s; trying again", name, error)
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))


def _is_temporary(error: Exception) -> bool:
    """Whether another attempt may help: a busy server or a lost connection, not a wrong address or
    a full disk.
    """
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 429) or error.code >= 500
    return isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)


def _transfer(url: str, partial: Path, name: str) -> None:
    """Appends to the partial file what it lacks; a server that cannot start in the middle starts
    over.
    """
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # nothing is lacking; the sum will tell
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        length = response.headers["Content-Length"]
        total = have + int(length) if length else None
        logger.info(
            "downloading %s from %s (%s bytes, %d already here)",
            name,
            url,
            total or "unknown",
            have,
        )
        with open(partial, "ab" if have else "wb") as stream, download_bar() as progress:
            task = progress.add_task(name, total=total, completed=have)
            while chunk := response.read(_CHUNK_BYTES):
                stream.write(chunk)
                have += len(chunk)
                progress.advance(task, len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Holds a lock that the system releases with the process, however it ends; the empty file
    stays.
    """
    with open(path, "ab") as stream:
        if not _try_lock(stream.fileno()):
            logger.info("another process is downloading this file; waiting for it (%s)", path)
            while not _try_lock(stream.fileno()):
                time.sleep(0.2)
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
