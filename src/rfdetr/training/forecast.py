"""What a run will need, before it has taken it: room on the disk, memory, time."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl

from rfdetr.console import duration
from rfdetr.training.callbacks.averaging import RFDETREMACallback
from rfdetr.training.callbacks.resume import ResumeCallback
from rfdetr.training.callbacks.selection import BestModelCallback
from rfdetr.training.lightning_state import find_callback
from rfdetr.training.module import RFDETRModule
from rfdetr.training.run_folder import OutputFolderError, RunFolder


class DiskNeed(NamedTuple):
    """Bytes that a run's checkpoints take, and bytes that are free or will be for them."""

    first: int  # from the first epoch on
    all: int  # with those that are kept, if the run has all its epochs
    free: int
    kept: int  # training states that are kept
    state: int  # bytes of one

    def __str__(self) -> str:
        return f"up to {in_bytes(self.all)} for checkpoints, {in_bytes(self.free)} are free"

    def shortage(self, folder: Path, interval: int, ends_early: bool) -> str:
        """Raises `OutputFolderError` where the checkpoints find no room in `folder`. Those of all
        epochs are only a warning, which is returned, for a run that `ends_early` perhaps.
        """
        if self.all <= self.free:
            return ""
        advice = "free some, or choose another output_dir"
        needed, kept = in_bytes(self.first), ""
        if self.first <= self.free:
            needed = in_bytes(self.all)
            kept = f", with {self.kept} checkpoints of {in_bytes(self.state)} that are kept"
            advice += f", or raise checkpoint_interval (now {interval})"
        told = f"{in_bytes(self.free)} are free for output_dir {folder}, and the run needs {needed}"
        if self.first > self.free or not ends_early:
            raise OutputFolderError(f"{told}{kept}: {advice}")
        return f"{told} if it has all its epochs{kept}: {advice}"


def disk_need(trainer: pl.Trainer, module: RFDETRModule, folder: Path) -> DiskNeed:
    """The need of a run that `fit` has set up; what a run has left in its folder, and this one
    replaces or goes on with, counts as free.

    A training state is the weights, their average and AdamW's two moments of what is trained; while
    last.ckpt is replaced there are two of them.
    """
    # Not from a state dict: asked for on one rank, it would make that one gather weights alone.
    tensors = [*module.detector.parameters(), *module.detector.buffers()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    trained = [p for p in module.detector.parameters() if p.requires_grad]
    averaged = find_callback(trainer, RFDETREMACallback) is not None
    state = weights * (1 + averaged) + 2 * sum(p.numel() * p.element_size() for p in trained)
    first = kept = 0
    if best := find_callback(trainer, BestModelCallback):
        live = not (averaged and module.train_config.validates_average_alone)
        first += weights * (averaged + live + best.safetensors)
        first += weights * (best.average_best + 2 if best.average_best else 0)  # one more, the mean
    if resume := find_callback(trainer, ResumeCallback):
        first += 2 * state
        kept = max(trainer.max_epochs or 0, 0) // resume.checkpoint_interval
    place = folder.absolute()
    place = next(near for near in (place, *place.parents) if near.exists())
    free = shutil.disk_usage(place).free + RunFolder(folder).checkpoint_bytes()
    return DiskNeed(first, first + kept * state, free, kept, state)


def in_bytes(count: float) -> str:
    """A number of bytes as people read it: "512.0 MB", "6.1 GB"."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def in_time(seconds: float) -> str:
    """As "0:01:05"; with tenths below ten seconds, where whole ones would say too little."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def clock_after(seconds: float) -> str:
    """The time of day in so many seconds, with the date where it is another day."""
    now, then = time.localtime(), time.localtime(time.time() + seconds)
    return time.strftime("%H:%M" if now[:3] == then[:3] else "%a %d %b, %H:%M", then)
