"""Running out of memory: what a training step had room for, and what to lower."""

# mypy: disable-error-code="override"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, Trainer

from rfdetr.training.lightning_state import find_callback
from rfdetr.training.memory import is_out_of_memory


class BatchSize(NamedTuple):
    """Size of a batch: its pixels, its images, and the pixels of their side."""

    pixels: int
    images: int
    side: int

    def __str__(self) -> str:
        return f"{self.images} image{'s' * (self.images > 1)} at {self.side} x {self.side} pixels"


class MemoryCallback(Callback):
    """Remembers the batch that is being trained, and the largest one that a step had memory for."""

    def __init__(self) -> None:
        self.tried: BatchSize | None = None
        self.fitted: BatchSize | None = None

    def on_train_batch_start(self, _: Trainer, __: Any, batch: Any, *___: Any) -> None:
        images, side = len(batch[0].tensors), batch[0].tensors.shape[-1]
        self.tried = BatchSize(images * side**2, images, side)

    def on_train_batch_end(self, *_: Any) -> None:
        self.fitted = max(filter(None, (self.tried, self.fitted)), default=None)
        self.tried = None


@contextmanager
def explained_memory(trainer: Trainer) -> Iterator[None]:
    """Makes out-of-memory errors say what to lower, in a run with a `MemoryCallback`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        sizes = find_callback(trainer, MemoryCallback)
        if sizes is None or not is_out_of_memory(error):
            raise
        tried = f" in a step of {sizes.tried}" if sizes.tried else ""
        most = f"the largest batch that fitted: {sizes.fitted}"
        raise torch.OutOfMemoryError(
            f"out of memory{tried}; {most if sizes.fitted else 'no batch has fitted yet'}. Lower "
            "batch_size, and raise grad_accum_steps by the same factor; lower resolution; or leave "
            "out the largest sizes with multi_scale=False or expanded_scales=False "
            f"({error})"
        ) from error
