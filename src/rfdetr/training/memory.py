"""How much memory there is and how much a piece of work takes, on CPUs (Linux) and GPUs."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from rfdetr.errors import InputError

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # names of glibc's settings, from malloc.h
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Peak(NamedTuple):
    """Most bytes in use while something ran, and how many there are to use."""

    used: int
    limit: int


def measure_peak(
    work: Callable[[], object], device: torch.device, local_processes: int = 1
) -> Peak:
    """The peak of a device while `work` runs, everything that was there before included.

    On a CPU that of this process; what is free is shared by `local_processes` of the machine.
    Raises what `work` raises. MPS tells neither: its peak is 0 of 0.
    """
    gc.collect()
    if device.type == "cpu":
        if (libc := _glibc()) is not None:
            libc.malloc_trim(0)  # what earlier work has freed is no part of this one's
        status = PROC / "self/status"
        limit = _bytes(status, "VmRSS:") + free_memory() // local_processes
        (PROC / "self/clear_refs").write_text("5")  # the peak starts again from here
        work()
        return Peak(_bytes(status, "VmHWM:"), limit)
    if device.type != "cuda":
        work()
        return Peak(0, 0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    limit = torch.cuda.memory_reserved(device) + torch.cuda.mem_get_info(device)[0]
    work()
    return Peak(torch.cuda.max_memory_allocated(device), limit)


def memory_so_far(device: torch.device) -> tuple[int, Peak] | None:
    """Bytes in use now, and their peak since it was last reset beside what the device has; None
    where the system does not tell.

    On a CPU that of this process and of the machine, on a GPU what tensors take.
    """
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        peak = Peak(torch.cuda.max_memory_allocated(device), total)
        return torch.cuda.memory_allocated(device), peak
    status = PROC / "self/status"
    if device.type != "cpu" or not status.exists():
        return None
    peak = Peak(_bytes(status, "VmHWM:"), _bytes(PROC / "meminfo", "MemTotal:"))
    return _bytes(status, "VmRSS:"), peak


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return known or any(text in str(error).lower() for text in texts)


def free_memory() -> int:
    """Bytes that this process can still take, of the machine or its control group (v2)."""
    if not (PROC / "self/clear_refs").exists():
        told = "this system does not tell how much memory a process takes; Linux and GPUs do"
        raise InputError(told)
    free = [_bytes(PROC / "meminfo", "MemAvailable:")]
    lines = (PROC / "self/cgroup").read_text().splitlines()
    group = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    for folder in (CGROUPS / group, *(CGROUPS / group).parents):
        limit = folder / "memory.max"
        if limit.is_file() and (most := limit.read_text().strip()) != "max":
            used = int((folder / "memory.current").read_text())
            used -= _bytes(folder / "memory.stat", "inactive_file")  # a cache that makes room
            free.append(int(most) - used)
    return min(free)


def cache_limit(wanted: Literal["ram"] | float, processes: int) -> int:
    """Bytes that each of so many processes of this machine may keep images in: its share of
    `wanted` GB, or of half of what is free ("ram").
    """
    if wanted != "ram":
        return int(wanted * 1e9 / processes)
    try:
        return free_memory() // 2 // processes
    except InputError as error:
        raise InputError(f'cache="ram": {error}; give a number of GB') from error


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, glibc keeps the memory that is freed; at the end it gives all of it to the system.

    Left to itself it would give back most of a step's activations, and the next step would fault
    them in again page by page. Tensors of over 32 MB come from there, too, not from mappings of
    their own, which would be faulted in each time.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, 2**25)
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 2**16)  # as glibc begins
        libc.mallopt(_TRIM_THRESHOLD, 2**26)  # the largest that glibc comes to by itself
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None


def _bytes(path: Path, name: str) -> int:
    """What a file of lines such as "MemAvailable:    8000 kB" or "file 4096" says of `name`."""
    rows = (line.split() for line in path.read_text().splitlines())
    number, *unit = next(row[1:] for row in rows if row[0] == name)
    return int(number) * (1024 if unit else 1)
