"""How much memory there is and how much a piece of work takes, on CPUs (Linux) and GPUs."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from rfdetr.errors import InputError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's settings, from malloc.h
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Peak(NamedTuple):
    """Most bytes in use while something ran, and how many there are to use."""

    used: int
    limit: int


def measure_peak(work: Callable[[], object], device: torch.device, sharers: int = 1) -> Peak:
    """The peak of a device while `work` runs, everything that was there before included.

    On a CPU that of this process, with its part, one of `sharers`, of what is free. Raises what
    `work` raises.
    """
    gc.collect()
    if device.type == "cpu":
        if (libc := _glibc()) is not None:
            libc.malloc_trim(0)  # what earlier work has freed is no part of this one's
        limit = _resident("VmRSS") + free_memory() // sharers
        (PROC / "self/clear_refs").write_text("5")  # the peak starts again from here
        work()
        return Peak(_resident("VmHWM"), limit)
    if device.type != "cuda":
        work()
        return Peak(0, 0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    limit = torch.cuda.memory_reserved(device) + torch.cuda.mem_get_info(device)[0]
    work()
    return Peak(torch.cuda.max_memory_allocated(device), limit)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(text in str(error).lower() for text in texts)


def free_memory() -> int:
    """Bytes that this process can still take: the machine's, or less where a control group limits
    it.
    """
    if not (PROC / "self/clear_refs").exists():
        raise InputError(
            "this system does not tell how much memory a process takes; Linux and GPUs do"
        )
    fields = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
    return min([int(fields["MemAvailable"].split()[0]) * 1024, *_free_in_groups()])


def _free_in_groups() -> Iterator[int]:
    """What each control group around this process leaves (versions 1 and 2); cached files make room
    when asked.
    """
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUPS / controllers
        v1, v2 = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ("memory.max", "memory.current"),
        )
        names = v1 if controllers else v2
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = folder / names[0], folder / names[1]
            if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
                stat = dict(
                    row.split() for row in (folder / "memory.stat").read_text().splitlines()
                )
                cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
                yield int(text) - int(used.read_text()) + cached
            if folder == root:
                break


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, glibc keeps what is freed for the next step; after, it gives it back.

    It would give back the better part of every step's activations, for the next step to fault in
    page by page.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, 2**25)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, 2**26)  # the largest that glibc comes to by itself
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None


def _resident(name: str) -> int:
    lines = (PROC / "self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
