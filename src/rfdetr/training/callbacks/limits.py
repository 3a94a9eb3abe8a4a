"""Two limits of a run: how many images may be undecodable, and how much memory there is."""

# mypy: disable-error-code="override"

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, Trainer

from rfdetr.errors import RunError
from rfdetr.training.lightning_state import find_callback
from rfdetr.training.memory import is_out_of_memory

MOST_UNDECODABLE = 0.01  # of a split's images; a single one stops no run


class UndecodableCallback(Callback):
    """Counts the images in whose place the dataset has given another, and stops a run with many.

    Such a target has "undecodable": the image's number, and how many images its split has.
    """

    def __init__(self) -> None:
        self.images: defaultdict[str, set[int]] = defaultdict(set)  # their numbers, by split

    def on_train_batch_start(self, _: Trainer, __: Any, batch: Any, *___: Any) -> None:
        self._count("train", batch[1])

    def on_validation_batch_start(self, _: Trainer, __: Any, batch: Any, *___: Any) -> None:
        self._count("valid", batch[1])

    def state_dict(self) -> dict[str, Any]:
        return {split: sorted(numbers) for split, numbers in self.images.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images.update({split: set(numbers) for split, numbers in state_dict.items()})

    def _count(self, split: str, targets: Any) -> None:
        for number, total in (t["undecodable"].tolist() for t in targets if "undecodable" in t):
            self.images[split].add(number)
            if (count := len(self.images[split])) > max(1, MOST_UNDECODABLE * total):
                raise RunError(
                    f"{count} of {total} {split} images cannot be decoded, more than "
                    f"{MOST_UNDECODABLE:.0%}; the log names them, `rfdetr check` too. Replace or "
                    "remove them, and go on with resume='last'"
                )


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
        fitted = f"the largest batch that fitted: {sizes.fitted}"
        raise torch.OutOfMemoryError(
            f"out of memory{tried}; {fitted if sizes.fitted else 'no batch has fitted yet'}. Lower "
            "batch_size, and raise grad_accum_steps by the same factor; lower resolution; or leave "
            f"out the largest sizes with multi_scale=False or expanded_scales=False ({error})"
        ) from error
