"""What running a model costs: time and memory, and the machine on which they were measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from rfdetr._version import __version__

T = TypeVar("T")
TURNS = 5
"""How often each model's turn comes."""
_CALLS = 4  # that are timed in a turn, after one that is not
_PACKAGES = "torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf"
_FLAGS = "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"
_PROGRAM = """
import json, sys
from rfdetr import RFDETR
work = json.load(sys.stdin)
open_file = RFDETR.from_export if work["exported"] else RFDETR.from_checkpoint
model = open_file(work["file"], **work["settings"])
if work["optimize"]:
    model.optimize_for_inference(**work["optimize"])
for _ in range(2):
    model.predict(work["images"], batch_size=len(work["images"]))
lines = open("/proc/self/status").read().splitlines()
print("PEAK", next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""


class Latency(NamedTuple):
    """Of a call, in milliseconds: half of the calls took no more, and 95 % of them."""

    median: float
    p95: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Of the times of single calls."""
        return cls(*(round(float(np.percentile(milliseconds, q)), 3) for q in (50, 95)))


def latencies(
    calls: Mapping[T, Callable[[int], object]], turns: Iterable[int] = range(TURNS)
) -> dict[T, Latency]:
    """How long each of `calls` takes, by its name; it gets a number, another one each time.

    They take turns, in another order each second time, so that a machine that becomes slower
    favours none. The first call of a turn is not timed: the caches are another one's, and threads
    of the runtime before may still be spinning.
    """
    times: dict[T, list[float]] = {name: [] for name in calls}
    for turn in turns:
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            calls[name](turn * _CALLS)
            for number in range(turn * _CALLS, (turn + 1) * _CALLS):
                start = time.perf_counter()
                calls[name](number)
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: Latency.of(values) for name, values in times.items()}


def file_size(path: Path) -> int:
    """Bytes of a model's file; OpenVINO's has its weights in a second one."""
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(file.stat().st_size for file in files)


class Loading(NamedTuple):
    """How another process opens a model: from an exported file or a checkpoint."""

    file: Path
    exported: bool
    settings: Mapping[str, Any] = {}
    optimize: Mapping[str, Any] = {}
    """Arguments of `optimize_for_inference`; it is not called without any."""


def peak_memory(model: Loading | None, images: Sequence[Path]) -> float | str:
    """MiB that a process of its own had in memory at most, which opened the model and predicted
    `images` as one batch; Python and the libraries included. Text says why it was not measured.
    """
    if model is None:
        return "not measured: the model is in no file"
    if not Path("/proc/self/status").exists():
        return "not measured: this system does not tell it as Linux does"
    work = {**model._asdict(), "file": str(model.file.resolve()), "images": [*map(str, images)]}
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(
        command, input=json.dumps(work), capture_output=True, text=True, check=False
    )
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("PEAK ")]
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"not measured: {last}"
    return round(int(found[0]) / 1024, 1)


def machine(device: torch.device) -> dict[str, Any]:
    """The processor (and the GPU, where the model runs on one) and how much of it is used."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = facts.get("flags", "").split()
    found = {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "instructions": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def versions() -> dict[str, str]:
    """Of Python and of the packages that compute, as far as they are installed."""
    found = {"rfdetr": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
