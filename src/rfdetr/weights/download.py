"""Published files on this machine: found in our cache or where others keep them, or downloaded
once, resumed and checked.
"""

from __future__ import annotations

import http.client
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rfdetr.console import download_bar
from rfdetr.files import digest_of

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
_TIMEOUT_S = 30.0
_PAUSE_S = 1.0
_BASE_URL = "https://storage.googleapis.com/rfdetr/"
# Name, MD5, path under the address. Besides the variants' files there are two more of the base
# model: another training, and Objects365.
_FILES = """
rf-detr-base.pth       b4d3ce46099eaed50626ede388caf979 rf-detr-base-coco.pth
rf-detr-base-o365.pth  d93f4921ccbb0f0a2e4364bed290892b \
top-secret-1234/lwdetr_dinov2_small_o365_checkpoint.pth
rf-detr-base-2.pth     462f4d9df407ddc1812f42614040e913 rf-detr-base-2.pth
rf-detr-large.pth      992c8e862aa733a7bb2777e45d49f1a0 rf-detr-large.pth
rf-detr-large-2026.pth 5cb72153541cbcb9aa6efa26222acc75 rf-detr-large-2026.pth
rf-detr-nano.pth       fb6504cce7fbdc783f7a46991f07639f nano_coco/checkpoint_best_regular.pth
rf-detr-small.pth      fb37061c1af7bace359c91b723a8d5c1 small_coco/checkpoint_best_regular.pth
rf-detr-medium.pth     7223f764a87b863f02eb8d52bf0ce2ee medium_coco/checkpoint_best_regular.pth
rf-detr-seg-preview.pt e35820c28fb86080558123e47a5e49ca rf-detr-seg-preview.pt
rf-detr-seg-nano.pt    9995497791d0ff1664a1d9ddee9cfd20 rf-detr-seg-n-ft.pth
rf-detr-seg-small.pt   0a2a3006381d0c42853907e700eadd08 rf-detr-seg-s-ft.pth
rf-detr-seg-medium.pt  a49af1562c3719227ad43d0ca53b4c7a rf-detr-seg-m-ft.pth
rf-detr-seg-large.pt   275f7b094909544ed2841c94a677d07e rf-detr-seg-l-ft.pth
rf-detr-seg-xlarge.pt  3693b35d0eea86ebb3e0444f4a611fba rf-detr-seg-xl-ft.pth
rf-detr-seg-xxlarge.pt 040bc3412af840fa8a47e0ff69b552ba rf-detr-seg-2xl-ft.pth
"""


class PublishedFile(NamedTuple):
    """One file that can be downloaded; `md5` is the hexadecimal sum of its bytes."""

    name: str
    url: str
    md5: str


PUBLISHED: dict[str, PublishedFile] = {
    name: PublishedFile(name, _BASE_URL + path, md5)
    for name, md5, path in map(str.split, _FILES.split("\n")[1:-1])
}
BUNDLED: frozenset[str] = frozenset({"rf-detr-mini.safetensors", "rf-detr-seg-mini.safetensors"})
"""Files that come with the package."""


class DownloadError(ConnectionError):
    """A published file that is neither here nor to be had; the message says where it belongs."""


def fetch(name: str) -> Path:
    """A published file by name: from the cache, from a folder of others that has it, or downloaded
    into the cache. Raises `DownloadError`.
    """
    file, folder = PUBLISHED[name], cache_dir()
    found = None if (folder / name).exists() else _at_others(file)
    return found or download(file, folder)


def cache_dir() -> Path:
    """Where published files are kept: RFDETR_HOME, or a folder in the user's cache."""
    if home := os.environ.get("RFDETR_HOME"):
        return Path(home).expanduser()
    local = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    base = {"win32": local, "darwin": "~/Library/Caches"}.get(sys.platform)
    base = base or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "rfdetr"


def other_dirs() -> list[Path]:
    """Where the published package and Roboflow's other programs keep the same files: what RF_HOME
    and ROBOFLOW_HOME name, each the folder itself, and their default.
    """
    named = os.environ.get("RF_HOME"), os.environ.get("ROBOFLOW_HOME"), "~/.roboflow/models"
    return list(dict.fromkeys(Path(name).expanduser() for name in named if name))


