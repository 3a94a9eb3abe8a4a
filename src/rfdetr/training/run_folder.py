"""The folder of a run: one run at a time, and none that is written over unasked."""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rfdetr.errors import InputError
from rfdetr.files import CHECKSUMS_FILE, record_digests, remove_leftovers

logger = logging.getLogger(__name__)

LOCK_FILE = ".run.lock"
_RESULTS = ("results.json", "checkpoint_best_total.pth")
_RUN_FILES = (
    *_RESULTS,
    "last.ckpt",
    "checkpoint_[0-9]*.ckpt",
    "checkpoint_best_*.pth",
    "checkpoint_best_*.safetensors",
    "nonfinite-step-*.pt",
)

_LOGS = (
    *("config.yaml", "log.txt", "metrics.csv", "metrics.png", "pr_curve.png", "f1_curve.png"),
    *("confusion_matrix*.png", CHECKSUMS_FILE),
)

_used: set[Path] = set()  # folders to which runs of this process have written
_held: dict[
    Path, int
] = {}  # lock file -> the process that holds it: a system's lock does not stop its own process


class OutputFolderError(InputError):
    """A folder that a run cannot write to; the message says why and what to do."""


class FolderLock:
    """Held by the run that writes to a folder; the system frees it when that process ends, however
    it ends.

    A record lock: unlike flock's, it is not inherited by the processes that load images, and it
    holds on NFS.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / LOCK_FILE
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock and clears what killed writes left; raises `OutputFolderError` where
        another run has it.
        """
        if self._descriptor is not None:
            return
        if _held.get(self.path) == os.getpid():
            raise OutputFolderError(
                f"{self.path.parent} is being written to by another run of this same process"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputFolderError(
                f"output_dir {self.path.parent} cannot be written to: {error.strerror}"
            ) from error
        try:
            self._take(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        owner = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({**owner, "command": shlex.join(sys.argv)}).encode())
        self._descriptor = descriptor
        _held[self.path] = os.getpid()
        remove_leftovers(self.path.parent)

    def release(self) -> None:
        """Gives the lock back; nothing where it is not held."""
        if self._descriptor is not None:
            _held.pop(self.path, None)
            _used.add(self.path.parent)
            with suppress(OSError):  # Windows deletes no open file
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, descriptor: int) -> None:
        owner = _read_owner(descriptor)
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            raise OutputFolderError(_in_use(self.path.parent, owner)) from error
        except OSError as error:  # a file system without locks: what the file says has to do
            if owner.get("host") == platform.node() and _is_alive(owner.get("pid")):
                raise OutputFolderError(_in_use(self.path.parent, owner)) from error
        if not self.path.exists() or not os.path.samestat(os.fstat(descriptor), self.path.stat()):
            raise OutputFolderError(
                f"another run has just ended or begun in {self.path.parent}: try again"
            )


def default_folder(base: Path, resume: str | None) -> Path:
    """Where a run goes whose user named no folder: `base`, or the first of base-2, base-3, ...
    without a run in it.

    A resumed run goes on in the one of them with its checkpoint: for "last", with the newest
    last.ckpt.
    """
    numbered = [
        path
        for path in base.parent.glob(f"{base.name}-*")
        if path.name[len(base.name) + 1 :].isdecimal()
    ]
    series = [base, *numbered]
    if resume == "last":
        saved = [path for path in series if (path / "last.ckpt").is_file()]
        if saved:
            return max(saved, key=lambda path: (path / "last.ckpt").stat().st_mtime_ns)
    elif resume is not None:
        place = Path(resume).expanduser().resolve().parent
        if own := [path for path in series if path.resolve() == place]:
            return own[0]
    names = itertools.chain([base.name], (f"{base.name}-{number}" for number in itertools.count(2)))
    return next(
        path for path in map(base.with_name, names) if not (_file_of_run(path) or _is_in_use(path))
    )


def set_aside(folder: Path) -> None:
    """Moves the files of the run in a folder to its first free subfolder run-1, run-2, ..."""
    place = next(path for n in itertools.count(1) if not (path := folder / f"run-{n}").exists())
    place.mkdir()
    for pattern in (*_RUN_FILES, *_LOGS):
        for path in folder.glob(pattern):
            path.rename(place / path.name)
    logger.warning("the run that this session has made in %s is now in %s", folder, place)


def refuse_to_overwrite(
    folder: Path, resumed: str | os.PathLike[str] | None, *, keep_own: bool = False
) -> None:
    """Raises `OutputFolderError` where a run's files are and the checkpoint to go on from is not
    among them.

    With `keep_own`, the files of a run of this same process are set aside instead.
    """
    nearest = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )
    if not nearest.is_dir():
        raise OutputFolderError(f"output_dir {folder} cannot be written to: {nearest} is no folder")
    if resumed is not None and Path(resumed).resolve().parent == folder.resolve():
        return
    there = _file_of_run(folder)
    if there and keep_own and folder.resolve() in _used:
        set_aside(folder)
    elif there:
        state = "an interrupted" if there == "last.ckpt" else "a finished"
        raise OutputFolderError(
            f'there is {state} run in {folder} ({there}): go on with it (resume="last"), choose another output_dir, or '
            "pass overwrite=True to start anew and lose it"
        )


def clear_run(folder: Path) -> None:
    """Deletes the weights and results of an earlier run; its logs start anew by themselves."""
    for pattern in _RUN_FILES:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
            record_digests(path, [])


def _file_of_run(folder: Path) -> str | None:
    return next((name for name in (*_RESULTS, "last.ckpt") if (folder / name).exists()), None)


def _is_in_use(folder: Path) -> bool:
    """Whether another run says that it writes to a folder; to try its lock could make it fail."""
    path = folder.resolve() / LOCK_FILE
    if _held.get(path) == os.getpid():  # and to open our own lock's file would lose the lock
        return True
    try:
        owner = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return (
        isinstance(owner, dict)
        and owner.get("host") == platform.node()
        and _is_alive(owner.get("pid"))
    )


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(
            descriptor, 1 << 30, os.SEEK_SET
        )  # far behind the text, which others should be able to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _read_owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(
            os.pread(descriptor, 4096, 0) if sys.platform != "win32" else os.read(descriptor, 4096)
        )
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _in_use(folder: Path, owner: dict[str, Any]) -> str:
    who = "process {pid} on {host} since {since}: {command}".format_map(
        {**dict.fromkeys(_OWNER, "?"), **owner}
    )
    return f"another run is writing to {folder} ({who}): wait for it, end it, or choose another output_dir"


_OWNER = ("pid", "host", "since", "command")


def _is_alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid == os.getpid() or sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
