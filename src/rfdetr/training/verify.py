"""Proof that a killed run goes on exactly: a short training, undisturbed and killed many times."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.errors import RunError
from rfdetr.files import CHECKSUMS_FILE
from rfdetr.training.records import FORECAST

_PRELOADED = ["hotcoco", *(f"rfdetr.training.{n}" for n in ("trainer", "datamodule", "verify"))]
_COUNT = "moments.txt"  # beside a run's folder: how many moments it had
_FILE_EVENTS = ("open", "os.rename", "os.remove", "os.truncate")
_VARYING = ("seconds", "bytes")  # times, and the length of a file with times in it


@dataclass(frozen=True)
class ResumeReport:
    """What `verify_resume` found."""

    kills: int
    moments: int
    """Moments of one run at which it could have been killed."""
    files: dict[str, str]
    """SHA-256 of each compared file's content in the undisturbed run; times are left out."""
    differences: list[str]
    """The files of killed runs that are not those of the undisturbed one."""


def verify_resume(
    model_config: ModelConfig,
    train_config: TrainConfig,
    *,
    kills: int = 5,
    limit_batches: int | None = None,
    seed: int = 0,
) -> ResumeReport:
    """Trains once undisturbed, then again with SIGKILL at random moments and `resume="last"`, and
    compares the files.

    The moments are before every opening, renaming, cutting and removing of a file in the run's
    folder, as a run leaves nothing but files; `seed` draws them, and is the runs' where
    `train_config` has none. Everything happens in a temporary folder.
    """
    if train_config.seed is None:
        train_config = train_config.model_copy(update={"seed": seed})
    draw, done = random.Random(seed), 0
    differing: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="rfdetr-resume-") as work:
        train = partial(_train_apart, model_config, train_config, limit_batches)
        whole = Path(work) / "whole"
        train(whole, None)
        moments = int((whole.parent / _COUNT).read_text())
        files = content_hashes(whole)
        while done < kills:
            folder = Path(tempfile.mkdtemp(dir=work)) / "killed"
            while done < kills and train(folder, draw.randrange(moments // 2)):
                done += 1
            train(folder, None)
            found = content_hashes(folder)
            differing |= {name for name in {*files, *found} if files.get(name) != found.get(name)}
    return ResumeReport(done, moments, files, sorted(differing))


def _train_apart(
    model: ModelConfig, train: TrainConfig, limit: int | None, folder: Path, kill_at: int | None
) -> bool:
    """Trains, or goes on, in a process of its own; whether it was killed."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(_PRELOADED)  # imported once for all runs
    config = train.model_copy(update={"output_dir": folder, "progress_bar": False})
    process = context.Process(target=_train, args=(model, config, limit, kill_at))
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        told = f"failed with exit code {process.exitcode}; its output tells why"
        raise RunError(f"the training in {folder} {told}")
    return bool(process.exitcode)


def _train(
    model_config: ModelConfig, config: TrainConfig, limit_batches: int | None, kill_at: int | None
) -> None:
    from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer

    torch.set_num_threads(1)
    main, folder, seen = os.getpid(), str(config.output_dir.resolve()), 0

    def on_event(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _FILE_EVENTS and os.getpid() == main and str(args[0]).startswith(folder):
            if seen == kill_at:
                os.kill(main, signal.SIGKILL)
            seen += 1

    sys.addaudithook(on_event)
    limits = dict.fromkeys(("limit_train_batches", "limit_val_batches"), limit_batches)
    trainer = build_trainer(config, model_config, **limits)
    datamodule = RFDETRDataModule(model_config, config)
    trainer.fit(RFDETRModule(model_config, config), datamodule, ckpt_path="last")
    (config.output_dir.parent / _COUNT).write_text(str(seen))


def content_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights, training state, figures and results of a run, by file, less times."""
    hashes = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".ckpt", ".pth"):
            content = _compared(torch.load(path, map_location="cpu", weights_only=True))
        elif path.name == "log.txt" or path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            content = _compared([row for row in rows if FORECAST not in row])  # measured times
        elif path.name in (CHECKSUMS_FILE, "report.json"):
            continue  # of files with times in them; times and the command beside known figures
        elif path.suffix in (".csv", ".json", ".safetensors"):
            content = path.read_bytes()
        else:
            continue
        hashes[path.name] = hashlib.sha256(content).hexdigest()
    return hashes


def _compared(value: Any) -> bytes:
    """Equal for equal tensors, numbers and texts in equal places, whatever the times."""
    if isinstance(value, torch.Tensor):
        numbers = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        value = (str(value.dtype), *value.shape, hashlib.sha256(numbers).hexdigest())
    if isinstance(value, Mapping):
        value = [item for pair in value.items() if pair[0] not in _VARYING for item in pair]
    if isinstance(value, list | tuple):
        return f"[{len(value)}]".encode() + b"".join(map(_compared, value))
    return repr(value).encode()
