"""Loaders: which images come in which order (`EpochSampler`), where an order goes on again, and how
the worker processes are started: scripts, notebooks and threads need no special form.

The last rests on `_Popen`, a private method of Python's process classes that starts the process. A
Python that no longer calls it would start plain processes: spawned ones import the script, which
needs a main guard then, and forked ones may keep a program that wants to exit waiting.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from rfdetr.data.dataset import DetectionDataset, SampleKey, collate, keyed_generator

FILES_AT_ONCE = 8
"""Large images whose tiles are mixed: more are a better mixture, and more memory."""


@dataclass(eq=False, repr=False)
class EpochSampler(Sampler[SampleKey]):
    """Keys (epoch, image) of one rank's share of an epoch of `length` images.

    The order depends on (seed, epoch) alone. A shuffled epoch has `at_least` so many images: a
    smaller set is repeated, each time in another order, with numbers that go on (see
    `DetectionDataset`). Shuffled shares are made equal by repeating the first images, as training
    ranks must take equally many steps. Others hold every image once, unless `even` asks for equal
    ones or there are too few images for every rank to have one.

    `sizes` is called when an iteration starts, and yields each image's size (height, width) from
    there on: keys are then (epoch, image, size). `progress` is called then with the epoch, for the
    share of the run that is over with it: keys are then (epoch, image, size or None, share).

    `taken` are pairs (images, of which so many an epoch) of consecutive parts of the data, which
    together have `length` an epoch: each epoch draws them anew. `chosen` is called when an
    iteration starts, for the images that it has in place of all, if any.

    `files` are those of which all images are parts. A shuffled epoch goes through them
    `FILES_AT_ONCE` at a time, their parts mixed, so that each is decoded once and not once a part.
    """

    length: int
    _: KW_ONLY
    shuffle: bool
    seed: int = 0
    epoch: int = 0
    rank: int = 0
    world_size: int = 1
    even: bool = False
    at_least: int = 0
    sizes: Callable[[], Iterator[tuple[int, int]]] | None = None
    progress: Callable[[int], float] | None = None
    files: NDArray[np.int64] | None = None
    taken: Sequence[tuple[int, int]] = ()
    chosen: Callable[[], NDArray[np.int64] | None] | None = None
    skip: int = 0  # images at the start of the order, of all ranks, that the next iteration omits

    def __post_init__(self) -> None:
        self.total = max(self.length, self.at_least) if self.shuffle else self.length
        self.even = self.even or self.shuffle or self.length < self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of iterations to come; Lightning does so before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.share_after(0)

    def share_after(self, images: int) -> int:
        """How many images this rank has to take after the first `images` of the epoch's order."""
        return self._share_of(self.total - images, self.even)

    def _share_of(self, images: int, even: bool) -> int:
        spare = self.world_size - 1 - (0 if even else self.rank)
        return max(images + spare, 0) // self.world_size

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, skip, self.skip = self.epoch, self.skip, 0
        chosen = self.chosen() if self.chosen else None
        order = np.arange(self.total) if chosen is None else chosen
        order = self._shuffled(epoch) if self.shuffle else order
        sizes = self.sizes() if self.sizes else None
        share = self.progress(epoch) if self.progress else None
        even = self.even or len(order) < self.world_size
        for taken in range(self._share_of(len(order) - skip, even)):
            position = skip + self.rank + taken * self.world_size
            image = int(order[position % len(order)])
            if share is not None:
                yield (epoch, image, next(sizes) if sizes else None, share)
            else:
                yield (epoch, image, next(sizes)) if sizes else (epoch, image)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        """The images of an epoch in its order; those of rounds after the first have numbers that go
        on.
        """
        draw = keyed_generator(self.seed, epoch)
        counts = self.taken or [(self.length, self.length)]
        starts = np.cumsum([0, *(count for count, _ in counts)])
        drawn = np.concatenate(
            [
                first + (np.arange(count) if count == most else draw.permutation(count)[:most])
                for first, (count, most) in zip(starts.tolist(), counts, strict=False)
            ]
        )
        rounds = []
        for first in range(0, self.total, self.length):
            mixed = drawn[draw.permutation(self.length)]
            if self.files is not None:
                place = draw.permutation(self.files.max() + 1)[self.files[mixed]]
                mixed = mixed[np.argsort(place // FILES_AT_ONCE, kind="stable")]
            rounds.append(first // self.length * starts[-1] + mixed)
        return np.concatenate(rounds)[: self.total]


class ResumableLoader(DataLoader[Any]):
    """A loader whose first iteration after `load_state_dict` starts where another one stood.

    What is skipped is not decoded. The state counts images of the epoch's order, not batches, so
    that a run may go on with another batch size or number of processes. Lightning keeps the state
    of such loaders. Only with an `EpochSampler` are images skipped.
    """

    _images = 0
    _start = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Not in the generator: an iteration that is never asked for a batch, of an epoch that has
        # all its images, still uses up where to start.
        start, self._start = self._start, 0
        return self._batches_from(start)

    def _batches_from(self, start: int) -> Iterator[Any]:
        self._images = start
        if isinstance(self.sampler, EpochSampler):
            self.sampler.skip = start
        for batch in super().__iter__():
            self._images += self.images_per_batch
            yield batch

    @property
    def images_per_batch(self) -> int:
        """Images of a full batch of every process together."""
        return (self.batch_size or 1) * getattr(self.sampler, "world_size", 1)

    def batches_after(self, images: int) -> int:
        """How many batches an epoch has left after its first `images` images, of all processes."""
        if not isinstance(self.sampler, EpochSampler):
            return max(len(self) - images // self.images_per_batch, 0)
        share, size = self.sampler.share_after(images), self.batch_size or 1
        return share // size if self.drop_last else -(-share // size)

    def state_dict(self) -> dict[str, int]:
        """Images that all processes together were handed of this epoch, and of a batch."""
        return {"images": self._images, "batch": self.images_per_batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start the next iteration after `state_dict["images"]` images."""
        self._start = state_dict["images"]


def build_loader(
    dataset: DetectionDataset,
    sampler: EpochSampler,
    *,
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    persistent_workers: bool | None = None,
    **options: Any,
) -> ResumableLoader:
    """A loader of (NestedTensor, targets) batches whose workers live on from epoch to epoch, unless
    `persistent_workers` is False.

    `prefetch_factor` is of workers too. `options` are `DataLoader`'s own: `batch_size`,
    `pin_memory`, `drop_last`.
    """
    options.update(collate_fn=collate, worker_init_fn=outlive_signals)
    if num_workers > 0:
        options.update(prefetch_factor=prefetch_factor, multiprocessing_context=worker_context())
        options.update(persistent_workers=persistent_workers is not False)
    return ResumableLoader(dataset, sampler=sampler, num_workers=num_workers, **options)


def worker_context() -> BaseContext:
    """Forked processes on Linux, which start at once; elsewhere, or if so chosen, spawned ones."""
    # `multiprocessing`'s own default would not do: from Python 3.14 on it no longer forks on Linux.
    default = "fork" if sys.platform == "linux" else "spawn"
    method = multiprocessing.get_start_method(allow_none=True) or default
    return _SpawnWithoutMain() if method != "fork" or sys.platform == "win32" else _Fork()


def outlive_signals(_worker: int = 0) -> None:
    """Let a worker ignore the signals that end a run: they reach it too, but the run ends it."""
    for name in {"SIGINT", "SIGTERM", "SIGUSR1"} & signal.Signals.__members__.keys():
        signal.signal(signal.Signals[name], signal.SIG_IGN)


def _killable(process: Any) -> Any:
    """The same process, killed by `terminate`: Python does that at exit, and waits for the end."""
    process.terminate = process.kill
    return process


class _SpawnWithoutMain(SpawnContext):
    """Spawns processes that do not import the main module, which would run the user's script again.

    A script without `if __name__ == "__main__":` would start to train in every worker. Workers need
    nothing of it: what they unpickle is defined in this package.
    """

    class Process(SpawnProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> Any:
            names = vars(sys.modules["__main__"])
            hidden = {name: names[name] for name in names if name in ("__file__", "__spec__")}
            names.update(dict.fromkeys(hidden))  # None: then there is nothing to import
            try:
                return _killable(SpawnProcess._Popen(process_obj))
            finally:
                names.update(hidden)


if sys.platform != "win32":
    from multiprocessing.context import ForkContext, ForkProcess

    class _Fork(ForkContext):
        class Process(ForkProcess):
            @staticmethod
            def _Popen(process_obj: Any) -> Any:
                return _killable(ForkProcess._Popen(process_obj))