def _at_others(file: PublishedFile) -> Path | None:
    """The file in the first of `other_dirs` that has it. Nothing is written there, so that it is
    hashed each time; a file of that name with another content is left alone, with a warning.
    """
    for path in (folder / file.name for folder in other_dirs()):
        try:
            found = digest_of(path, "md5") if path.is_file() else None
        except OSError as error:
            logger.warning("%s cannot be read, and is left alone: %s", path, error)
            continue
        if found == file.md5:
            logger.info("%s was found in %s", file.name, path.parent)
            return path
        if found:
            told = "%s is not the published %s: its MD5 is %s, expected %s; it is left alone"
            logger.warning(told, path, file.name, found, file.md5)
    return None


def download(file: PublishedFile, folder: Path) -> Path:
    """The verified file in `folder`, downloaded if it is not there. Raises `DownloadError`.

    A file of that name with another content is left alone and refused. An interrupted download
    continues where it stopped; processes that want the same file take turns. RFDETR_WEIGHTS_URL
    replaces the address but for the name.
    """
    from filelock import FileLock

    target, mirror = folder / file.name, os.environ.get("RFDETR_WEIGHTS_URL")
    url = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
    if _is_verified(target, file):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{file.name}.rfdetr-lock"):  # freed with its process by the system
            if not _is_verified(target, file):  # another process may have brought it meanwhile
                _download(file, url, target)
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException) as error:
        places = ", ".join(map(str, [folder, *other_dirs()]))
        raise DownloadError(
            f"cannot download {file.name} from {url}: {error}. It was looked for in {places}. To "
            f"place it by hand, get {file.url} on a machine that can, and save it as {target} (MD5 "
            f"{file.md5}); or pass pretrain_weights=PATH for a file of your own, "
            "pretrain_weights=None for random weights"
        ) from error
    return target


def _is_verified(target: Path, file: PublishedFile, md5: str | None = None) -> bool:
    """Whether the published file is there (`md5`: its sum, if known). A file beside it remembers
    that it was, so that it is hashed again only when its size or time changes.
    """
    if not target.exists():
        return False
    status = target.stat()
    stamp = f"{file.md5} {status.st_size} {status.st_mtime_ns}"
    marker = target.with_name(f"{file.name}.rfdetr-verified")
    if marker.is_file() and marker.read_text() == stamp:
        return True
    if (found := md5 or digest_of(target, "md5")) != file.md5:
        raise DownloadError(
            f"{target} is not the published {file.name}: its MD5 is {found}, expected {file.md5}. "
            "It was left as it is; move it away to have the published file downloaded, or give it "
            "another name and pass its path"
        )
    with suppress(OSError):  # a cache that cannot be written to is hashed every time
        marker.write_text(stamp)
    return True


def _download(file: PublishedFile, url: str, target: Path) -> None:
    """Fills the partial file, and names it if its sum is right; a wrong part is begun again."""
    partial = target.with_name(f"{file.name}.rfdetr-part")
    resumed = partial.exists()
    for attempt in range(_ATTEMPTS):
        try:
            _transfer(url, partial, file.name)
            break
        except (OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS - 1 or not _is_temporary(error):
                raise
            logger.info("%s: %s; trying again", file.name, error)
            time.sleep(_PAUSE_S * 2**attempt)
    if (found := digest_of(partial, "md5")) == file.md5:
        os.replace(partial, target)
        _is_verified(target, file, found)
        return
    partial.unlink()
    if not resumed:
        raise OSError(f"what came has MD5 {found}, expected {file.md5}, and was deleted")
    logger.warning("the partial %s was damaged; downloading it from the start", file.name)
    _download(file, url, target)


def _is_temporary(error: Exception) -> bool:
    """Whether another attempt may help: a busy server, a lost connection; no wrong address."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 429) or error.code >= 500
    return isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)


def _transfer(url: str, partial: Path, name: str) -> None:
    """Appends to the partial file what it lacks; a server that cannot start in the middle starts
    over. A bar on a terminal's standard error; elsewhere the log tells.
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
        have = have if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = response.headers["Content-Length"]
        total = have + int(length) if length else None
        size = f"{total or 'unknown'} bytes, {have} already here"
        logger.info("downloading %s from %s (%s)", name, url, size)
        with open(partial, "ab" if have else "wb") as stream, download_bar() as bar:
            task = bar.add_task(name, total=total, completed=have)
            while chunk := response.read(1 << 20):
                stream.write(chunk)
                have += len(chunk)
                bar.advance(task, len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")
